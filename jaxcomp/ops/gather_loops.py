"""The loops of `ops.gather_sum` on the CPU. Importing this module imports numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcomp.ops.gather_sum import BACKWARD, FORWARD
from jaxcomp.ops.host_calls import ARGUMENTS, RESULTS, floats, ints, register, version_asked
from jaxcomp.ops.native import kept

_SUMS: dict[str, Any] = {"fastmath": {"reassoc", "contract"}}  # sums in any order


@kept()
def _inside(place, places):
    """The nearest row there is: no index may reach memory of others."""
    return min(max(place, 0), places - 1)


@kept(**_SUMS)
def _add(table, index, weights, out):
    """Reads [B, R, K] rows of [B, P, M] into [B, R, M]."""
    out[:] = 0
    for b in range(index.shape[0]):
        for r in range(index.shape[1]):
            row = out[b, r]
            for k in range(index.shape[2]):
                place = _inside(index[b, r, k], table.shape[1])
                weight, read = weights[b, r, k], table[b, place]
                for m in range(out.shape[2]):
                    row[m] += weight * read[m]


@kept(**_SUMS)
def _differentiate(table, index, weights, dy, d_table, d_weights):
    """Gradients [B, P, M] and [B, R, K] of `_add` from dy [B, R, M]."""
    d_table[:] = 0
    for b in range(index.shape[0]):
        for r in range(index.shape[1]):
            row = dy[b, r]
            for k in range(index.shape[2]):
                place = _inside(index[b, r, k], table.shape[1])
                weight, total = weights[b, r, k], np.float32(0)
                read, into = table[b, place], d_table[b, place]
                for m in range(dy.shape[2]):
                    total += row[m] * read[m]
                    into[m] += weight * row[m]
                d_weights[b, r, k] = total


def _forward(frame):
    if not version_asked(frame):
        table, index = floats(frame, ARGUMENTS, 0), ints(frame, ARGUMENTS, 1)
        _add(table, index, floats(frame, ARGUMENTS, 2), floats(frame, RESULTS, 0))
    return 0


def _backward(frame):
    if not version_asked(frame):
        table, index = floats(frame, ARGUMENTS, 0), ints(frame, ARGUMENTS, 1)
        weights, dy = floats(frame, ARGUMENTS, 2), floats(frame, ARGUMENTS, 3)
        _differentiate(
            table, index, weights, dy, floats(frame, RESULTS, 0), floats(frame, RESULTS, 1)
        )
    return 0


def register_both() -> Any:
    """Makes both callable; returns what must be kept alive."""
    return register(FORWARD, _forward), register(BACKWARD, _backward)
