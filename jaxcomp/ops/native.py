"""Loops compiled by numba for the host, on first use and kept on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


@functools.cache
def compiled(loop: Callable, signature: str) -> Callable:
    """`compile_loop`, once for each loop and signature."""
    return compile_loop(loop, signature)


def compile_loop(loop: Callable, signature: Any) -> Callable:
    """`loop` as machine code for one signature, as "void(f8[:, ::1], i8[::1])" or numba's types.

    Division follows IEEE 754 (by zero: infinity or NaN), indices are not checked. The machine code
    is kept beside the source where that is possible.
    """
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(signature, cache=True, **options)(loop)
    except Exception:  # no directory to keep it in, a read-only one, or a damaged file in it
        return numba.njit(signature, **options)(loop)


def kept(compiler: Callable | None = None, *arguments: Any, **options: Any) -> Callable:
    """A decorator: `numba.njit`, or another compiler of numba's, its result kept as above.

    Args:
      compiler: default `numba.njit`.
      *arguments: of it, such as a signature.
      **options: of it.
    """
    import numba

    make = compiler or numba.njit
    options = {"error_model": "numpy", **options}

    def decorate(function: Callable) -> Any:
        try:
            return make(*arguments, cache=True, **options)(function)
        except Exception:  # as in `compile_loop`
            return make(*arguments, **options)(function)

    return decorate
