"""Features of a frozen network on disk: written once, read by every run of a sweep.

    FOLDER/KEY/train.arrayrecord        one record for each frame and array, half precision
    FOLDER/KEY/validation.arrayrecord
    FOLDER/KEY/store.json               shapes, number of frames, what they were made from

KEY is a digest of what the features depend on, so other data or another detector never share them.
A store appears under its name when it is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.errors import DataError, NonFiniteError

VERSION = 1
SPLITS = ("train", "validation")
_RECORD = "store.json"
_OPTIONS = "group_size:1,uncompressed"  # any record can be read alone
_HALF_MAX = float(np.finfo(np.float16).max)


def store_key(origin: Mapping[str, Any]) -> str:
    """16 hex digits for what features are made from (JSON values)."""
    text = json.dumps({"version": VERSION, **origin}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array [N, ...] float32 whose rows are read when asked for.

    It has what the batches need of an array: length, `shape`, `nbytes` (as float32), slices and
    `take`.

    Attributes:
      path: the file of records.
      index: of this array among those of a frame.
      count: arrays of a frame.
      shape: N and the shape of a row.
    """

    path: Path
    index: int
    count: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """N."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as float32."""
        return 4 * int(np.prod(self.shape))

    def __getitem__(self, rows: slice) -> np.ndarray:
        """The rows of a slice."""
        return self.take(np.arange(*rows.indices(len(self))))

    def take(
        self, rows: Any, axis: int = 0, out: np.ndarray | None = None, mode: str = "raise"
    ) -> np.ndarray:
        """[len(rows), ...] float32, as `np.take` along the first axis."""
        from array_record.python.array_record_module import ArrayRecordReader

        if axis != 0:
            raise ValueError("rows are taken along axis 0 only")
        wanted = [int(row) * self.count + self.index for row in np.asarray(rows).reshape(-1)]
        try:
            reader = ArrayRecordReader(os.fspath(self.path))
            try:
                records = reader.read(wanted)
            finally:
                reader.close()
            found = [np.frombuffer(r, np.float16).reshape(self.shape[1:]) for r in records]
        except (ValueError, IndexError, RuntimeError, OSError) as error:
            raise DataError(
                f"stored features {os.fspath(self.path)!r} are damaged ({error}); "
                "delete the folder, it is made again"
            ) from error
        whole = np.stack(found).astype(np.float32) if found else np.zeros((0, *self.shape[1:]))
        return whole.astype(np.float32, copy=False)


Stored = Mapping[str, StoredArray]


def open_store(folder: Path, origin: Mapping[str, Any]) -> tuple[Stored, Stored] | None:
    """(training, held out) of a store that is there, None if it is not.

    Raises:
      DataError: its record is damaged.
    """
    path = folder / store_key(origin)
    if not (path / _RECORD).exists():
        return None
    try:
        record = json.loads((path / _RECORD).read_text())
        shapes = {key: tuple(shape) for key, shape in record["shapes"].items()}
        counts = {split: int(record["frames"][split]) for split in SPLITS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{os.fspath(path / _RECORD)!r} is damaged; delete the folder, it is made again"
        ) from error
    training, held_out = (_arrays(path, split, counts[split], shapes) for split in SPLITS)
    return training, held_out


def _arrays(path: Path, split: str, frames: int, shapes: Mapping[str, tuple[int, ...]]) -> Stored:
    file = path / f"{split}.arrayrecord"
    return {
        key: StoredArray(file, i, len(shapes), (frames, *shape))
        for i, (key, shape) in enumerate(shapes.items())
    }


def store_bytes(frames: int, shapes: Mapping[str, Sequence[int]]) -> int:
    """Bytes that features of these shapes take on disk."""
    return 2 * frames * sum(int(np.prod(shape)) for shape in shapes.values())


def check_space(folder: Path, needed: int) -> None:
    """Raises `DataError` unless the disk has room for so many bytes and a tenth more."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.1 * needed:
        raise DataError(
            f"features would take {needed / 1e9:.2f} GB below {os.fspath(folder)!r}, where "
            f"{free / 1e9:.2f} GB are free; give another --config.data.feature_store=FOLDER, "
            "or '' to compute them anew"
        )


def write_store(
    folder: Path,
    origin: Mapping[str, Any],
    splits: Mapping[str, Iterable[Mapping[str, np.ndarray]]],
) -> tuple[Stored, Stored]:
    """Writes a store and opens it.

    Args:
      folder: of all stores.
      origin: see `store_key`; kept in the record.
      splits: {"train": batches, "validation": batches} of {key: [B, ...]}, no padding rows.

    Raises:
      NonFiniteError: a value is not finite, or too large for half precision.
      DataError: there are no frames, or the disk is full.
    """
    final = folder / store_key(origin)
    part = folder / f".{final.name}-{uuid.uuid4().hex[:8]}"
    part.mkdir(parents=True)
    try:
        counts, shapes = {}, {}
        for split in SPLITS:
            counts[split], shapes = _write_split(part / f"{split}.arrayrecord", splits[split])
        record = {"frames": counts, "shapes": shapes, "origin": dict(origin)}
        (part / _RECORD).write_text(json.dumps(record, indent=1))
        if not final.exists():  # else another run was faster; its content is the same
            os.replace(part, final)
    except OSError as error:
        raise DataError(f"features cannot be stored in {os.fspath(folder)!r}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    found = open_store(folder, origin)
    assert found is not None
    return found


def _write_split(
    path: Path, batches: Iterable[Mapping[str, np.ndarray]]
) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Writes the records of a split; returns the number of frames and the shapes of a row."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer, frames, shapes = ArrayRecordWriter(os.fspath(path), _OPTIONS), 0, {}
    try:
        for batch in batches:
            shapes = {key: x.shape[1:] for key, x in batch.items()}
            halves = [_half(key, x) for key, x in batch.items()]
            for rows in zip(*halves, strict=True):
                for row in rows:
                    writer.write(row.tobytes())
                frames += 1
    finally:
        writer.close()
    if not frames:
        raise DataError("there are no frames whose features could be stored")
    return frames, shapes


def _half(key: str, x: np.ndarray) -> np.ndarray:
    largest = float(np.abs(x).max(initial=0.0))
    if not largest <= _HALF_MAX:  # NaN too
        raise NonFiniteError(
            f"features {key!r} reach {largest:g}, which half precision cannot hold; "
            "set --config.data.feature_store=''"
        )
    return x.astype(np.float16)
