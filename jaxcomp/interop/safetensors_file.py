"""The safetensors format: a length, a JSON header of names, and the tensors' bytes.

Read and written here in full: it is a page of code, and a package for it would add a compiled
dependency. The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from jaxcomp.interop.files import little_endian, replacing

MAX_HEADER = 10**8  # bytes, the format's own limit
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_NAMES = {np.dtype(v): k for k, v in _DTYPES.items() if k != "BF16"}


class BadSafetensors(ValueError):
    """The file is not of this format, or damaged."""


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that starts with `head` (9 bytes or more) looks like one."""
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8


def read_safetensors(stream: BinaryIO) -> dict[str, np.ndarray]:
    """Name to array in the header's order; bfloat16 becomes float32, exactly.

    Raises:
      BadSafetensors: the file is damaged or holds a dtype that numpy has not.
    """
    size = os.fstat(stream.fileno()).st_size
    length = struct.unpack("<Q", stream.read(8))[0]
    if length > min(MAX_HEADER, size - 8):
        raise BadSafetensors("its header is longer than the file")
    header = _header(stream.read(length))
    _check_ranges(header, size - 8 - length)
    return {name: _read(stream, 8 + length, entry) for name, entry in header.items()}


def _header(text: bytes) -> dict[str, dict[str, Any]]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadSafetensors("its header is damaged") from error
    if isinstance(header, dict):
        header.pop("__metadata__", None)
    if not isinstance(header, dict) or not all(_is_entry(entry) for entry in header.values()):
        raise BadSafetensors("its header is damaged")
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise BadSafetensors(f"{name[:80]!r} has dtype {entry['dtype'][:20]!r}, not known here")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise BadSafetensors("its header has a name twice")
    return out


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    numbers = [entry["shape"], entry["data_offsets"]]
    return (
        isinstance(entry["dtype"], str)
        and all(isinstance(values, list) and len(values) <= 64 for values in numbers)
        and all(type(n) is int and 0 <= n < 2**63 for values in numbers for n in values)
        and len(entry["data_offsets"]) == 2
    )


def _check_ranges(header: Mapping[str, dict[str, Any]], size: int) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        wanted = math.prod(entry["shape"]) * np.dtype(_DTYPES[entry["dtype"]]).itemsize
        if start != at or end - start != wanted:
            raise BadSafetensors(f"the place or size of {name[:80]!r} is wrong")
        at = end
    if at != size:
        raise BadSafetensors(f"it has {size} bytes of tensors where its header announces {at}")


def _read(stream: BinaryIO, base: int, entry: Mapping[str, Any]) -> np.ndarray:
    stream.seek(base + entry["data_offsets"][0])
    array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
    flat = array.reshape(-1).view(np.uint8)
    if stream.readinto(flat) != array.nbytes:  # type: ignore[attr-defined]
        raise BadSafetensors("it ends early")
    if entry["dtype"] == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def write_safetensors(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays as `.safetensors`: atomically, the same bytes for the same arrays.

    Args:
      path: the file.
      state_dict: name to array; the widest dtypes come first, so that all of them are aligned.
      metadata: text to text; {"format": "pt"}, which loaders for PyTorch ask for, is added.

    Raises:
      CheckpointError: the place cannot be written.
      ShapeError: a dtype that the format has not.
    """
    arrays = {name: little_endian(name, value, _NAMES) for name, value in state_dict.items()}
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name in names:
        array = arrays[name]
        end = at + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)
