"""Weights as a `.pth` that `torch.load(path, weights_only=True)` opens, without PyTorch."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcomp.interop.files import little_endian, replacing
from jaxcomp.interop.torch_objects import STORAGES

ALIGNMENT = 64  # bytes; PyTorch's own, which lets it map the file into memory
_ROOT = "archive"
_KINDS = {np.dtype(v).newbyteorder("<"): k for k, v in STORAGES.items() if v != "bfloat16"}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def write_torch(path: str | os.PathLike[str], state_dict: Mapping[str, Any]) -> None:
    """Writes a state dictionary: atomically, the same bytes for the same arrays.

    Args:
      path: the file, by convention `.pth`.
      state_dict: name to array (float, integer, bool or complex), kept in this order.

    Raises:
      CheckpointError: the place cannot be written.
      ShapeError: a dtype that PyTorch's storages have not.
    """
    arrays = {name: little_endian(name, value, _KINDS) for name, value in state_dict.items()}
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", _pickle(arrays))
        _add(archive, "byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            _add(archive, f"data/{i}", array.reshape(-1).view(np.uint8).data)
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: Any) -> None:
    """An entry without a date, its data aligned by a field of padding in front of it."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    info.create_system = 3  # the same on every machine
    info.external_attr = 0o644 << 16
    start = archive.fp.tell() + 30 + len(info.filename) + 4  # type: ignore[union-attr]
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(info, data)


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Protocol 2, in the order in which PyTorch's own pickler would write it, without a memo."""
    items = [_text(name) + _tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())]
    return b"\x80\x02" + _ORDERED_DICT + b"(" + b"".join(items) + b"u."


def _tensor(key: str, array: np.ndarray) -> bytes:
    storage = (
        _text("storage")
        + f"ctorch\n{_KINDS[array.dtype]}\n".encode()
        + _text(key)
        + _text("cpu")
        + _integer(array.size)
    )
    strides = [n // array.itemsize for n in array.strides]
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + storage
        + b"tQ"
        + _integer(0)
        + _tuple(array.shape)
        + _tuple(strides)
        + b"\x89"  # requires no gradient
        + _ORDERED_DICT  # no hooks
        + b"tR"
    )


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + struct.pack("<qB", value, 0)


def _tuple(values: Any) -> bytes:
    return b"(" + b"".join(_integer(value) for value in values) + b"t"
