"""Features of a frozen network on disk: written once, read by every run of a sweep.

    FOLDER/KEY/train.arrayrecord        one record for each frame and array, half precision
    FOLDER/KEY/validation.arrayrecord
    FOLDER/KEY/store.json               shapes, number of frames, what they were made from

KEY is a digest of what the features depend on, so other data or another detector never share them.
A store appears under its name when it is complete. Until then it is FOLDER/.KEY-XXXXXXXX, whose
writer holds the lock of the file `lock` in it; what killed writers left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data.waiting import held, one_at_a_time
from jaxcomp.errors import DataError, NonFiniteError

VERSION = 1
SPLITS = ("train", "validation")
_RECORD = "store.json"
_TRAIN_SHAPES = "train_shapes"
_LOCK = "lock"
_PART = re.compile(r"\.[0-9a-f]{16}-[0-9a-f]{8}")
_ABANDONED = 86400.0  # seconds after which a part without a lock has no writer any more
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
        shapes = {
            split: {key: tuple(shape) for key, shape in record[place].items()}
            for split, place in zip(SPLITS, _shape_keys(record), strict=True)
        }
        counts = {split: int(record["frames"][split]) for split in SPLITS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{os.fspath(path / _RECORD)!r} is damaged; delete the folder, it is made again"
        ) from error
    training, held_out = (_arrays(path, split, counts[split], shapes[split]) for split in SPLITS)
    return training, held_out


def _shape_keys(record: Mapping[str, Any]) -> tuple[str, str]:
    """Where a record has the shapes of training rows and of held-out ones."""
    return (_TRAIN_SHAPES if _TRAIN_SHAPES in record else "shapes"), "shapes"


def sole_writer(
    folder: Path, origin: Mapping[str, Any], say: Callable[[], Any]
) -> contextlib.AbstractContextManager[None]:
    """Lets one process at a time make a store; see `waiting.one_at_a_time`."""
    return one_at_a_time(folder / f".{store_key(origin)}.{_LOCK}", say)


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
    try:
        _remove_abandoned(folder)
        with _part(folder, final.name) as part:
            written = {s: _write_split(part / f"{s}.arrayrecord", splits[s]) for s in SPLITS}
            counts = {split: frames for split, (frames, _) in written.items()}
            train, held_out = (written[split][1] for split in SPLITS)
            record = {"frames": counts, "shapes": held_out, "origin": dict(origin)}
            if train != held_out:  # crops to train on, whole photos held out
                record[_TRAIN_SHAPES] = train
            (part / _RECORD).write_text(json.dumps(record, indent=1))
            _publish(part, final)
    except OSError as error:
        raise DataError(f"features cannot be stored in {os.fspath(folder)!r}: {error}") from error
    found = open_store(folder, origin)
    if found is None:
        raise DataError(f"stored features {os.fspath(final)!r} were removed; start the run again")
    return found


@contextlib.contextmanager
def _part(folder: Path, key: str) -> Iterator[Path]:
    """A new folder for a store that is being written, locked; removed unless it was published."""
    part = folder / f".{key}-{uuid.uuid4().hex[:8]}"
    part.mkdir(parents=True)
    try:
        with (part / f"{_LOCK}.new").open("wb") as file:
            if held(file):
                # It gets its name when it is locked: a lock that is free has no writer.
                os.replace(part / f"{_LOCK}.new", part / _LOCK)
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(part: Path, final: Path) -> None:
    """Gives a complete part its name, unless another writer was faster: its content is the same."""
    for name in (_LOCK, f"{_LOCK}.new"):
        (part / name).unlink(missing_ok=True)
    with (final.parent / f".{_LOCK}").open("wb") as file:
        held(file, wait=True)
        if (final / _RECORD).exists():
            return
        if final.is_dir():  # no store: somebody deleted or copied half of one
            rest = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}")
            os.replace(final, rest)
            shutil.rmtree(rest, ignore_errors=True)
        try:
            os.replace(part, final)
        except OSError as error:  # where files have no locks, another writer may be this close
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _remove_abandoned(folder: Path) -> None:
    """Removes the parts whose writers were killed."""
    for part in folder.iterdir() if folder.is_dir() else ():
        if not (_PART.fullmatch(part.name) and part.is_dir()):
            continue
        with contextlib.suppress(OSError):  # it ends, or another process removes it
            if (part / _LOCK).exists():
                with (part / _LOCK).open("rb+") as file:
                    if held(file):
                        shutil.rmtree(part, ignore_errors=True)
            elif time.time() - _changed(part) > _ABANDONED:
                shutil.rmtree(part, ignore_errors=True)


def _changed(part: Path) -> float:
    """When a folder or a file in it was last written, in seconds of the epoch."""
    return max(path.stat().st_mtime for path in (part, *part.iterdir()))


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
