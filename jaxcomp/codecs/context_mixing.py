"""Symbols with contexts: static tables mixed by static weights, coded by rANS, integers alone.

A symbol depends on a few that were coded before it (its neighbours) and on what the decoder knows
anyway. Every *expert* looks at some of that, which gives a row of its table; the rows are averaged:

    row_j = base[t, j] + sum_m stride[j, m] class_j[symbol of neighbour m of t]
    C(s)  = (sum_j weight[set[t], j] C_j[row_j](s)) >> 8

Every C_j rises by at least 1 from symbol to symbol and the weights sum to 2^8, so the mixture is a
valid cumulative table of 2^16 as well: no rounding step could differ between two machines. Encoder
and decoder run the same loop. `context_learning` makes the tables.

The coder is that of `rans` with one lane in its lean form: the state starts at 1, and

    payload = state (1 to 4 bytes, without zero top bytes) | words (uint16, little endian) ...

or nothing for no symbols.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import numpy as np

from jaxcomp.errors import CorruptStreamError, ShapeError, TruncatedStreamError
from jaxcomp.ops import native

PRECISION = 16
WEIGHT_BITS = 8
TOTAL = 1 << PRECISION
_SIGNATURE = (
    "Tuple((i8, i8))(b1, i8, u2[::1], i4[:, ::1], i4[:, ::1], i4[:, ::1], i4[:, ::1], i4[::1],"
    " i4[:, ::1], i4[:, ::1], i4[::1], i4[::1], i4[::1])"
)
_ENCODE = "Tuple((i8, i8))(i4[::1], i4[::1], u2[::1])"


class Contexts(NamedTuple):
    """What decides the rows of the symbols 0 .. T - 1 of a stream.

    Attributes:
      neighbours: int32 [T, M], which earlier symbol; T where there is none.
      base: int32 [T, J], the part of each expert's context that the decoder knows beforehand.
      stride: int32 [J, M].
      classes: int32 [J, n + 1], what an expert sees of a symbol; the last is "none".
      sets: int32 [T], which weights count.
      sizes: contexts of each expert.
      weight_sets: number of weight sets.
    """

    neighbours: np.ndarray
    base: np.ndarray
    stride: np.ndarray
    classes: np.ndarray
    sets: np.ndarray
    sizes: tuple[int, ...]
    weight_sets: int


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Learned tables of one kind of symbol.

    Attributes:
      cdf: uint16 [C, n - 1], the inner cumulative frequencies of all contexts, expert by expert;
        0 before and 2^16 after them, strictly rising.
      sizes: int32 [J], contexts of each expert; they sum to C.
      weights: int32 [S, J], not negative, each row sums to 2^8.
    """

    cdf: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray

    def __post_init__(self):
        whole, sums = self.full, self.weights.sum(1)
        good = (np.diff(whole, axis=1) > 0).all() and (self.weights >= 0).all()
        if not good or (sums != 1 << WEIGHT_BITS).any() or self.sizes.sum() != len(whole):
            raise CorruptStreamError("context tables: rows or weights contradict their rules")

    @property
    def symbols(self) -> int:
        """The size n of the alphabet."""
        return self.cdf.shape[1] + 1

    @functools.cached_property
    def full(self) -> np.ndarray:
        """int32 [C, n + 1], with 0 and 2^16 at the ends."""
        zero = np.zeros((len(self.cdf), 1), np.int32)
        return np.ascontiguousarray(
            np.concatenate([zero, self.cdf.astype(np.int32), zero + TOTAL], 1)
        )

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of all numbers."""
        sha = hashlib.sha256(b"jaxcomp mixture 1")
        for array, kind in ((self.cdf, "<u2"), (self.sizes, "<i4"), (self.weights, "<i4")):
            sha.update(str(array.shape).encode() + array.astype(kind).tobytes())
        return sha.digest()


def encode(symbols: np.ndarray, contexts: Contexts, mixture: Mixture) -> bytes:
    """Codes symbols 0 .. n - 1.

    Args:
      symbols: [T] integers.
      contexts: theirs.
      mixture: the tables.

    Returns:
      The payload.

    Raises:
      ShapeError: a symbol is not in the alphabet, or the contexts are not those of the tables.
    """
    _check(contexts, mixture, len(symbols))
    values = np.ascontiguousarray(symbols, np.int32)
    if values.size and not (0 <= values.min() and values.max() < mixture.symbols):
        raise ShapeError(
            f"symbols from {values.min()} to {values.max()}; the tables are for 0 to "
            f"{mixture.symbols - 1}"
        )
    if not values.size:
        return b""
    start, width, _, _ = _run(False, 0, np.zeros(0, np.uint16), values, contexts, mixture)
    return pack(start, width)


def decode(payload: bytes, contexts: Contexts, mixture: Mixture) -> np.ndarray:
    """What `encode` coded, int32 [T].

    Raises:
      TruncatedStreamError: the payload ends too early.
      CorruptStreamError: it does not end where encoding began.
      ShapeError: the contexts are not those of the tables.
    """
    count = len(contexts.neighbours)
    _check(contexts, mixture, count)
    values = np.zeros(count, np.int32)
    if not count:
        if payload:
            raise CorruptStreamError(f"{len(payload)} bytes are coded for no symbol")
        return values
    state, words = split(payload)
    _, _, end, used = _run(True, state, words, values, contexts, mixture)
    check_end(end, used, words)
    return values


def ideal_bits(symbols: np.ndarray, contexts: Contexts, mixture: Mixture) -> float:
    """Bits that an ideal coder spends with these tables."""
    _check(contexts, mixture, len(symbols))
    values = np.ascontiguousarray(symbols, np.int32)
    _, width, _, _ = _run(False, 0, np.zeros(0, np.uint16), values, contexts, mixture)
    return float(PRECISION * len(values) - np.log2(np.maximum(width, 1)).sum())


def _check(contexts: Contexts, mixture: Mixture, count: int) -> None:
    if tuple(contexts.sizes) != tuple(mixture.sizes) or count != len(contexts.neighbours):
        raise ShapeError(
            f"{count} symbols, contexts of {len(contexts.neighbours)} with sizes {contexts.sizes}; "
            f"the tables are for {tuple(mixture.sizes)}"
        )
    if contexts.classes.shape[1] != mixture.symbols + 1:
        raise ShapeError(f"classes of {contexts.classes.shape[1] - 1} symbols, {mixture.symbols}")


def pack(start: np.ndarray, width: np.ndarray) -> bytes:
    """The payload of symbols whose ranges are [start, start + width) of 2^16, int32 [T] each."""
    words = np.zeros(len(start) + 2, np.uint16)
    state, first = native.compiled(_encode_loop, _ENCODE)(start, width, words)
    size = max(1, (state.bit_length() + 7) // 8)
    return int(state).to_bytes(size, "little") + words[first:].astype("<u2").tobytes()


def check_end(state: int, used: int, words: np.ndarray) -> None:
    """Raises unless decoding ended where encoding began, with all words used."""
    if state < 1 << PRECISION and used == len(words) and state != 1:
        raise TruncatedStreamError(
            f"context coder: the payload ends early or was damaged (final state {state})"
        )
    if used != len(words) or state != 1:
        raise CorruptStreamError("context coder: the final state is wrong; the data were damaged")


def split(payload: bytes) -> tuple[int, np.ndarray]:
    """(state, words) of a payload; words follow only a state of at least 2^16.

    Raises:
      TruncatedStreamError: it is empty.
      CorruptStreamError: no coder writes such a state.
    """
    if not payload:
        raise TruncatedStreamError("context coder: the payload is empty, the state is missing")
    size = len(payload) if len(payload) <= 4 else 4 - len(payload) % 2
    state = int.from_bytes(payload[:size], "little")
    if (size > 1 and state >> 8 * (size - 1) == 0) or (len(payload) > 4 and state < TOTAL):
        raise CorruptStreamError("context coder: the state has zero top bytes")
    return state, np.frombuffer(payload, "<u2", offset=size).astype(np.uint16)


def _run(
    decoding: bool, state: int, words: np.ndarray, values: np.ndarray, c: Contexts, mixture: Mixture
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(start, width) of every symbol, final state and words used; decoding fills `values`."""
    start, width = np.zeros(len(values), np.int32), np.zeros(len(values), np.int32)
    arrays = [np.ascontiguousarray(a, np.int32) for a in (c.neighbours, c.base, c.stride)]
    arrays += [np.ascontiguousarray(c.classes, np.int32), np.ascontiguousarray(c.sets, np.int32)]
    offsets = (np.cumsum(mixture.sizes) - mixture.sizes).astype(np.int32)
    arrays[1] = arrays[1] + offsets[None]
    weights = np.ascontiguousarray(mixture.weights, np.int32)
    end, used = native.compiled(_loop, _SIGNATURE)(
        decoding, state, words, *arrays, weights, mixture.full, values, start, width
    )
    return start, width, int(end), int(used)


