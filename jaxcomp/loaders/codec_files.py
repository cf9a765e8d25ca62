"""`codec.npz`: read, written, and put together from those of single levels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import trees, weights_file
from jaxcomp.codecs.coding import Model
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.pyramid import JOINT, PyramidCoder, shared_models
from jaxcomp.codecs.tables import CdfTables
from jaxcomp.errors import CheckpointError
from jaxcomp.loaders.codecs import LevelCodec, PyramidCodec, codec_tree
from jaxcomp.loaders.files import CODEC_FILE, complete, find_file, read_kind
from jaxcomp.models.fpn import LEVELS


def load_codec(path: str | os.PathLike[str]) -> PyramidCodec:
    """A trained codec from `codec.npz`, a run directory of a codec's config, or a pattern.

    Returns:
      A `LevelCodec` for a codec of one level, else a `PyramidCodec`.

    Raises:
      CheckpointError: the file is missing, truncated or not a codec.
    """
    path = find_file(path, CODEC_FILE)
    tree, meta = read_kind(path, "codec")
    with complete(path, "codec"):
        treatment = meta.get("treatment", "level")
        if treatment == "level":
            _ = LEVELS[meta["level"]]
            return LevelCodec(*_read_model(path, tree, meta["model"]), meta)
        levels = tuple(meta["levels"])
        if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS):
            raise ValueError(f"levels {levels}")
        if treatment == "assembled":
            models = {
                name: Model(*_read_model(path, tree[name], meta["parts"][name]["model"]))
                for name in levels
            }
        elif treatment == "joint":
            models = {JOINT: Model(*_read_model(path, tree, meta["model"]))}
        elif treatment == "random":
            shared = _read_model(path, tree, meta["model"], len(levels))
            models = shared_models(*shared, levels)
        else:
            raise ValueError(f"treatment {treatment!r}")
    return PyramidCodec(PyramidCoder(levels, models), meta)


def _read_model(
    path: Path, tree: Mapping[str, Any], model: Mapping[str, Any], levels: int = 0
) -> tuple[FactorisedCodec, Any, CdfTables]:
    """Network, variables and tables; `levels` if the statistics are those of so many levels."""
    codec = FactorisedCodec(**model)
    arrays = dict(tree)
    tables = CdfTables.from_bytes(np.asarray(arrays.pop("tables"), np.uint8).tobytes())
    size = 2**codec.stages
    x = jax.ShapeDtypeStruct((1, size, size, codec.in_channels), jnp.float32)
    wanted: Any = jax.eval_shape(codec.init, jax.random.key(0), x)
    if levels:
        stats = dict(wanted["stats"])
        for name in ("mean", "scale"):
            stats[name] = jax.ShapeDtypeStruct((levels, *stats[name].shape), jnp.float32)
        wanted = {**wanted, "stats": stats}
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
    trees.check_same(trees.leaves_by_path(variables), trees.leaves_by_path(wanted), path)
    return codec, variables, tables


def save_codec(
    path: str | os.PathLike[str], tree: Mapping[str, Any], meta: Mapping[str, Any]
) -> PyramidCodec:
    """Writes `codec.npz` and reads it back.

    Args:
      path: the file.
      tree: `codec_tree` of the model, or {level: codec_tree} of an assembled pyramid.
      meta: its record: "model", and "level" or "treatment" and "levels".

    Returns:
      The codec that the file holds.
    """
    weights_file.export_npz(Path(path), dict(tree), {"kind": "codec", **meta})
    return load_codec(path)


def assemble_pyramid(parts: Sequence[LevelCodec], path: str | os.PathLike[str]) -> PyramidCodec:
    """One codec of several levels from the codecs of each, saved as one file.

    Args:
      parts: codecs of different levels, trained on one detector and one size of images.
      path: the `codec.npz` to write.

    Returns:
      The codec that the file holds: its streams have the tables of their levels, and its digest is
      that of the set.

    Raises:
      CheckpointError: two parts are of one level, or they do not belong together.
    """
    named = {part.level: part for part in parts}
    if not parts or len(named) < len(parts):
        raise CheckpointError(
            f"parts for {' '.join(part.level for part in parts) or 'no level'}: give one a level"
        )
    for name, what in (("detector_digest", "detectors"), ("input", "sizes of images")):
        if any(part.meta.get(name) != parts[0].meta.get(name) for part in parts):
            raise CheckpointError(f"the parts were trained on different {what}; give those of one")
    levels = [level for level in LEVELS if level in named]
    kept = ("detector", "detector_digest", "detector_levels", "input")
    shared = {k: parts[0].meta[k] for k in kept if k in parts[0].meta}
    tree = {name: codec_tree(named[name].variables, named[name].tables) for name in levels}
    records = {name: dict(named[name].meta) for name in levels}
    record = {"treatment": "assembled", "levels": levels, "parts": records, **shared}
    return save_codec(path, tree, record)
