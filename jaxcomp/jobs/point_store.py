"""Operating points on disk: one JSON and one `.npz` each, of one detector and one set of frames.

    FOLDER/comparison.json          detector, frames and classes: what every point belongs to
    FOLDER/points/NAME.npz          bytes and detections of each frame
    FOLDER/points/NAME.json         settings and means; written last, so its presence is the proof

A comparison that is interrupted finds its finished points again. Points of another detector or of
other frames are never put beside them: then the folder is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.errors import CheckpointError
from jaxcomp.evaluate.detection import Frame
from jaxcomp.jobs.job import write_arrays
from jaxcomp.workdir import atomic_write, json_text

POINTS, RECORD = "points", "comparison.json"
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What all points of a folder have in common.

    Attributes:
      detector: SHA-256 of its variables.
      frames: SHA-256 of pixels and labels of the frames, in order.
      count: number of frames.
      classes: names of labels 1, 2, ...
    """

    detector: str
    frames: str
    count: int
    classes: tuple[str, ...]


class PointStore:
    """The points of a comparison.

    Attributes:
      folder: where they are.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint):
        """Opens a folder, or makes it.

        Raises:
          CheckpointError: it holds points of another detector or of other frames, or it cannot be
            written.
        """
        self.folder = folder
        path, wanted = folder / RECORD, json.loads(json_text(dataclasses.asdict(fingerprint)))
        known = _read_json(path) if path.exists() else None
        if known is None:
            atomic_write(path, json_text(wanted))
            return
        different = [name for name in wanted if known.get(name) != wanted[name]]
        if different:
            words = "; ".join(
                f"{name} {_short(known.get(name))}, now {_short(wanted[name])}"
                for name in different
            )
            raise CheckpointError(
                f"{str(folder)!r} holds points of other data: {words}; give another --out, or the "
                "detector and frames it had"
            )

    def has(self, name: str) -> bool:
        """Whether a point is complete."""
        return all(self._path(name, ending).exists() for ending in (".json", ".npz"))

    def write(self, name: str, record: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Adds a complete point."""
        write_arrays(self._path(name, ".npz"), {k: np.asarray(v) for k, v in arrays.items()})
        atomic_write(self._path(name, ".json"), json_text(dict(record)))

    def read(self, name: str) -> tuple[dict[str, Any], Arrays]:
        """Record and arrays of a point.

        Raises:
          CheckpointError: a file is missing or damaged.
        """
        record = _read_json(self._path(name, ".json"))
        path = self._path(name, ".npz")
        try:
            # numpy closes a file of ours only: one that it opens stays open if it is damaged.
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                return record, {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise _damaged(path) from error

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / POINTS / f"{name}{ending}"


def file_name(*parts: Any) -> str:
    """A name for files out of words and numbers."""
    words = "_".join(f"{p:g}" if isinstance(p, float) else str(p) for p in parts if p is not None)
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", words).strip("_.")


def pack_frames(frames: Sequence[Frame]) -> Arrays:
    """Detections of all frames as arrays; the ground truth is not among them."""
    return {
        "counts": np.asarray([len(f.scores) for f in frames], np.int32),
        "boxes": _joined([f.boxes for f in frames], (0, 4), np.float32),
        "scores": _joined([f.scores for f in frames], (0,), np.float32),
        "labels": _joined([f.labels for f in frames], (0,), np.int32),
    }


def pack_truth(frames: Sequence[Frame]) -> Arrays:
    """Ground truth of all frames as arrays."""
    return {
        "truth_counts": np.asarray([len(f.truth_labels) for f in frames], np.int32),
        "truth_boxes": _joined([f.truth_boxes for f in frames], (0, 4), np.float32),
        "truth_labels": _joined([f.truth_labels for f in frames], (0,), np.int32),
        "ignore_counts": np.asarray([len(f.ignore_boxes) for f in frames], np.int32),
        "ignore_boxes": _joined([f.ignore_boxes for f in frames], (0, 4), np.float32),
    }


def unpack_frames(found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> list[Frame]:
    """The inverse of both.

    Raises:
      CheckpointError: they are not of the same frames.
    """
    if len(found["counts"]) != len(truth["truth_counts"]):
        raise CheckpointError(
            f"a point has {len(found['counts'])} frames, the ground truth "
            f"{len(truth['truth_counts'])}; remove the folder and compare again"
        )
    boxes, scores, labels = (
        _split(found[k], found["counts"]) for k in ("boxes", "scores", "labels")
    )
    truth_boxes, truth_labels = (
        _split(truth[k], truth["truth_counts"]) for k in ("truth_boxes", "truth_labels")
    )
    ignored = _split(truth["ignore_boxes"], truth["ignore_counts"])
    columns = zip(boxes, scores, labels, truth_boxes, truth_labels, ignored, strict=True)
    return [Frame(*row) for row in columns]


def _joined(parts: Sequence[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *(np.asarray(p, dtype) for p in parts)])


def _split(values: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(counts)[:-1])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{str(path)!r} is missing or damaged; remove it, then the command makes it again"
    )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
