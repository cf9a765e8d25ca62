"""Probabilities to integer frequencies, rounded so that the expected code is shortest."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np

from jaxcomp.errors import ProbabilityError


def quantise_pmf(pmf: np.ndarray, precision: int) -> np.ndarray:
    """Integer frequencies f >= 1 with sum 2^precision that minimise -sum p log2 f.

    The cost is separable and convex, so single steps lead to its minimum: units are given where
    they save most, taken where they cost least, and finally exchanged while that helps.

    Args:
      pmf: [n] non-negative, not all zero, n <= 2^precision.
      precision: bits.

    Returns:
      [n] int64.

    Raises:
      ProbabilityError: another rank, too many symbols, or weights that cannot be normalised.
    """
    total = 1 << precision
    p = np.asarray(pmf, np.float64)
    if p.ndim != 1 or not 1 <= len(p) <= total:
        raise ProbabilityError(
            f"probabilities of shape {p.shape}: 1 to {total} symbols fit {precision} bits of "
            "precision"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        total_weight = p.sum()
    if not np.isfinite(p).all() or (p < 0).any() or not 0 < total_weight < math.inf:
        raise ProbabilityError(
            "probabilities must be finite, not negative, not all zero, and have a finite sum"
        )
    p = np.maximum(p, 1e-12)  # what never occurs still has a length to shorten
    p = p / p.sum()
    f = np.maximum(np.floor(p * total), 1).astype(np.int64)
    gain = [(-_saving(p[i], f[i]), i) for i in range(len(p))]  # best unit to add first
    loss = [(_saving(p[i], f[i] - 1), i) for i in range(len(p)) if f[i] > 1]  # cheapest to take
    heapq.heapify(gain)
    heapq.heapify(loss)
    left = total - int(f.sum())
    while True:
        add, take = _peek(gain, f, p, 0), _peek(loss, f, p, -1)
        assert add is not None  # a unit can always be added somewhere
        if left == 0 and (take is None or -add[0] <= take[0] + 1e-15):
            return f
        if left < 0:
            assert take is not None  # len(pmf) <= total, so some frequency is above one
            i, step = take[1], -1
        else:
            i, step = add[1], 1
        f[i] += step
        left -= step
        heapq.heappush(gain, (-_saving(p[i], f[i]), i))
        if f[i] > 1:
            heapq.heappush(loss, (_saving(p[i], f[i] - 1), i))


def _saving(p: float, f: int) -> float:
    """What the step from frequency f to f + 1 saves, in nats."""
    return float(p) * math.log1p(1 / f) if f > 0 else math.inf


def _peek(heap: list, f: np.ndarray, p: np.ndarray, shift: int) -> tuple[float, int] | None:
    """The heap's best entry that still describes the current frequencies."""
    while heap:
        value, i = heap[0]
        current = f[i] + shift
        if current > 0 and abs(value) == _saving(p[i], current):
            return heap[0]
        heapq.heappop(heap)
    return None


def weights(pmf: Any, channel: int) -> np.ndarray:
    """One vector of probabilities as [n >= 1] float64; their values are checked with the rest."""
    try:
        row = np.asarray(pmf, np.float64)
    except (TypeError, ValueError) as error:
        raise ProbabilityError(f"probabilities of channel {channel}: {error}") from error
    if row.ndim != 1 or not row.size:
        raise ProbabilityError(
            f"probabilities of channel {channel} have shape {row.shape}; one vector is needed"
        )
    return row


def per_channel(name: str, values: Any, count: int, dtype: Any) -> np.ndarray:
    """[count] numbers that survive as this dtype; one stands for all channels."""
    try:
        wide = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ProbabilityError(f"{name} are not numbers: {error}") from error
    if wide.shape not in ((), (1,), (count,)):
        raise ProbabilityError(f"{name} has shape {wide.shape}; one or {count} (channels) needed")
    most = np.finfo(dtype).max if np.issubdtype(dtype, np.floating) else (1 << 31) - 1
    whole = np.issubdtype(dtype, np.floating) or (wide == np.floor(wide)).all()
    if not np.isfinite(wide).all() or not whole or (np.abs(wide) > most).any():
        raise ProbabilityError(f"{name} of the probabilities must be finite {np.dtype(dtype)}")
    return np.broadcast_to(wide.astype(dtype), count).copy()
