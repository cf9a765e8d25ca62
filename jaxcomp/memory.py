"""Memory that a process keeps between training steps."""

from __future__ import annotations

import ctypes
import os
import platform

# malloc.h of glibc: option and value. Threads share one heap, nothing is mapped on its own, and the
# heap's free end is not given back.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))


def keep_memory() -> bool:
    """Lets the C library keep what is freed; call it before threads start and arrays are made.

    A step on the CPU needs the same hundreds of megabytes as the one before. Given back to the
    system in between, every page is cleared again, which can take a third of the step. The price
    is that the process stays as large as it once was.

    Returns:
      Whether it does: with glibc, unless its variables are set in the environment already.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all([mallopt(option, value) for option, value in _SETTINGS])
