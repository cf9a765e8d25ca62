"""Tokens of pictures from a frozen H-JEPA, for what trains and measures codecs of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcomp.data.pictures import Pictures
from jaxcomp.errors import CheckpointError, ConfigError
from jaxcomp.jobs.jepa_figures import stacked
from jaxcomp.loaders.token_head import TokenHead, load_token_head
from jaxcomp.log import LOG
from jaxcomp.models.hjepa import HJEPA, HJEPAConfig

# What decides which pictures are held out.
_PICTURES = ("name", "height", "width", "seed", "train_size", "val_size", "val_share", "val_split")


def frozen_head(path: str) -> TokenHead:
    """The network whose tokens are coded; an error names the way to one.

    Raises:
      CheckpointError: there is none, or its file is damaged.
    """
    try:
        return load_token_head(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (config.hjepa.path; `python -m jaxcomp.main --config=configs/hjepa.py` "
            "trains one)"
        ) from error


def check_config(config: Any, head: TokenHead) -> None:
    """Raises `ConfigError` unless level, width and pictures of a config fit the network.

    Other pictures than those it was trained on are a warning: some held-out ones may not have been
    held out then.
    """
    cfg, where = head.model.cfg, f"the H-JEPA at {config.hjepa.path!r}"
    if config.level >= cfg.num_hierarchies:
        raise ConfigError(
            f"config.level={config.level}, but {where} has the levels 0 to "
            f"{cfg.num_hierarchies - 1}"
        )
    if config.model.in_channels != cfg.width:
        raise ConfigError(
            f"config.model.in_channels={config.model.in_channels}, but the tokens of {where} have "
            f"{cfg.width} channels; set it to that"
        )
    size = (config.data.height, config.data.width)
    if size != cfg.encoder.image_size:
        height, width = cfg.encoder.image_size
        raise ConfigError(
            f"config.data is {size[0]}x{size[1]}, but {where} takes {height}x{width} pixels; give "
            f"--config.data.height={height} --config.data.width={width}"
        )
    known = head.model.meta.get("config", {}).get("data", {})
    other = [k for k in _PICTURES if k in known and known[k] != config.data[k]]
    if other:
        words = " ".join(f"--config.data.{k}={known[k]}" for k in other)
        LOG.warning("%s was trained on other pictures: %s", where, words)


def token_maps(
    head: TokenHead, pictures: Pictures, config: Any, level: int, rows: np.ndarray
) -> np.ndarray:
    """The maps of some pictures, float32 [len(rows), h, w, D].

    Raises:
      NonFiniteError: they hold NaN or infinity.
    """

    def image(row: int) -> np.ndarray:
        return stacked(pictures, config, np.asarray([row]))[0]

    return image_maps(head, image, level, rows, config.training.batch_size)


def image_maps(
    head: TokenHead, image: Callable[[int], np.ndarray], level: int, rows: np.ndarray, batch: int
) -> np.ndarray:
    """`token_maps` of uint8 images [H, W, 3] by row, `batch` at a time."""
    parts = []
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch]
        images = np.stack([image(int(row)) for row in np.resize(chosen, batch)])  # one shape
        parts.append(head.maps(images, level)[: len(chosen)])
    return np.concatenate(parts)


def traced_head(cfg: HJEPAConfig, level: int) -> Callable[[Any, Any], Any]:
    """`head(variables, batch) -> [B, h, w, D]` of a batch of images, inside jit."""
    network, shape = HJEPA(cfg), cfg.map_shape(level)

    def head(variables: Any, batch: Any) -> Any:
        levels: Any = network.apply(variables, batch["image"], method="extract")
        tokens = levels[level].astype(jnp.float32)
        return tokens.reshape(tokens.shape[0], *shape, tokens.shape[-1])

    return head


def spread_rows(count: int, most: int) -> np.ndarray:
    """Up to `most` of `count` rows, evenly spread: folders stand class by class."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
