"""Weighted sums of rows that are read from a table, fast on every backend.

    out[b, r] = sum_k  weights[b, r, k] table[b, index[b, r, k]]

XLA's CPU backend draws what makes the addresses and weights into the reading, so that they are
computed anew for each channel, and keeps all that was read for the gradient. There two loops of
numba do it: a deformable convolution takes half the time, with its gradients a quarter.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# As `gather_loops` registers them, which is imported where they are needed.
_AT_ONCE = 9
FORWARD, BACKWARD = "jaxcomp_gather_sum", "jaxcomp_gather_sum_gradient"


def gather_sum(table: Array, index: Array, weights: Array, *, native: bool | None = None) -> Array:
    """Reads and adds rows.

    Args:
      table: [B, P, M].
      index: int32 [B, R, K], 0 to P - 1 everywhere; others read some row of the table.
      weights: [B, R, K] of the table's dtype.
      native: XLA's own form (True), the loops (False), or whichever is faster (None): the loops on
        a CPU for float32. Several devices could not share what is behind a foreign call.

    Returns:
      [B, R, M].
    """
    if native is None:
        alone = jax.default_backend() == "cpu" and jax.device_count() == 1
        native = not (alone and table.dtype == jnp.float32 and registered())
    return _plain(table, index, weights) if native else _looped(table, index, weights)


def _plain(table: Array, index: Array, weights: Array) -> Array:
    """In XLA's form, some reads at a time: all at once take three times as long on a CPU."""
    batch, places, channels = table.shape
    start = (np.arange(batch, dtype=np.int32) * places).reshape(-1, 1, 1)
    rows, total = jnp.asarray(table).reshape(-1, channels), jnp.zeros((), table.dtype)
    size = math.gcd(index.shape[2], _AT_ONCE)
    for first in range(0, index.shape[2], size):
        some = slice(first, first + size)
        # In bounds by the caller's word; saying so spares XLA the checks.
        read = rows.at[start + index[..., some]].get(mode="promise_in_bounds")
        total = total + read * weights[..., some, None]
    return total.sum(2)


@jax.custom_vjp
def _looped(table: Array, index: Array, weights: Array) -> Array:
    shape = (*index.shape[:2], table.shape[2])
    return _call(FORWARD, jax.ShapeDtypeStruct(shape, jnp.float32), table, index, weights)


def _forward(table: Array, index: Array, weights: Array) -> tuple[Array, tuple[Array, ...]]:
    return _looped(table, index, weights), (table, index, weights)


def _backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, None, Array]:
    table, index, weights = saved
    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (table, weights)]
    d_table, d_weights = _call(BACKWARD, shapes, table, index, weights, dy)
    return d_table, None, d_weights


_looped.defvjp(_forward, _backward)


def _call(name: str, results: Any, *arguments: Array) -> Any:
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*arguments)


@functools.cache
def registered() -> Any:
    """The compiled loops, None where this JAX or numba cannot call them."""
    try:
        from jaxcomp.ops import gather_loops

        return gather_loops.register_both()
    except Exception:  # an interface of another version; what it raises is not documented
        return None
