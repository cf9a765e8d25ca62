"""H-JEPA as a ready-made object: a network and its weights, called on images and masks.

    model = create_hjepa(encoder_type="vit_base_patch16_224", use_fpn=True, fpn_feature_dim=512)
    out = model(images, mask)              # images [B, 224, 224, 3], mask [B, 196]
    out["predictions"][0], out["targets"][0], out["masks_valid"][0]
    features = model.extract_features(images, level=1)

For training use the pure functions behind it, `jaxcomp.models.hjepa`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import trees
from jaxcomp.errors import CheckpointError, ConfigError
from jaxcomp.interop.hjepa_weights import hjepa_from_torch
from jaxcomp.interop.torch_weights import read_weights
from jaxcomp.loaders.files import complete, find_file, read_kind
from jaxcomp.models.hjepa import HJEPA, HJEPAConfig, check_mask, init_variables
from jaxcomp.models.vit import ViTConfig, check_images, encoder_type
from jaxcomp.tasks.jepa import hjepa_config
from jaxcomp.types import PyTree

KIND, HJEPA_FILE = "hjepa", "hjepa.npz"


class HJEPAModel:
    """A network with its weights.

    Attributes:
      cfg: sizes and options.
      variables: {"params", "target"}.
      network: the flax module.
      meta: the record of its file, with its "digest" and "config"; empty without a file of ours.
    """

    def __init__(self, cfg: HJEPAConfig, variables: PyTree, meta: Mapping[str, Any] | None = None):
        """Holds what it is given."""
        self.cfg = cfg
        self.meta = dict(meta or {})
        self.variables = jax.tree.map(jnp.asarray, dict(variables))
        self.network = HJEPA(cfg)
        self._predict = jax.jit(
            self.network.apply, static_argnames=("max_masked", "max_context", "return_all_levels")
        )
        self._extract = jax.jit(
            lambda variables, images, level, target: self.network.apply(
                variables, images, target, method="extract"
            )[level],
            static_argnums=(2, 3),
        )

    def __call__(
        self, images: Any, mask: Any, *, context: Any = None, return_all_levels: bool = True
    ) -> dict[str, Any]:
        """Predictions for the hidden patches, see `jaxcomp.models.hjepa.HJEPA`.

        The lists are as long as the fullest sample needs: a batch with 98 hidden patches of 196 and
        three levels gives lists of 98, 49 and 24 tokens. Another length compiles anew; give
        `network.apply` fixed ones to avoid that.

        Args:
          images: [B, H, W, 3], uint8 pixels or normalised floats.
          mask: [B, N], 1 where a patch is hidden.
          context: [B, N], 1 where a patch is seen; None: all others.
          return_all_levels: False: the finest level only.

        Raises:
          ShapeError: an argument has a wrong shape or type.
        """
        images = jnp.asarray(images)
        check_images(images, self.cfg.encoder.image_size)
        tokens = self.cfg.encoder.tokens
        hidden = np.asarray(check_mask("mask", mask, images, tokens))
        seen = ~hidden
        if context is not None:
            seen &= np.asarray(check_mask("context", context, images, tokens))
        most = {
            "max_masked": max(self.cfg.least_room, int(hidden.sum(1).max(initial=0))),
            "max_context": max(1, int(seen.sum(1).max(initial=0))),
        }
        return self._predict(
            self.variables, images, hidden, context=seen,
            return_all_levels=bool(return_all_levels), **most,
        )  # fmt: skip

    def extract_features(
        self, images: Any, level: int = 0, use_target_encoder: bool = True
    ) -> jax.Array:
        """Projected features of whole images, [B, N_level, D].

        Args:
          images: [B, H, W, 3], uint8 pixels or normalised floats.
          level: 0 (finest) to `cfg.num_hierarchies` - 1.
          use_target_encoder: False: of the context encoder.

        Raises:
          ConfigError: there is no such level.
          ShapeError: the images have a wrong shape or type.
        """
        levels = self.cfg.num_hierarchies
        whole = isinstance(level, int | np.integer) and not isinstance(level, bool)
        if not whole or not 0 <= level < levels:
            raise ConfigError(f"level={level!r} must be a whole number from 0 to {levels - 1}")
        images = jnp.asarray(images)
        check_images(images, self.cfg.encoder.image_size)
        return self._extract(self.variables, images, int(level), bool(use_target_encoder))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights, as the file stores it: names the network."""
        return str(self.meta.get("digest") or trees.tree_digest(self.variables))

    def parameters(self) -> dict[str, int]:
        """Numbers of parameters: {"total", "trainable", "target_encoder"}."""
        trained, target = (
            sum(x.size for x in jax.tree.leaves(self.variables[k])) for k in ("params", "target")
        )
        return {"total": trained + target, "trainable": trained, "target_encoder": target}


