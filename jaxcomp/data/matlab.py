"""MATLAB's level 5 files, as far as WIDERFace's ground truth needs them: cells, numbers, text.

The format: "MAT-File Format", The MathWorks, chapter 1. A file is a header of 128 bytes and
elements of a tag (type, bytes) and data; a variable is an element of elements.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.errors import DataError

_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
    16: "u1", 17: "u2", 18: "u4",
}  # fmt: skip
_MATRIX, _COMPRESSED, _CELL, _CHAR = 14, 15, 1, 4
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_HEADER = 128
_LIMIT = 2**30  # bytes that one variable may take; larger ones are not of this kind


def read_matlab(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The variables of a file.

    Returns:
      Name to value: numbers as arrays of their own type and two or more axes, text as str, cells as
      flat lists in MATLAB's order (column by column).

    Raises:
      DataError: the file is missing, damaged, or holds something else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if len(content) < _HEADER or content[124:128] != b"\x00\x01IM":
        raise DataError(f"{path}: not a little-endian MATLAB file of level 5; save it with -v7")
    try:
        return dict(_variables(content[_HEADER:]))
    except (ValueError, struct.error, zlib.error, KeyError, IndexError, RecursionError) as error:
        raise DataError(f"{path}: truncated or damaged ({error}); download it again") from error


def _variables(content: bytes):
    place = 0
    while place < len(content):
        kind, data, place = _element(content, place)
        if kind == _COMPRESSED:
            inflate = zlib.decompressobj()
            plain = inflate.decompress(data, _LIMIT)
            if inflate.unconsumed_tail or not inflate.eof:
                raise ValueError("a compressed variable does not end")
            kind, data, _ = _element(plain, 0)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} is no variable")
        yield _matrix(data)


def _element(content: bytes, place: int) -> tuple[int, bytes, int]:
    """(type, data, where the next begins)."""
    kind, size = struct.unpack_from("<II", content, place)
    if kind >> 16:  # small: type, size and up to four bytes in eight
        kind, size = kind & 0xFFFF, kind >> 16
        start, after = place + 4, place + 8
    else:
        start = place + 8
        after = start + size + (0 if kind == _COMPRESSED else -size % 8)
    if start + size > len(content) or (start == place + 4 and size > 4):
        raise ValueError("the data end before an element does")
    return kind, content[start : start + size], after


def _matrix(data: bytes) -> tuple[str, Any]:
    """(name, value) of a matrix element."""
    if not data:
        return "", np.zeros((0, 0))
    _, flags, place = _element(data, 0)
    kind = flags[0]
    _, sizes, place = _element(data, place)
    shape = tuple(np.frombuffer(sizes, "<i4").tolist())
    _, name, place = _element(data, place)
    if kind == _CELL:
        count = int(np.prod(shape))
        if count * 8 > len(data):
            raise ValueError(f"{count} cells in {len(data)} bytes")
        cells = []
        for _ in range(count):
            _, inner, place = _element(data, place)
            cells.append(_matrix(inner)[1])
        return name.decode("ascii"), cells
    stored, values, place = _element(data, place)
    array = np.frombuffer(values, "<" + _TYPES[stored])
    if kind == _CHAR:
        return name.decode("ascii"), "".join(map(chr, array.tolist()))
    return name.decode("ascii"), array.astype(_CLASSES[kind]).reshape(shape, order="F")