def _loop(
    decoding, state, words, neighbours, base, stride, classes, sets, weights, cdf, values, start,
    width,
):  # fmt: skip
    """Every symbol's range, decoding the symbol first if asked; (state, words needed)."""
    count, experts, reach = values.shape[0], base.shape[1], neighbours.shape[1]
    symbols = cdf.shape[1] - 1
    rows = np.empty(experts, np.int64)
    share = np.empty(experts, np.int64)
    x, used, have = np.int64(state), np.int64(0), np.int64(words.shape[0])
    for t in range(count):
        active = 0
        for j in range(experts):
            weight = weights[sets[t], j]
            if weight > 0:
                row = base[t, j]
                for m in range(reach):
                    if stride[j, m] != 0:
                        at = neighbours[t, m]
                        seen = symbols if at >= t else values[at]
                        row += stride[j, m] * classes[j, seen]
                rows[active] = row
                share[active] = weight
                active += 1
        low, high = np.int64(0), np.int64(0)
        if decoding:
            slot = x & 65535
            left, right = 0, symbols
            while right - left > 1:
                middle = (left + right) // 2
                value = np.int64(0)
                for j in range(active):
                    value += share[j] * cdf[rows[j], middle]
                if value >> 8 <= slot:
                    left = middle
                else:
                    right = middle
            values[t] = left
        s = values[t]
        for j in range(active):
            low += share[j] * cdf[rows[j], s]
            high += share[j] * cdf[rows[j], s + 1]
        low, high = low >> 8, high >> 8
        start[t] = low
        width[t] = high - low
        if decoding:
            x = (high - low) * (x >> 16) + (x & 65535) - low
            if x < 65536 and used < have:
                x = (x << 16) | np.int64(words[used])
                used += 1
    return x, used


def _encode_loop(start, width, words):
    """Fills `words` from the back; (state, where the first word stands)."""
    x, position = np.int64(1), np.int64(words.shape[0])
    for i in range(start.shape[0]):
        t = start.shape[0] - 1 - i
        f = np.int64(width[t])
        if x >= f << 16:
            position -= 1
            words[position] = x & 65535
            x >>= 16
        x = ((x // f) << 16) + x % f + start[t]
    return x, position
