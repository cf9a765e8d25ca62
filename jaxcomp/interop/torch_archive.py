"""PyTorch's two file formats: the zip of today, and the run of pickles before version 1.6.

Both are read in two steps: the pickle gives descriptions of tensors, then only the storages of the
wanted tensors are read, one at a time and straight into the memory that the arrays keep.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from jaxcomp.interop.torch_objects import RefusedPickle, Storage, Tensor, itemsize
from jaxcomp.interop.torch_pickle import MAX_BYTES, load

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_CHUNK = 2**20

Fetch = Callable[[Storage], np.ndarray]  # the bytes of a whole storage, [n] uint8


@contextlib.contextmanager
def open_zip(stream: BinaryIO) -> Iterator[tuple[Any, Fetch, str]]:
    """What a zip file of `torch.save` holds.

    Yields:
      (the value of its pickle, a function that reads a storage, byte order "<" or ">").

    Raises:
      RefusedPickle: it is not such a file, damaged, or holds more than weights.
      zipfile.BadZipFile: the zip is damaged.
    """
    with zipfile.ZipFile(stream) as archive:
        root = _root(archive, os.fstat(stream.fileno()).st_size)
        if archive.getinfo(f"{root}/data.pkl").file_size > MAX_BYTES:
            raise RefusedPickle(f"its pickle is larger than {MAX_BYTES} bytes")
        tree = load(io.BytesIO(archive.read(f"{root}/data.pkl")))
        names = set(archive.namelist())
        byteorder = f"{root}/byteorder"
        order = archive.read(byteorder).strip() if byteorder in names else b"little"
        if order not in (b"little", b"big"):
            raise RefusedPickle("its byte order is neither little nor big")

        def fetch(storage: Storage) -> np.ndarray:
            name = f"{root}/data/{storage.key}"
            if name not in names:
                raise RefusedPickle(f"its storage {storage.key!r} is missing")
            info = archive.getinfo(name)
            wanted = _bytes(storage)
            if info.file_size < wanted:
                raise RefusedPickle(f"its storage {storage.key!r} is shorter than announced")
            with archive.open(info) as member:
                # To the very end, which is where zipfile compares the checksum.
                return _fill(member, info.file_size)[:wanted]

        yield tree, fetch, ">" if order == b"big" else "<"


def _root(archive: zipfile.ZipFile, size: int) -> str:
    """The folder in the archive, after checks that keep every later read within the file."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedPickle("it is a zip file, but not one of torch.save (no data.pkl)")
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/constants.pkl" in names:
        raise RefusedPickle("it is a TorchScript program, not weights")
    if len(set(names)) != len(names):
        raise RefusedPickle("its zip holds two files of one name")
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise RefusedPickle(f"its zip holds the path {name[:80]!r}")
    if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1 for i in infos):
        raise RefusedPickle("its zip is compressed or encrypted, which torch.save never does")
    if sum(info.file_size for info in infos) > size:
        raise RefusedPickle("its zip announces more bytes than the file has")
    return root


def _fill(stream: Any, count: int) -> np.ndarray:
    """`count` bytes of a stream, without a second copy of them."""
    out = np.empty(count, np.uint8)
    view, done = out.data, 0
    while done < count:
        data = stream.read(min(_CHUNK, count - done))
        if not data:
            raise RefusedPickle("it ends early")
        view[done : done + len(data)] = data
        done += len(data)
    stream.read(1)
    return out


@contextlib.contextmanager
def open_legacy(stream: BinaryIO) -> Iterator[tuple[Any, Fetch, str]]:
    """What a file of `torch.save` before version 1.6 holds; see `open_zip`.

    It is pickles of a magic number, the protocol, the machine, the object and the storages' keys,
    then for every key its length (int64) and its elements, little-endian.
    """
    for wanted in (MAGIC, PROTOCOL):
        found = load(stream)
        if found != wanted or not isinstance(found, int):
            raise RefusedPickle("it is a pickle, but not one of torch.save")
    load(stream)
    tree, keys = load(stream), load(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise RefusedPickle("its list of storages is damaged")
    sizes: dict[str, int] = {}
    for storage in storages(tree):
        sizes[storage.key] = max(_bytes(storage), sizes.get(storage.key, 0))
    places = _places(stream, keys, sizes)

    def fetch(storage: Storage) -> np.ndarray:
        if storage.key not in places:
            raise RefusedPickle(f"its storage {storage.key!r} is missing")
        stream.seek(places[storage.key])
        return _fill(stream, _bytes(storage))

    yield tree, fetch, "<"


def _places(stream: BinaryIO, keys: list[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Where each storage's elements begin."""
    end = os.fstat(stream.fileno()).st_size
    places = {}
    for key in keys:
        header = stream.read(8)
        if key not in sizes:
            raise RefusedPickle(f"its storage {key[:40]!r} belongs to no tensor")
        places[key] = stream.tell()
        if len(header) < 8 or places[key] + sizes[key] > end:
            raise RefusedPickle("it ends early")
        count = struct.unpack("<q", header)[0]
        if (count and sizes[key] % count) or bool(count) != bool(sizes[key]) or count < 0:
            raise RefusedPickle(f"its storage {key!r} has another length than announced")
        stream.seek(places[key] + sizes[key])
    return places


def _bytes(storage: Storage) -> int:
    return storage.length * itemsize(storage.dtype)


def storages(tree: Any) -> Iterator[Storage]:
    """The storages of all tensors in a tree, in no order; cycles and depth do no harm."""
    todo, seen = [tree], set()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            yield value.storage
        elif isinstance(value, Storage):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)


def read_tensors(
    tensors: Mapping[str, Tensor], fetch: Fetch, order: str, size: int
) -> dict[str, np.ndarray]:
    """The arrays of tensors, each with its own memory, contiguous, in native byte order.

    Args:
      tensors: name to description.
      fetch: reads a storage.
      order: byte order of the file.
      size: of the file; expanded tensors may not grow to much more than that.

    Raises:
      RefusedPickle: a storage is missing or short, or the tensors are far larger than the file.
    """
    total = sum(math.prod(t.shape) * max(itemsize(t.dtype), 4) for t in tensors.values())
    if total > 8 * size + 2**28:
        raise RefusedPickle(f"its {size} bytes announce tensors of {total} bytes")
    users: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        users.setdefault(tensor.storage.key, []).append(name)
    out: dict[str, np.ndarray] = {}
    for names in users.values():
        data = fetch(max((tensors[name].storage for name in names), key=_bytes))
        for name in names:
            array = _array(data, tensors[name], order)
            out[name] = array if len(names) == 1 or array.base is None else array.copy()
    return {name: out[name] for name in tensors}


def _array(data: np.ndarray, tensor: Tensor, order: str) -> np.ndarray:
    bits = tensor.dtype == "bfloat16"
    dtype = np.dtype("u2" if bits else tensor.dtype).newbyteorder(order)  # type: ignore[arg-type]
    start = tensor.storage.start * itemsize(tensor.storage.dtype) + tensor.offset * dtype.itemsize
    strides = tuple(s * dtype.itemsize for s in tensor.strides)
    if 0 in tensor.shape:
        start, strides = 0, (0,) * len(tensor.shape)
        data = np.zeros(dtype.itemsize, np.uint8)
    view = np.ndarray(tensor.shape, dtype, data, start, strides)
    whole = view.nbytes == data.nbytes and view.flags.c_contiguous
    array = view if whole else np.array(view, order="C")
    if bits:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(dtype.newbyteorder("="), copy=False)
