"""The reference coder of `rans`: plain numpy, one step of all lanes of one stream at a time."""

from __future__ import annotations

import numpy as np

from jaxcomp.codecs.tables import CdfTables, derived

LOW = 1 << 16  # smallest value of a state that needs no word


def encode(
    flat: np.ndarray, tables: CdfTables, initial: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Codes [N] int32 symbols from initial [K] states: (states, words, number of escapes)."""
    lanes = len(initial)
    channel, number = numbers(flat, tables)
    start = tables.cdf[channel, number].astype(np.uint64)
    width = tables.cdf[channel, number + 1].astype(np.uint64) - start
    n = np.uint64(tables.precision)
    states = initial.astype(np.uint64)
    words: list[int] = []
    for first in reversed(range(0, flat.size, lanes)):
        f, c = width[first : first + lanes], start[first : first + lanes]
        x = states[: len(f)]
        full = x >= f << (np.uint64(32) - n)
        words.extend(int(v) & 0xFFFF for v in x[full][::-1])  # the last lane emits first
        x = np.where(full, x >> np.uint64(16), x)
        states[: len(f)] = ((x // f) << n) + x % f + c
    escapes = int((number == tables.length[channel]).sum())
    return states.astype(np.uint32), np.asarray(words[::-1], np.uint16), escapes


def decode(
    states: np.ndarray, words: np.ndarray, count: int, tables: CdfTables, start: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Decodes `count` symbols from [K] uint32 states and uint16 words.

    Encoding began at the state `start`: at 2^16 every state below it needs a word, while from a
    smaller start the last symbols decode without.

    Returns:
      ([count] int32 symbols, where offset + length stands for the escape; final states; words
      needed, more than there are if they do not suffice; number of escapes).
    """
    keys, base = _keys(tables)
    x = states.astype(np.uint64)
    n, position = np.uint64(tables.precision), 0
    relative = np.zeros(count, np.int64)
    for first in range(0, count, len(x)):
        channel = np.arange(first, min(first + len(x), count)) % tables.channels
        now = x[: len(channel)]
        slot = now & ((np.uint64(1) << n) - np.uint64(1))
        wanted = channel << tables.precision | slot.astype(np.int64)
        number = np.searchsorted(keys, wanted, side="right") - 1 - base[channel]
        c = tables.cdf[channel, number].astype(np.uint64)
        f = tables.cdf[channel, number + 1].astype(np.uint64) - c
        now = f * (now >> n) + slot - c
        (hungry,) = np.nonzero(now < LOW)  # the first lane reads first
        if position + len(hungry) > len(words):
            if start == LOW:
                return relative[:0].astype(np.int32), x.astype(np.uint32), len(words) + 1, 0
            hungry = hungry[: len(words) - position]
        new = words[position : position + len(hungry)].astype(np.uint64)
        now[hungry] = now[hungry] << np.uint64(16) | new
        position += len(hungry)
        x[: len(channel)] = now
        relative[first : first + len(channel)] = number
    grid = relative.reshape(-1, tables.channels)
    escapes = int((grid == tables.length).sum())
    return (grid + tables.offset).astype(np.int32).ravel(), x.astype(np.uint32), position, escapes


def numbers(flat: np.ndarray, tables: CdfTables) -> tuple[np.ndarray, np.ndarray]:
    """Channel and position in its table (the escape's if outside) of [N] symbols."""
    channel = np.tile(np.arange(tables.channels), flat.size // tables.channels)
    relative = flat.astype(np.int64) - tables.offset[channel]
    inside = (relative >= 0) & (relative < tables.length[channel])
    return channel, np.where(inside, relative, tables.length[channel])


@derived
def _keys(tables: CdfTables) -> tuple[np.ndarray, np.ndarray]:
    """All entries as channel 2^n + c in one rising row, and where each channel begins."""
    inside = np.arange(tables.cdf.shape[1])[None] <= tables.length[:, None]
    rows = (np.arange(tables.channels, dtype=np.int64) << tables.precision)[:, None] + tables.cdf
    base = np.cumsum(tables.length.astype(np.int64) + 1) - tables.length - 1
    return rows[inside], base
