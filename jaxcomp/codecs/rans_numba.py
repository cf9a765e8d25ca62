"""The host's fast coder of `rans`: loops compiled by numba, integers only.

Every table entry is packed into one or two 64-bit words, so that a symbol costs one load:

    encode   reciprocal ceil(2^(32+n) / f)            c | f << 32
    decode   c | f << 16 | symbol << 32

The encoder multiplies by the reciprocal instead of dividing: with x < 2^32 and f < 2^n,
floor(x ceil(2^(32+n) / f) / 2^(32+n)) = floor(x / f), since the excess of the reciprocal adds less
than 2^32 2^n / 2^(32+n) / f = 1 / f; and x < f 2^(32-n) keeps the product below 2^64. It writes
every low half of a state and only sometimes moves on: there is no branch to predict.

The decoder waits for its state: each symbol's look-up needs the one before. Where symbols are easy
to guess it first tries the channel's likeliest one, which needs no look-up and leaves the waiting
to the processor's branch prediction; else it takes the symbol at the start of its 1/128 of the
range and goes upwards, and reads each word before it knows whether it needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcomp.codecs.tables import CdfTables, derived
from jaxcomp.ops import native

_BUCKET_BITS = 7  # 1.5 KB a channel: the look-ups of 192 channels stay in the second-level cache
# Mean probability of the likeliest symbols from which they are tried first: with one lane, and with
# several, which can wait for several look-ups at once.
_GUESS_ONE, _GUESS_SEVERAL = 0.5, 0.8
_GUESS_BATCH = 0.88  # below it several streams are decoded together
_TOGETHER = 4

Job = tuple[np.ndarray, np.ndarray, int, int]  # states, words, count, start
Decoded = tuple[np.ndarray, np.ndarray, int, int]  # symbols, final states, words needed, escapes


def encode(
    flat: np.ndarray, tables: CdfTables, initial: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Codes [N] int32 symbols from initial [K] states: (states, words, number of escapes)."""
    states, words = initial.astype(np.uint64), np.empty(flat.size + 1, np.uint16)
    args = (*_encoder_tables(tables), tables.offset, tables.length, tables.precision)
    position, escapes = compiled(_encode_loop)(flat, *args, states, words)
    return states.astype(np.uint32), words[position:], escapes