def create_hjepa(
    encoder_type: str = "vit_base_patch16_224",
    img_size: int | tuple[int, int] | None = None,
    embed_dim: int | None = None,
    num_hierarchies: int = 3,
    use_fpn: bool = False,
    fpn_feature_dim: int | None = None,
    fpn_fusion_method: str = "add",
    *,
    predictor_depth: int = 6,
    predictor_num_heads: int = 0,
    predictor_mlp_ratio: float = 4.0,
    encoder: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> HJEPAModel:
    """A model with random weights, the target encoder a copy of the context encoder.

    Args:
      encoder_type: "tiny", "small", "base", "large" or "huge", or a full name like
        "vit_small_patch14_224".
      img_size: side of the images, or (rows, columns); None: of the name, else 224.
      embed_dim: width; None: that of the type. The type fixes it: another one is refused.
      num_hierarchies: 2 to 4.
      use_fpn: feature pyramid with a top-down path.
      fpn_feature_dim: its width; None: `embed_dim`.
      fpn_fusion_method: "add", "concat" or "attention".
      predictor_depth: blocks.
      predictor_num_heads: see `HJEPAConfig.predictor_heads`.
      predictor_mlp_ratio: hidden width of its MLPs over the width.
      encoder: further fields of `ViTConfig` (rope, layer_scale, drop_path, remat, dtype, ...).
      seed: of the weights.
      **options: further fields of `HJEPAConfig` (pooling, compat, fpn_bottom_up, ...).

    Raises:
      ConfigError: an argument is unknown, out of range or contradicts another.
    """
    sizes = _encoder_sizes(encoder_type) | dict(encoder or {})
    if img_size is not None:
        sizes["image_size"] = img_size
    if embed_dim is not None and embed_dim != sizes["width"]:
        raise ConfigError(
            f"embed_dim={embed_dim!r}, but {encoder_type!r} has {sizes['width']}; leave it out"
        )
    fields = {
        "predictor_depth": predictor_depth,
        "predictor_heads": predictor_num_heads,
        "predictor_mlp_ratio": predictor_mlp_ratio,
        "num_hierarchies": num_hierarchies,
        "use_fpn": use_fpn,
        "fpn_feature_dim": fpn_feature_dim,
        "fpn_fusion_method": fpn_fusion_method,
    }
    for name, kind, given in (
        ("encoder", ViTConfig, sizes),
        ("create_hjepa", HJEPAConfig, options),
    ):
        unknown = sorted(set(given) - set(kind.__dataclass_fields__))
        if unknown:
            valid = ", ".join(kind.__dataclass_fields__)
            raise ConfigError(f"{name} has no option {unknown[0]!r}; valid: {valid}")
    cfg = HJEPAConfig(ViTConfig(**sizes), **{**fields, **options})
    return HJEPAModel(cfg, init_variables(HJEPA(cfg), jax.random.key(seed)))


def _encoder_sizes(name: str) -> dict[str, Any]:
    if not isinstance(name, str):
        raise ConfigError(f"encoder_type={name!r} is not a name like 'vit_base_patch16_224'")
    return encoder_type(name)


def create_hjepa_from_config(config: Mapping[str, Any]) -> HJEPAModel:
    """A model with random weights from a config.

    Args:
      config: a config of `configs/hjepa.py`, or a mapping laid out as the original's YAML files:
        model{encoder_type, embed_dim, num_hierarchies, predictor{depth, num_heads, mlp_ratio},
        fpn{use_fpn, feature_dim, fusion_method}}, data{image_size}, training
        {use_gradient_checkpointing}, seed. `model.ema` and further sections do not concern it.

    Raises:
      ConfigError: a value is missing or out of range.
    """
    if "model" not in config:
        raise ConfigError("the config has no section 'model'")
    model = config["model"]
    seed = int(config.get("seed", 0))
    if "encoder_type" not in model:
        cfg = hjepa_config(config)
        return HJEPAModel(cfg, init_variables(HJEPA(cfg), jax.random.key(seed)))
    predictor, fpn = _section(model, "predictor"), _section(model, "fpn")
    remat = bool(_section(config, "training").get("use_gradient_checkpointing", False))
    return create_hjepa(
        model["encoder_type"],
        _section(config, "data").get("image_size"),
        model.get("embed_dim"),
        model.get("num_hierarchies", 3),
        fpn.get("use_fpn", False),
        fpn.get("feature_dim"),
        fpn.get("fusion_method", "add"),
        predictor_depth=predictor.get("depth", 6),
        predictor_num_heads=predictor.get("num_heads", 0),
        predictor_mlp_ratio=predictor.get("mlp_ratio", 4.0),
        encoder={"remat": remat},
        seed=seed,
    )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, Mapping) and not hasattr(found, "items"):
        raise ConfigError(f"config section {name!r} is {found!r}; a mapping is needed")
    return found


def load_hjepa(path: str | os.PathLike[str], cfg: HJEPAConfig | None = None) -> HJEPAModel:
    """A trained model.

    Args:
      path: `hjepa.npz` or a run directory that holds it, or the original's PyTorch weights, which
        need `cfg`.
      cfg: sizes; ignored for files of ours, which bring theirs.

    Raises:
      CheckpointError: the file is missing, broken or of another model.
    """
    file = find_file(path, HJEPA_FILE)
    if file.suffix != ".npz":
        if cfg is None:
            raise CheckpointError(
                f"{str(file)!r} does not say its sizes; give cfg=HJEPAConfig(...)"
            )
        return HJEPAModel(cfg, hjepa_from_torch(read_weights(file), cfg, source=repr(str(file))))
    tree, meta = read_kind(file, KIND)
    with complete(file, "model"):
        cfg = hjepa_config(meta["config"])
        float32 = jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
        wanted = jax.eval_shape(functools.partial(init_variables, HJEPA(cfg)), jax.random.key(0))
        shapes = jax.tree.map(lambda x: x.shape, wanted)
        if jax.tree.map(np.shape, float32) != shapes:
            raise ValueError("the arrays do not fit the config")
    return HJEPAModel(cfg, float32, meta)
