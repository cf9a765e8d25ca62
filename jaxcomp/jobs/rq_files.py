"""Codebooks of a lidar detector's features on disk: those of a stage, and the whole coder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp import checkpoint
from jaxcomp.codecs.context_mixing import Mixture
from jaxcomp.codecs.rq_stream import RqModel
from jaxcomp.errors import CheckpointError, CorruptStreamError
from jaxcomp.jobs.feature_files import read_record
from jaxcomp.loaders import CODEC_FILE, find_file

RQ_FILE = "rq.npz"
KIND = "residual_codes"


def save_rows(path: Path, rows: np.ndarray, meta: Mapping[str, Any], encoder: Any = None) -> None:
    """Codebooks alone, float32 [K, N, C], and the head if it was trained."""
    tree = {"rows": np.asarray(rows, np.float32)}
    tree |= {} if encoder is None else {"encoder": encoder}
    checkpoint.export_npz(path, tree, {"kind": KIND, **meta})


def save_model(path: Path, model: RqModel, meta: Mapping[str, Any], encoder: Any = None) -> None:
    """Codebooks with the tables that code their indices; the head if it was trained."""
    tree = {} if encoder is None else {"encoder": encoder}
    tree |= {
        "rows": model.rows,
        "classes": model.classes,
        "occupancy": _arrays(model.occupancy),
        "tables": {f"{k}_{n}": _arrays(m) for (k, n), m in model.tables.items()},
    }
    checkpoint.export_npz(path, tree, {"kind": KIND, **meta, "model": f"{model.digest:016x}"})


def load_rq(
    path: str | os.PathLike[str],
) -> tuple[np.ndarray, RqModel | None, dict[str, Any]]:
    """Reads what `save_rows` or `save_model` wrote.

    Args:
      path: a file, a run directory that holds `rq.npz`, or a pattern.

    Returns:
      (codebooks [K, N, C], the coder or None for the file of a stage, the record; its "encoder"
      holds the parameters of a head that was trained with them, or None).

    Raises:
      CheckpointError: it is missing, damaged, or holds something else.
    """
    file = find_file(path, RQ_FILE)
    tree, meta = checkpoint.load_npz(file)
    if meta.get("kind") != KIND or getattr(tree.get("rows"), "ndim", 0) != 3:
        raise CheckpointError(
            f"{str(file)!r} holds {meta.get('kind') or 'something else'!r}, codebooks are needed, "
            "as configs/pointpillars_rq.py trains them"
        )
    rows, meta = np.asarray(tree["rows"], np.float32), {**meta, "encoder": tree.get("encoder")}
    if "tables" not in tree:
        return rows, None, meta
    try:
        tables = {
            (int(k), int(n)): _mixture(arrays)
            for (k, n), arrays in ((name.split("_"), v) for name, v in tree["tables"].items())
        }
        model = RqModel(rows, np.asarray(tree["classes"]), _mixture(tree["occupancy"]), tables)
    except (KeyError, ValueError, TypeError, IndexError, CorruptStreamError) as error:
        raise CheckpointError(f"{str(file)!r} holds tables that do not fit ({error})") from error
    return rows, model, meta


def residual_file(path: str | os.PathLike[str]) -> Path | None:
    """The file of residual codes that a path of weights means, or None if it means another kind."""
    folder = Path(path)
    if folder.is_dir() and not (folder / RQ_FILE).exists():
        return None
    if folder.is_dir() and (folder / CODEC_FILE).exists():
        return None
    try:
        file = find_file(path, RQ_FILE)
        record = read_record(file) or {}
        return file if dict(record.get("meta") or {}).get("kind") == KIND else None
    except (CheckpointError, TypeError, ValueError):
        return None


def _arrays(mixture: Mixture) -> dict[str, np.ndarray]:
    return {"cdf": mixture.cdf, "sizes": mixture.sizes, "weights": mixture.weights}


def _mixture(arrays: Mapping[str, np.ndarray]) -> Mixture:
    return Mixture(arrays["cdf"], arrays["sizes"], arrays["weights"])
