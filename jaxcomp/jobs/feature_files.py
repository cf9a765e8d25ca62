"""Feature maps in `.npy` and `.npz` files, with a record of where they come from.

A `.npz` of ours holds one float32 array [1, H, W, C] a level ("p2", …) and, as uint8 JSON text, the
record `__meta__`:

  codec     SHA-256 of the codec that decoded them
  missing   what could not be decoded, absent if nothing
  meta      the metadata of the stream: image size, scale, class names
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxcomp.errors import DataError, ShapeError
from jaxcomp.workdir import atomic_write

RECORD = "__meta__"
MAX_BYTES = 1 << 31  # of one file's arrays: MAX_VALUES of the decoder in float64
MAX_RECORD = 1 << 21  # of its record: twice the metadata that a stream may carry
_UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, RecursionError,
    NotImplementedError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, SyntaxError,
    struct.error, tokenize.TokenError,
)  # fmt: skip


def read_features(
    path: str | os.PathLike[str], levels: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The feature maps of one frame.

    Args:
      path: `.npy` with one map, or `.npz` with one or several.
      levels: the names to read, of which a single one may have any name in the file; None: all.

    Returns:
      ({name: [1, H, W, C] float32}, the record, {} if there is none). The name of the map of a
      `.npy` is "" where `levels` does not tell it.

    Raises:
      DataError: the file is missing, damaged, too large or of another format.
      ShapeError: a level is missing, or an array is not floating point [H, W, C] or [1, H, W, C].
    """
    arrays, record = _read_arrays(Path(path), levels)
    if levels is not None:
        arrays = _choose(path, arrays, levels)
    return {name: _one_frame(path, name, x) for name, x in arrays.items()}, record


def read_record(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record of an undamaged `.npz` of ours: every byte is checked; None for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
            return _parse_record(archive)
    except _UNREADABLE:
        return None


def write_features(
    path: str | os.PathLike[str], features: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Writes maps and record as one `.npz`, atomically.

    Raises:
      CheckpointError: the place cannot be written.
    """
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(record).encode(), np.uint8)
    arrays = {name: np.asarray(x) for name, x in features.items()}
    np.savez(buffer, **arrays, **{RECORD: text})  # type: ignore[arg-type]
    atomic_write(path, buffer.getvalue())


def _read_arrays(
    path: Path, levels: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as file:
                return {"": _read_array(file, path.stat().st_size)}, {}
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist()]
            names = [n for n in names if n != RECORD]
            wanted = [n for n in names if levels is None or n in levels or len(names) == 1]
            sizes = {n: archive.getinfo(f"{n}.npy").file_size for n in wanted}
            if sum(sizes.values()) > MAX_BYTES:
                raise ValueError(f"{sum(sizes.values())} bytes of arrays")
            arrays = dict.fromkeys(names, np.empty(0, np.float32))
            for name in wanted:
                with archive.open(f"{name}.npy") as member:
                    arrays[name] = _read_array(member, sizes[name])
            return arrays, _parse_record(archive)
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} does not exist; check the path") from error
    except _UNREADABLE as error:
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise DataError(f"{str(path)!r} cannot be read as features: {reason}") from error


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """One array of numpy's format, refused before it is allocated if its file is too short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers of Python 2 are read with one
        shape, dtype = _read_header(file)
        file.seek(0)
        _check_size(shape, dtype, size)
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    old = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _check_size(shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > min(size, MAX_BYTES):
        raise ValueError(f"truncated: {size} bytes do not hold an array {shape} of {dtype}")


def _parse_record(archive: zipfile.ZipFile) -> dict[str, Any]:
    if f"{RECORD}.npy" not in archive.namelist():
        return {}
    with archive.open(f"{RECORD}.npy") as member:
        size = archive.getinfo(f"{RECORD}.npy").file_size
        text = _read_array(member, min(size, MAX_RECORD))
    return dict(json.loads(text.tobytes()))


def _choose(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], levels: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays of the levels; a single array stands for a single level, unless it is another."""
    if all(level in arrays for level in levels):
        return {level: arrays[level] for level in levels}
    (name, *others) = arrays or [None]
    if len(levels) == 1 and name is not None and not others and not _is_level(name):
        return {levels[0]: arrays[name]}
    held = [repr(n) for n in arrays]
    shown = ", ".join(held[:6]) + (f" and {len(held) - 6} more" if len(held) > 6 else "")
    raise ShapeError(
        f"{str(path)!r} holds {shown or 'nothing'}; {', '.join(map(repr, levels))} needed"
    )


def _is_level(name: str) -> bool:
    """Whether a name means a level of a pyramid, as "p3" does, or of tokens, as "t0"."""
    return len(name) > 1 and name[0] in "pt" and name[1:].isdigit()


def _one_frame(path: str | os.PathLike[str], name: str, x: np.ndarray) -> np.ndarray:
    label = f"{str(path)!r}: array {name!r}" if name else repr(str(path))
    if x.dtype.kind != "f":
        raise ShapeError(f"{label} has dtype {x.dtype}; features are floating point, cast them")
    if x.ndim == 3:
        x = x[None]
    if x.ndim != 4 or len(x) != 1 or x.size == 0:
        raise ShapeError(f"{label} has shape {x.shape}; one frame [H, W, C] or [1, H, W, C] needed")
    with np.errstate(over="ignore"):  # infinity is refused by the codec
        return np.ascontiguousarray(x, np.float32)
