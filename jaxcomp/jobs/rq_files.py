"""Codebooks of a lidar detector's features on disk: those of a stage, and the whole coder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp import weights_file
from jaxcomp.codecs.context_mixing import Mixture
from jaxcomp.codecs.rq_stream import RqModel
from jaxcomp.errors import CheckpointError, CorruptStreamError
from jaxcomp.jobs.feature_files import read_record
from jaxcomp.loaders import CODEC_FILE, find_file
from jaxcomp.loaders_lidar import LIDAR_DETECTOR_FILE, LidarDetector, load_lidar_detector

RQ_FILE = "rq.npz"
SHIPPED = "shipped"  # in place of a detector's path
KIND = "residual_codes"
Counts = Mapping[tuple[int, int], np.ndarray]  # by (codebook, its rows): choices of every row


def save_rows(path: Path, rows: np.ndarray, meta: Mapping[str, Any], encoder: Any = None) -> None:
    """Codebooks alone, float32 [K, N, C], and the head if it was trained."""
    tree = {"rows": np.asarray(rows, np.float32)}
    tree |= {} if encoder is None else {"encoder": encoder}
    weights_file.export_npz(path, tree, {"kind": KIND, **meta})


def save_model(
    path: Path,
    model: RqModel,
    meta: Mapping[str, Any],
    encoder: Any = None,
    counts: Counts | None = None,
) -> None:
    """Codebooks with the tables that code their indices; the head if it was trained.

    Args:
      path: the file.
      model: the coder.
      meta: the record.
      encoder: parameters of the head, or None.
      counts: how often the training sweeps chose each row, int [n] by (codebook, rows n): what a
        table without contexts is made of.
    """
    tree = {} if encoder is None else {"encoder": encoder}
    tree |= {"counts": _by_name(counts)} if counts else {}
    tree |= {
        "rows": model.rows,
        "classes": model.classes,
        "occupancy": _arrays(model.occupancy),
        "tables": {name: _arrays(m) for name, m in _by_name(model.tables).items()},
    }
    weights_file.export_npz(path, tree, {"kind": KIND, **meta, "model": f"{model.digest:016x}"})


def load_rq(
    path: str | os.PathLike[str],
) -> tuple[np.ndarray, RqModel | None, dict[str, Any]]:
    """Reads what `save_rows` or `save_model` wrote.

    Args:
      path: a file, a run directory that holds `rq.npz`, or a pattern.

    Returns:
      (codebooks [K, N, C], the coder or None for the file of a stage, the record; its "encoder"
      holds the parameters of a head that was trained with them, or None, its "counts" what
      `save_model` got, or None, its "file" the path).

    Raises:
      CheckpointError: it is missing, damaged, or holds something else.
    """
    file = find_file(path, RQ_FILE)
    tree, meta = weights_file.load_npz(file)
    if meta.get("kind") != KIND or getattr(tree.get("rows"), "ndim", 0) != 3:
        raise CheckpointError(
            f"{str(file)!r} holds {meta.get('kind') or 'something else'!r}, codebooks are needed, "
            "as configs/pointpillars_rq.py trains them"
        )
    rows = np.asarray(tree["rows"], np.float32)
    meta = {**meta, "encoder": tree.get("encoder"), "counts": None, "file": str(file)}
    if "tables" not in tree:
        return rows, None, meta
    try:
        tables = {key: _mixture(arrays) for key, arrays in _by_key(tree["tables"]).items()}
        model = RqModel(rows, np.asarray(tree["classes"]), _mixture(tree["occupancy"]), tables)
        if "counts" in tree:
            meta["counts"] = {
                (k, n): _whole(array, n) for (k, n), array in _by_key(tree["counts"]).items()
            }
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        CorruptStreamError,
    ) as error:
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


def detector_record(path: str, detector: Any, file: Path) -> dict[str, Any]:
    """What a file of codebooks says of its detector, so that it is found again from anywhere.

    Args:
      path: how it was given; empty for the one that ships.
      detector: the `LidarDetector`.
      file: where the record will be.

    Returns:
      {"detector": absolute path of its file, or "shipped"; "detector_relative": the same from the
      folder of `file`; "detector_digest"}.
    """
    record = {"detector": SHIPPED, "detector_digest": detector.digest}
    if path:
        try:
            own = find_file(path, LIDAR_DETECTOR_FILE).resolve()
        except CheckpointError:  # moved since it was read; a run does not end for that
            own = Path(path).resolve()
        record["detector"] = str(own)
        record["detector_relative"] = os.path.relpath(own, file.resolve().parent)
    return record


def recorded_detector(meta: Mapping[str, Any], where: str = "") -> LidarDetector:
    """The detector that a record of `load_rq` names: where it was, or as it lies from the record.

    Raises:
      CheckpointError: at none of the places there is one of the recorded digest.
    """
    wanted, tried = meta.get("detector_digest"), []
    for path in _places(meta):
        try:
            found = load_lidar_detector(path)
        except CheckpointError as error:
            tried.append(str(error))
            continue
        if wanted in (None, found.digest):
            return found
        tried.append(f"{path or 'the one that ships'!r} is another, {found.digest[:12]}")
    raise CheckpointError(
        f"{where or 'the file'!r} was trained with the detector {str(wanted)[:12]}, which is not "
        f"where it was ({'; '.join(tried)}); give it (detector=, --detector)"
    )


def _places(meta: Mapping[str, Any]) -> list[str | None]:
    """Where to look for the detector; the one that ships last, if its digest can tell it."""
    named, relative = meta.get("detector", SHIPPED), meta.get("detector_relative")
    if named == SHIPPED:
        return [None]
    places: list[str | None] = [named]
    if relative and meta.get("file"):
        places.append(str(Path(meta["file"]).parent / relative))
    return list(dict.fromkeys([*places, *([None] if meta.get("detector_digest") else [])]))


def _by_name(values: Mapping[tuple[int, int], Any]) -> dict[str, Any]:
    return {f"{k}_{n}": value for (k, n), value in values.items()}


def _by_key(values: Mapping[str, Any]) -> dict[tuple[int, int], Any]:
    return {
        (int(k), int(n)): v for (k, n), v in ((name.split("_"), v) for name, v in values.items())
    }


def _whole(counts: np.ndarray, size: int) -> np.ndarray:
    """Counts of as many rows; raises ValueError for others."""
    counts = np.asarray(counts)
    if counts.shape != (size,) or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"counts {counts.dtype} {counts.shape} for {size} rows")
    return counts


def _arrays(mixture: Mixture) -> dict[str, np.ndarray]:
    return {"cdf": mixture.cdf, "sizes": mixture.sizes, "weights": mixture.weights}


def _mixture(arrays: Mapping[str, np.ndarray]) -> Mixture:
    return Mixture(arrays["cdf"], arrays["sizes"], arrays["weights"])
