"""A lidar detector from a file, cut at its bird's-eye-view features.

sweep ── head ──► {"bev", "occupancy"} ── tail ──► boxes       tail(head(x)) == detect(x)
"""

from __future__ import annotations

import functools
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import trees, weights_file
from jaxcomp.data.lidar_files import read_sweep
from jaxcomp.errors import CheckpointError, ShapeError
from jaxcomp.interop.pointpillars_weights import abstract_variables, load_pointpillars
from jaxcomp.loaders import find_file
from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig
from jaxcomp.ops.compiling import inference_options
from jaxcomp.ops.voxelise import Pillars, pillars_of
from jaxcomp.tasks.lidar_input import Voxeliser
from jaxcomp.tasks.pointpillars import pointpillars_config

SHIPPED_LIDAR_DETECTOR = "pointpillars_scenes.npz"
LIDAR_DETECTOR_FILE = "pointpillars.npz"
KIND = "lidar_detector"
FOREIGN = (".pth", ".pt", ".safetensors")


def load_lidar_detector(path: str | os.PathLike[str] | None = None) -> LidarDetector:
    """A lidar detector from weights; without a path the small one that ships with the package.

    Args:
      path: `pointpillars.npz`, a run directory of `configs/pointpillars.py`, a pattern, or the
        weights of the usual PyTorch implementation (`epoch_160.pth`, `.safetensors`).

    Raises:
      CheckpointError: the file is missing, truncated or not a lidar detector.
    """
    if not path:
        with importlib.resources.as_file(
            importlib.resources.files("jaxcomp") / "weights" / SHIPPED_LIDAR_DETECTOR
        ) as shipped:
            return _read(Path(shipped))
    return _read(find_file(path, LIDAR_DETECTOR_FILE))


def _read(path: Path) -> LidarDetector:
    if path.suffix in FOREIGN:
        cfg = PointPillarsConfig()
        meta = {"kind": KIND, "classes": cfg.classes, "data": "kitti", "source": path.name}
        return LidarDetector(PointPillars(cfg), load_pointpillars(path, cfg), meta)
    tree, meta = weights_file.load_npz(path)
    if meta.get("kind") != KIND:
        raise CheckpointError(
            f"{str(path)!r} holds {meta.get('kind') or 'something else'!r}, a lidar detector is "
            "needed, as configs/pointpillars.py trains it"
        )
    try:
        cfg = pointpillars_config(meta["model"], meta["classes"])
        wanted = abstract_variables(cfg)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{str(path)!r} is not a complete detector ({error!r})") from error
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    trees.check_same(trees.leaves_by_path(variables), wanted, path)
    return LidarDetector(PointPillars(cfg), variables, meta)


