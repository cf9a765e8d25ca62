"""Attentive probes and pictures of a trained JEPA: what needs its tokens, not their means."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.data.pictures import Pictures, fitted
from jaxcomp.evaluate.attentive_probe import attentive_probe
from jaxcomp.evaluate.feature_pictures import attention_picture, nearest, neighbour_picture
from jaxcomp.models.hjepa import HJEPA, HJEPAConfig
from jaxcomp.models.vit_attention import class_attention
from jaxcomp.types import PyTree
from jaxcomp.workdir import atomic_write

ATTENTION_FILE, NEIGHBOURS_FILE = "attention.png", "neighbours.png"
NEIGHBOURS = 6


def stacked(pictures: Pictures, config: Any, rows: np.ndarray) -> np.ndarray:
    """Pictures as a network sees them, uint8 [len(rows), H, W, 3]."""
    size = (config.data.height, config.data.width)
    return np.stack([fitted(pictures.load(int(row)), *size) for row in rows])


def level_tokens(
    cfg: HJEPAConfig, variables: PyTree, pictures: Pictures, config: Any, limit: int
) -> list[np.ndarray]:
    """Projected tokens of the first `limit` pictures, float16 [N, T_l, D] by level."""
    model, batch = HJEPA(cfg), config.training.batch_size
    run = jax.jit(functools.partial(model.apply, method=HJEPA.extract))
    count = min(limit, len(pictures))
    parts: list[list[np.ndarray]] = []
    for start in range(0, count, batch):
        rows = np.arange(start, min(start + batch, count))
        padded = np.resize(rows, batch)  # one shape, one program
        levels = run(variables, stacked(pictures, config, padded))
        parts.append([np.asarray(x.astype(jnp.float16))[: len(rows)] for x in levels])
    return [np.concatenate(level) for level in zip(*parts, strict=True)]


def attentive_scores(
    cfg: HJEPAConfig, variables: PyTree, sets: Mapping[str, Pictures], config: Any
) -> dict[str, float]:
    """Accuracy of an attentive probe of each level, {"level0": ...}; empty if it is switched off.

    The first `config.evaluation.attentive_rows` pictures of both splits take part.
    """
    limit = config.evaluation.attentive_rows
    if not limit:
        return {}
    tokens = {name: level_tokens(cfg, variables, p, config, limit) for name, p in sets.items()}
    labels = {name: p.labels[:limit] for name, p in sets.items()}
    scores = {}
    for level, train in enumerate(tokens["train"]):
        pair = (train, labels["train"]), (tokens["validation"][level], labels["validation"])
        scores[f"level{level}"] = attentive_probe(*pair)["accuracy"]
    return scores


def draw_attention(
    cfg: HJEPAConfig, variables: PyTree, pictures: Pictures, config: Any, path: Path
) -> None:
    """A picture of what the target encoder's class token looks at in held-out pictures."""
    count = min(config.evaluation.pictures, len(pictures))
    if not count:
        return
    images = stacked(pictures, config, np.arange(count))
    shares = jax.jit(functools.partial(class_attention, cfg.encoder))(variables["target"], images)
    atomic_write(path, attention_picture(images, np.asarray(shares)))


def draw_neighbours(
    features: Mapping[str, np.ndarray], sets: Mapping[str, Pictures], config: Any, path: Path
) -> None:
    """A picture of held-out pictures and the training pictures whose features are nearest.

    Args:
      features: {"train": [N, D], "validation": [M, D]}.
      sets: the pictures.
      config: of the run.
      path: the PNG.
    """
    held, train = sets["validation"], sets["train"]
    count = min(config.evaluation.pictures, len(features["validation"]))
    if not count:
        return
    rows = nearest(features["validation"][:count], features["train"], NEIGHBOURS)
    images = stacked(held, config, np.arange(count))
    found = [stacked(train, config, row) for row in rows]
    labels = [train.labels[row] for row in rows]
    atomic_write(path, neighbour_picture(images, found, held.labels[:count], labels))
