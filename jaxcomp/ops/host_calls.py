"""Loops of numba inside compiled programs on the CPU, through XLA's C interface for foreign calls.

A handler gets one number, the address of the call frame. In words of 64 bits (`c_api.h` of XLA's
foreign function interface, which comes with jaxlib):

    frame      1 first extension   9 argument buffers   14 result buffers
    extension  1 (low half) kind   3 where our version is wanted, in its word 3
    buffer     3 data   5 extents

That is the layout of `VERSION`, which XLA is told when a handler is registered, as it is told by
compiled ones: an interface that has become another refuses, and `register` raises.

Python is not entered: the loops run in XLA's own threads. Importing this module imports numba.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numba import carray, cfunc
from numba.core import cgutils, types
from numba.extending import intrinsic

from jaxcomp.ops.native import kept

ARGUMENTS, RESULTS = 9, 14  # words of the frame
VERSION = (0, 3)  # XLA_FFI_API_MAJOR and _MINOR of the header that this was written after
_METADATA = 1  # kind of the extension that asks for the version and nothing else
_PACKED = VERSION[0] | VERSION[1] << 32


@intrinsic
def _pointer(context, address):
    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


@kept()
def _words(address, count):
    return carray(_pointer(address), (count,), np.int64)


@kept()
def version_asked(frame):
    """Whether XLA wants nothing but our version of the interface; it has it then."""
    first = _words(frame, 2)[1]
    if first == 0:
        return False
    extension = _words(first, 4)
    if extension[1] & 0xFFFFFFFF != _METADATA:
        return False
    _words(extension[3], 4)[3] = _PACKED
    return True


@kept()
def _buffer(frame, group, i):
    """Address and extents of an array of three axes."""
    buffer = _words(_words(_words(frame, group + 1)[group], i + 1)[i], 6)
    extents = _words(buffer[5], 3)
    return buffer[3], (extents[0], extents[1], extents[2])


@kept()
def floats(frame, group, i):
    """float32 array of three axes, number i of `ARGUMENTS` or `RESULTS`."""
    data, shape = _buffer(frame, group, i)
    return carray(_pointer(data), shape, np.float32)


@kept()
def ints(frame, group, i):
    """The same of int32."""
    data, shape = _buffer(frame, group, i)
    return carray(_pointer(data), shape, np.int32)


def register(name: str, handler: Callable[[int], int]) -> Any:
    """Lets `jax.ffi.ffi_call` find a handler by name; returns what must be kept alive.

    Args:
      name: of the call.
      handler: a function of the frame's address that returns 0.

    Raises:
      Exception: this jaxlib has another interface; of which type is not documented.
    """
    # A backend that starts later would fail as a whole if it refused the handler.
    jax.local_devices(backend="cpu")
    compiled = kept(cfunc, types.int64(types.int64))(handler)
    capsule = jax.ffi.pycapsule(ctypes.c_void_p(compiled.address))
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return compiled
