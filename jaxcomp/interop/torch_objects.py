"""What weights are made of in PyTorch's pickles: the names that may occur, and what they become.

Nothing is built but descriptions: a tensor is where in which storage it lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

# PyTorch's name of a dtype -> numpy's. bfloat16 is held as its bits and widened when it is read.
DTYPES = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "bfloat16",
    "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?",
    "uint16": "u2", "uint32": "u4", "uint64": "u8", "complex64": "c8", "complex128": "c16",
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
    "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16",
}  # fmt: skip


class RefusedPickle(ValueError):
    """The pickle is damaged, or asks for something that weights do not need."""


def itemsize(dtype: str) -> int:
    """Bytes of one element of a dtype of `DTYPES`."""
    return 2 if dtype == "bfloat16" else 1 if dtype == "?" else int(dtype[1:])


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that the file refers to, as in "torch.FloatStorage"."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of elements in the file.

    Attributes:
      key: its name in the file.
      dtype: of its elements, a value of `DTYPES`.
      length: of the whole run, in elements.
      start, count: the part that this storage is (all of it, unless an old file has views).
    """

    key: str
    dtype: str
    length: int
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `offset` and `strides` are in elements of `dtype`, within bounds."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def storage_of(words: Any) -> Storage:
    """A storage from its id: ("storage", type, key, device, elements[, view])."""
    if not isinstance(words, tuple) or len(words) not in (5, 6) or words[0] != "storage":
        raise RefusedPickle("it has a persistent id that is not a storage")
    _, kind, key, _, length, *view = words
    dtype = _STORAGE_DTYPES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(key, str):
        raise RefusedPickle("it has a storage of an unknown kind")
    start, count = 0, _count(length)
    if view and view[0] is not None:
        if not isinstance(view[0], tuple) or len(view[0]) != 3:
            raise RefusedPickle("it has a storage of an unknown kind")
        start, count = _count(view[0][1]), _count(view[0][2])
        if start + count > length:
            raise RefusedPickle(f"storage {key!r} is a view outside of another")
    return Storage(key, dtype, length, start, count)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise RefusedPickle("it has a size that is not a count")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > 64:
        raise RefusedPickle("it has a shape that is not a list of counts")
    return tuple(_count(value) for value in values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str = "") -> Tensor:
    if not isinstance(storage, Storage):
        raise RefusedPickle("it has a tensor without a storage")
    shape, strides, offset = _counts(shape), _counts(strides), _count(offset)
    dtype = dtype or storage.dtype
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=False))
    inside = (last + 1) * itemsize(dtype) <= storage.count * itemsize(storage.dtype)
    if len(shape) != len(strides) or not (inside or 0 in shape):
        raise RefusedPickle(
            f"a tensor of shape {list(shape)} lies outside of its storage {storage.key!r}"
        )
    return Tensor(storage, dtype, offset, shape, strides)


def _tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, meta: Any = None
) -> Tensor:
    del grad, hooks
    if meta and (not isinstance(meta, Mapping) or any(meta.values())):
        raise RefusedPickle("it has a lazily conjugated or negated tensor; resolve it and save")
    return _tensor(storage, offset, shape, strides)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any,
    meta: Any = None,
) -> Tensor:  # fmt: skip
    _tensor_v2(storage, 0, (0,), (1,), grad, hooks, meta)
    return _tensor(storage, offset, shape, strides, DTYPES[dtype.name.removeprefix("torch.")])


def _parameter(data: Any, grad: Any, hooks: Any) -> Tensor:
    del grad, hooks
    if not isinstance(data, Tensor):
        raise RefusedPickle("it has a parameter without a tensor")
    return data


def _empty_dict(*items: Any) -> dict:
    if items not in ((), ([],)):
        raise TypeError("only empty dictionaries are built by a call")
    return {}


def _size(values: Any) -> tuple[int, ...]:
    return _counts(values)


def _device(kind: Any, index: int = 0) -> str:
    return f"{kind if isinstance(kind, str) else 'unknown'}:{_count(index)}"


# Name in the file -> what is done instead of calling it.
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _empty_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
}
_STORAGE_DTYPES = {
    **{f"{module}.{k}": v for module in ("torch", "torch.cuda") for k, v in STORAGES.items()},
    **{f"{module}.UntypedStorage": "u1" for module in ("torch", "torch.storage")},
}
GLOBALS = frozenset(CALLS) | _STORAGE_DTYPES.keys() | {f"torch.{name}" for name in DTYPES}