class LidarDetector:
    """PointPillars cut at its canvas: `tail(head(sweep))` is `detect(sweep)`.

    Attributes:
      model: the network.
      cfg: its sizes.
      variables: its parameters and batch statistics.
      meta: what is stored beside the weights (classes, accuracy, config).
      classes: names of labels 0, 1, ...
      digest: SHA-256 of the variables.
      voxelise: makes batches of pillars from lists of sweeps, warns of overflow and counts it
        (`voxelise.counts()`).
    """

    def __init__(self, model: PointPillars, variables: Any, meta: Mapping[str, Any]):
        """Wraps a network; use `load_lidar_detector` to read one."""
        self.model, self.cfg, self.variables = model, model.cfg, variables
        self.meta = dict(meta)
        self.classes = tuple(model.cfg.classes)
        self.digest = str(meta.get("digest") or trees.tree_digest(variables))
        self.voxelise = Voxeliser(model.cfg)
        options = inference_options()
        jit = functools.partial(jax.jit, compiler_options=options)
        self._head = jit(self._apply_head)
        self._encode, self._tail, self._maps = (
            jit(functools.partial(model.apply, method=name))
            for name in ("encode", "detect", "tail")
        )

    def _apply_head(self, variables: Any, pillars: Pillars) -> dict[str, jax.Array]:
        bev: Any = self.model.apply(variables, pillars, method="head")
        return {"bev": bev, "occupancy": occupancy(pillars, self.cfg)}

    def pillars(self, sweeps: Any) -> Pillars:
        """Padded pillars with a batch axis.

        Args:
          sweeps: one sweep, a list of sweeps (each a path of a `.bin` or [N, 4] x, y, z, intensity;
            N may be 0), or pillars, which are handed on.

        Raises:
          DataError: a file cannot be read, or is truncated.
          ShapeError: something is no sweep.
        """
        if isinstance(sweeps, Pillars):
            return sweeps
        if isinstance(sweeps, str | os.PathLike) or getattr(sweeps, "ndim", 0) == 2:
            sweeps = [sweeps]
        if not isinstance(sweeps, Sequence):
            raise ShapeError(
                f"sweeps of type {type(sweeps).__name__}, shape {np.shape(sweeps)}; give [N, 4] "
                "points, the path of a .bin, or a list of them"
            )
        read = [read_sweep(s) if isinstance(s, str | os.PathLike) else s for s in sweeps]
        return pillars_of(self.voxelise(read))

    def head(self, sweeps: Any) -> dict[str, jax.Array]:
        """Features of sweeps.

        Args:
          sweeps: as for `pillars`.

        Returns:
          {"bev": float32 [B, rows (y), columns (x), C], zeros where no pillar is, "occupancy":
          bool [B, rows, columns], the cells that have a pillar}.
        """
        return self._head(self.variables, self.pillars(sweeps))

    def encode(self, sweeps: Any) -> tuple[jax.Array, Pillars]:
        """Vectors of the occupied pillars alone, float32 [B, P, C], and the pillars."""
        pillars = self.pillars(sweeps)
        return self._encode(self.variables, pillars), pillars

    def tail(self, features: Any) -> dict[str, np.ndarray]:
        """Detections of (decompressed) features; no points are needed.

        Args:
          features: what `head` gives, or the canvas alone, [B, rows, columns, C]. The occupancy
            takes no part. Values that are not finite give no detection.

        Returns:
          {"boxes" [B, D, 7] (see `ops.anchors3d`), "scores" [B, D], "labels" [B, D] from 0,
          "valid" [B, D]}, best first.

        Raises:
          ShapeError: the canvas is of another detector.
        """
        found = self._tail(self.variables, self._canvas(features))
        return {k: np.asarray(v) for k, v in found.items()}

    def maps(self, features: Any) -> dict[str, jax.Array]:
        """Raw maps of features, before decoding; see `models.pointpillars.Outputs`."""
        return self._maps(self.variables, self._canvas(features))

    def detect(self, sweeps: Any) -> dict[str, np.ndarray]:
        """Detections of sweeps, see `pillars` and `tail`; a sweep without points gives none."""
        return self.tail(self.head(sweeps))

    def _canvas(self, features: Any) -> jax.Array:
        canvas = features["bev"] if isinstance(features, Mapping) else features
        wanted = (*self.cfg.grid.shape, self.cfg.encoder_features)
        if np.ndim(canvas) != 4 or np.shape(canvas)[1:] != wanted:
            raise ShapeError(
                f"features have shape {np.shape(canvas)}; this detector needs [B, "
                f"{', '.join(map(str, wanted))}]"
            )
        return jnp.asarray(canvas, jnp.float32)


def occupancy(pillars: Pillars, cfg: PointPillarsConfig) -> jax.Array:
    """Cells with a pillar, bool [B, rows, columns]."""
    cells = jnp.asarray(pillars.cells)
    rows = jnp.arange(cells.shape[0])[:, None]
    empty = jnp.zeros((cells.shape[0], cfg.grid.cells), bool)
    return empty.at[rows, cells].set(True, mode="drop").reshape(-1, *cfg.grid.shape)