def decode(
    states: np.ndarray, words: np.ndarray, count: int, tables: CdfTables, start: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Decodes `count` symbols from [K] uint32 states and uint16 words.

    Returns:
      ([count] int32 symbols, where offset + length stands for the escape; final states; words
      needed, more than there are if they do not suffice; number of escapes).
    """
    out, x = np.empty(count, np.int32), states.astype(np.uint64)
    limits = tables.offset + tables.length
    guess = _mean_likeliest(tables) > (_GUESS_ONE if len(x) == 1 else _GUESS_SEVERAL)
    args = (*_decoder_tables(tables), limits, tables.precision, start == 1 << 16, guess)
    used, escapes = compiled(_decode_loop)(x, words, *args, out)
    return out, x.astype(np.uint32), used, escapes


def decode_batch(jobs: Sequence[Job], tables: CdfTables) -> list[Decoded]:
    """`decode` of several streams: four of one lane and equal length take their steps together.

    Each waits for its own look-ups, so that the processor works on four at a time.
    """
    out: list[Any] = [None] * len(jobs)
    groups: dict[Any, list[int]] = {}
    together = len(jobs) >= _TOGETHER and _mean_likeliest(tables) < _GUESS_BATCH
    for i, (states, _, count, start) in enumerate(jobs):
        alone = not together or len(states) > 1 or count == 0
        groups.setdefault(i if alone else (count, start), []).append(i)
    for group in groups.values():
        whole = len(group) // _TOGETHER * _TOGETHER
        for first in range(0, whole, _TOGETHER):
            part = group[first : first + _TOGETHER]
            for i, done in zip(
                part, _decode_together([jobs[i] for i in part], tables), strict=True
            ):
                out[i] = done
        for i in group[whole:]:
            states, words, count, start = jobs[i]
            out[i] = decode(states, words, count, tables, start)
    return out


def _decode_together(jobs: Sequence[Job], tables: CdfTables) -> list[Decoded]:
    """Streams of one lane, equal count and equal start."""
    x = np.asarray([job[0][0] for job in jobs], np.uint64)
    ends = np.cumsum([len(job[1]) for job in jobs])
    begins = ends - [len(job[1]) for job in jobs]
    position, escapes = begins.astype(np.uint64), np.zeros(len(jobs), np.int64)
    out = np.empty((len(jobs), jobs[0][2]), np.int32)
    words, limits = np.concatenate([job[1] for job in jobs]), tables.offset + tables.length
    args = (*_decoder_tables(tables)[:3], limits, tables.precision, escapes, out)
    short = compiled(_decode_together_loop)(x, words, position, ends.astype(np.uint64), *args)
    used = position.astype(np.int64) - begins
    if jobs[0][3] == 1 << 16:  # a state below it needs a word
        used += [short >> j & 1 for j in range(len(jobs))]
    return [
        (out[j], x[j : j + 1].astype(np.uint32), int(used[j]), int(escapes[j]))
        for j in range(len(jobs))
    ]


def table_bytes(tables: CdfTables) -> int:
    """Memory of the look-up tables that both directions derive."""
    return sum(a.nbytes for a in (*_encoder_tables(tables), *_decoder_tables(tables)))


@derived
def _rows(tables: CdfTables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All entries in one row, their starts c and widths f; where each channel begins."""
    inside = np.arange(tables.cdf.shape[1] - 1)[None] <= tables.length[:, None]
    c = tables.cdf[:, :-1][inside].astype(np.uint64)
    f = tables.cdf[:, 1:][inside].astype(np.uint64) - c
    base = np.cumsum(tables.length.astype(np.int64) + 1) - tables.length - 1
    return c, f, base


@derived
def _encoder_tables(tables: CdfTables) -> tuple[np.ndarray, np.ndarray]:
    """([entries, 2] uint64, [M] int64 begin of each channel)."""
    c, f, base = _rows(tables)
    one = np.uint64(1) << np.uint64(32 + tables.precision)
    reciprocal = (one + f - np.uint64(1)) // f
    return np.stack([reciprocal, c | f << np.uint64(32)], 1), base


@derived
def _decoder_tables(tables: CdfTables) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(entries, [M 2^b] entry at each bucket's begin, its index, [M] likeliest entry)."""
    c, f, base = _rows(tables)
    n, m = tables.precision, np.arange(tables.channels)
    bits = min(_BUCKET_BITS, n)
    channel = np.repeat(m, tables.length + 1)
    symbol = np.arange(len(c)) - base[channel] + tables.offset[channel]
    entries = c | f << np.uint64(16) | symbol.astype(np.uint64) << np.uint64(32)
    starts = (m[:, None] << n) + (np.arange(1 << bits) << (n - bits))
    at = np.searchsorted((channel << n) + c.astype(np.int64), starts.ravel(), side="right") - 1
    # The escape is never tried first: it is counted where the search finds it.
    rank = np.where(symbol < (tables.offset + tables.length)[channel], f, 0)
    order = np.lexsort((rank, channel))
    likeliest = entries[order[base + tables.length]]
    return entries, entries[at], at.astype(np.uint32), likeliest


@derived
def _mean_likeliest(tables: CdfTables) -> float:
    likeliest = _decoder_tables(tables)[3]
    return float((likeliest >> np.uint64(16) & np.uint64(0xFFFF)).mean()) / (1 << tables.precision)


def _encode_loop(flat, entries, base, offset, length, precision, states, words):
    """Fills `states` and `words` (from the back); returns (first word, number of escapes)."""
    n, one = np.uint64(precision), np.uint64(1)
    up, down, top = np.uint64(32) - n, np.uint64(32) + n, one << n
    low16, low32, sixteen = np.uint64(0xFFFF), np.uint64(0xFFFFFFFF), np.uint64(16)
    last_lane, last = np.uint64(len(states) - 1), np.uint64(len(offset) - 1)
    position, escapes = np.uint64(len(words)), 0
    i, m = np.uint64(flat.size), last
    while i > np.uint64(0):
        i -= one
        k = np.uint64(np.int64(flat[i]) - np.int64(offset[m]))  # below the table: huge
        if k >= np.uint64(length[m]):
            k = np.uint64(length[m])
            escapes += 1
        entry = np.uint64(base[m]) + k
        reciprocal, both = entries[entry, np.uint64(0)], entries[entry, one]
        f = both >> np.uint64(32)
        x = states[i & last_lane]
        full = x >= f << up
        words[position - one] = x & low16  # overwritten unless it counts
        position -= np.uint64(full)
        x = x >> sixteen if full else x
        q = (x * reciprocal) >> down
        states[i & last_lane] = x + (both & low32) + q * (top - f)  # (q << n) + (x - q f) + c
        m = m - one if m > np.uint64(0) else last
    return np.int64(position), escapes


def _decode_loop(
    states, words, entries, buckets, at, likeliest, limits, precision, strict, guess, out
):
    """Fills `out`, returns (words needed, number of escapes).

    With `strict` a state below 2^16 needs a word; without, the last symbols decode below it.
    """
    n, one, sixteen = np.uint64(precision), np.uint64(1), np.uint64(16)
    mask, low16 = (one << n) - one, np.uint64(0xFFFF)
    bits = np.uint64(min(_BUCKET_BITS, precision))
    shift, last_lane = n - bits, np.uint64(len(states) - 1)
    used, have, channels = np.uint64(0), np.uint64(len(words)), np.uint64(len(limits))
    escapes, m, i, count = 0, np.uint64(0), np.uint64(0), np.uint64(len(out))
    x, several = states[np.uint64(0)], len(states) > 1  # the state of a single lane stays in x
    keep = ~np.uint64(0) if guess else ~np.uint64(0xFFFF0000)  # without a width it never fits
    while i < count:
        if several:
            x = states[i & last_lane]
        slot = x & mask
        e = likeliest[m] & keep
        f = (e >> sixteen) & low16
        rest = slot - (e & low16)
        if rest >= f:
            bucket = (m << bits) | (slot >> shift)
            e = buckets[bucket]
            f = (e >> sixteen) & low16
            rest = slot - (e & low16)
            if rest >= f:
                k = np.uint64(at[bucket])
                while rest >= f:
                    k += one
                    e = entries[k]
                    f = (e >> sixteen) & low16
                    rest = slot - (e & low16)
            escapes += np.int64(e) >> 32 == np.int64(limits[m])
        x = f * (x >> n) + rest
        if guess:
            if x <= low16:
                if used < have:
                    x = (x << sixteen) | np.uint64(words[used])
                    used += one
                elif strict:
                    return np.int64(have) + 1, escapes
        elif used < have:
            fed = (x << sixteen) | np.uint64(words[used])
            used += np.uint64(x <= low16)
            x = fed if x <= low16 else x
        elif strict and x <= low16:
            return np.int64(have) + 1, escapes
        if several:
            states[i & last_lane] = x
        out[i] = np.int64(e) >> 32
        i += one
        m += one
        if m == channels:
            m = np.uint64(0)
    if not several:
        states[np.uint64(0)] = x
    return np.int64(used), escapes


def _decode_together_loop(
    states, words, position, end, entries, buckets, at, limits, precision, escapes, out
):
    """One symbol of each stream after the other; bit j returned: stream j lacked a word."""
    n, one, sixteen = np.uint64(precision), np.uint64(1), np.uint64(16)
    mask, low16 = (one << n) - one, np.uint64(0xFFFF)
    bits = np.uint64(min(_BUCKET_BITS, precision))
    shift, channels = n - bits, np.uint64(len(limits))
    short, m, i, count = 0, np.uint64(0), np.uint64(0), np.uint64(out.shape[1])
    while i < count:
        for j in range(_TOGETHER):
            stream = np.uint64(j)
            x = states[stream]
            slot = x & mask
            bucket = (m << bits) | (slot >> shift)
            e = buckets[bucket]
            f = (e >> sixteen) & low16
            rest = slot - (e & low16)
            if rest >= f:
                k = np.uint64(at[bucket])
                while rest >= f:
                    k += one
                    e = entries[k]
                    f = (e >> sixteen) & low16
                    rest = slot - (e & low16)
            escapes[stream] += np.int64(e) >> 32 == np.int64(limits[m])
            x = f * (x >> n) + rest
            p = position[stream]
            if p < end[stream]:
                fed = (x << sixteen) | np.uint64(words[p])
                position[stream] = p + np.uint64(x <= low16)
                x = fed if x <= low16 else x
            elif x <= low16:
                short |= 1 << j
            states[stream] = x
            out[stream, i] = np.int64(e) >> 32
        i += one
        m += one
        if m == channels:
            m = np.uint64(0)
    return short


def _signature(loop: Callable) -> Any:
    import numba

    def view(dtype: Any, rank: int = 1) -> Any:
        # Inputs may be read-only: jax and frombuffer give such arrays.
        return numba.types.Array(dtype, rank, "C", readonly=True)

    i32, i64, u16, u64 = numba.int32, numba.int64, numba.uint16, numba.uint64
    if loop is _encode_loop:
        tables = (view(u64, 2), view(i64), view(i32), view(i32), i64)
        return (view(i32), *tables, u64[::1], u16[::1])
    if loop is _decode_together_loop:
        shared = (view(u64), view(u64), view(numba.uint32), view(i32), i64)
        return (u64[::1], view(u16), u64[::1], view(u64), *shared, i64[::1], i32[:, ::1])
    lookups = (view(u64), view(u64), view(numba.uint32), view(u64), view(i32), i64)
    return (u64[::1], view(u16), *lookups, numba.boolean, numba.boolean, i32[::1])


@functools.cache
def compiled(loop: Callable) -> Callable:
    """A loop as machine code: compiled on first use, kept on disk where that is possible."""
    return native.compile_loop(loop, _signature(loop))
