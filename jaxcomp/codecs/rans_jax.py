"""The coder of `rans` in JAX: jit on any device, a batch of streams in one call.

    encode_lanes   [B, N] symbols ─► table entries (all at once) ─► scan backwards ─► words
    decode_lanes   [B, W] words, [B, K] states ─► scan forwards ─► [B, N] symbols

A step codes one symbol in each of the K lanes of each of the B streams. Streams of different
lengths are padded; what lies behind a stream's own count changes nothing. All arithmetic is uint32,
with or without x64 mode: x < f 2^(32-n) keeps every product of the format below 2^32.

Shapes are rounded up to few sizes, so that a stream's length does not compile a program of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs.rans_numpy import LOW
from jaxcomp.codecs.tables import CdfTables, derived

Array = jax.Array

_MAX_LOOKUP = 1 << 25  # entries of the full look-up table (2 bytes each); larger ones are searched
_MAX_PADDED = 1 << 23  # symbols of one call, padding included; larger batches are split


class LaneTables(NamedTuple):
    """`CdfTables` as arrays for a device.

    Attributes:
      offset: [M] int32, smallest symbol.
      length: [M] int32, symbols of the channel; the escape's position.
      base: [M] int32, where the channel begins in `entries`.
      entries: [entries] uint32, c | f << 16; padded to a power of two.
      lookup: [M 2^n] uint16, position of the symbol at each place of the range; empty: search.
      precision: [] uint32, n. An array, so that it does not compile a program of its own.
    """

    offset: Array
    length: Array
    base: Array
    entries: Array
    lookup: Array
    precision: Array


@derived
def lane_tables(tables: CdfTables) -> LaneTables:
    """The arrays that `encode_lanes` and `decode_lanes` take, on the default device."""
    inside = np.arange(tables.cdf.shape[1] - 1)[None] <= tables.length[:, None]
    c, width = tables.cdf[:, :-1][inside], np.diff(tables.cdf, axis=1)[inside]
    base = np.cumsum(tables.length + 1) - tables.length - 1
    lookup = np.zeros(0, np.uint16)
    if tables.channels << tables.precision <= _MAX_LOOKUP:
        number = np.arange(len(c)) - np.repeat(base, tables.length + 1)
        lookup = np.repeat(number, width).astype(np.uint16)
    packed = np.zeros(max(64, 1 << (len(c) - 1).bit_length()), np.uint32)
    packed[: len(c)] = c | width.astype(np.uint32) << np.uint32(16)
    with jax.ensure_compile_time_eval():  # kept, so no tracers even inside a jit
        return LaneTables(
            jnp.asarray(tables.offset, jnp.int32),
            jnp.asarray(tables.length, jnp.int32),
            jnp.asarray(base, jnp.int32),
            jnp.asarray(packed, jnp.uint32),
            jnp.asarray(lookup),
            jnp.asarray(tables.precision, jnp.uint32),
        )


@jax.jit
def encode_lanes(
    tables: LaneTables, symbols: Array, counts: Array, initial: Array
) -> tuple[Array, Array, Array, Array]:
    """Codes a batch of streams.

    Args:
      tables: of `lane_tables`.
      symbols: [B, N] int32; N is a multiple of K.
      counts: [B] int32, symbols of each stream.
      initial: [B, K] uint32 states to begin with.

    Returns:
      ([B, K] uint32 states, [B, N] uint16 words in the order of decoding, [B] int32 number of
      words, [B] int32 number of escapes).
    """
    lanes = initial.shape[1]
    entry, valid, escapes = _entries_of(tables, symbols, counts)
    n, low = tables.precision, jnp.uint32(0xFFFF)
    up = jnp.uint32(32) - n

    def step(x: Array, now: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        entry, valid = now
        c, f = entry & low, entry >> 16
        emits = valid & (x >= f << up)
        word = (x & low).astype(jnp.uint16)
        y = jnp.where(emits, x >> 16, x)
        q = y // f
        return jnp.where(valid, (q << n) + (y - q * f) + c, x), (word, emits)

    steps = (_by_step(entry, lanes), _by_step(valid, lanes))
    states, (words, emits) = jax.lax.scan(step, initial, steps, reverse=True)
    words, emits = _by_stream(words), _by_stream(emits)
    place = jnp.cumsum(emits, axis=1, dtype=jnp.int32)
    # What was not emitted is dropped behind the end.
    index = jnp.where(emits, place - 1, words.shape[1])
    row = jnp.arange(words.shape[0], dtype=jnp.int32)[:, None]
    packed = jnp.zeros_like(words).at[row, index].set(words, mode="drop")
    return states, packed, emits.sum(1, dtype=jnp.int32), escapes


@functools.partial(jax.jit, static_argnames="length")
def decode_lanes(
    tables: LaneTables,
    states: Array,
    words: Array,
    n_words: Array,
    counts: Array,
    strict: Array,
    *,
    length: int,
) -> tuple[Array, Array, Array, Array]:
    """Decodes a batch of streams.

    Args:
      tables: of `lane_tables`.
      states: [B, K] uint32.
      words: [B, W] uint16, padded to W >= 1.
      n_words: [B] int32, words of each stream.
      counts: [B] int32, symbols of each stream.
      strict: [B] bool: a state below 2^16 needs a word; else the last symbols decode without.
      length: N, at least the largest count and a multiple of K.

    Returns:
      ([B, N] int32 symbols, where offset + length stands for the escape; [B, K] uint32 final
      states; [B] int32 words needed; [B] int32 number of escapes).
    """
    batch, lanes = states.shape
    channels = len(tables.offset)
    n = tables.precision
    mask = (jnp.uint32(1) << n) - jnp.uint32(1)

    def step(carry: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], Array]:
        x, used = carry
        i = first + jnp.arange(lanes, dtype=jnp.int32)
        channel = i % channels
        slot = x & mask
        number = _find(tables, channel[None], slot)
        entry = tables.entries[tables.base[channel][None] + number]
        c, f = entry & jnp.uint32(0xFFFF), entry >> 16
        y = f * (x >> n) + slot - c
        valid = i[None] < counts[:, None]
        hungry = valid & (y < LOW)
        order = jnp.cumsum(hungry, axis=1, dtype=jnp.int32)
        place = used[:, None] + order - 1  # the first lane reads first
        fed = hungry & (place < n_words[:, None])
        near = jnp.clip(place, 0, words.shape[1] - 1)
        word = jnp.take_along_axis(words, near, axis=1).astype(jnp.uint32)
        y = jnp.where(fed, y << 16 | word, y)
        needed = hungry & (fed | strict[:, None])
        used = used + needed.sum(1, dtype=jnp.int32)
        return (jnp.where(valid, y, x), used), number

    firsts = jnp.arange(0, length, lanes, dtype=jnp.int32)
    start = (states, jnp.zeros(batch, jnp.int32))
    (states, used), numbers = jax.lax.scan(step, start, firsts)
    number = _by_stream(numbers)
    index = jnp.arange(length, dtype=jnp.int32)
    channel = index % channels
    inside = index[None] < counts[:, None]
    escapes = (inside & (number == tables.length[channel][None])).sum(1, dtype=jnp.int32)
    return number + tables.offset[channel][None], states, used, escapes


def encode_batch(
    flats: Sequence[np.ndarray], tables: CdfTables, initial: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Codes [N_b] int32 symbols from [K_b] states: (states, words, number of escapes) of each."""
    out: list[Any] = [None] * len(flats)
    for rows in _groups([len(x) for x in initial], [f.size for f in flats]):
        lanes = len(initial[rows[0]])
        length = _rounded(max(-(-flats[i].size // lanes) for i in rows)) * lanes
        symbols = _padded([flats[i] for i in rows], length, np.int32)
        counts = _padded([[flats[i].size] for i in rows], 1, np.int32)[:, 0]
        starts = _padded([initial[i] for i in rows], lanes, np.uint32)
        states, words, n_words, escapes = map(
            np.asarray,
            encode_lanes(lane_tables(tables), symbols, counts, starts),
        )
        for j, i in enumerate(rows):
            out[i] = (states[j], words[j, : n_words[j]], int(escapes[j]))
    return out


def decode_batch(
    jobs: Sequence[tuple[np.ndarray, np.ndarray, int, int]], tables: CdfTables
) -> list[tuple[np.ndarray, np.ndarray, int, int]]:
    """Decodes streams given as (states [K], words, count, start of the states).

    Returns:
      For each ([count] int32 symbols, where offset + length stands for the escape; final states;
      words needed, more than there are if they do not suffice; number of escapes).
    """
    out: list[Any] = [None] * len(jobs)
    for rows in _groups([len(job[0]) for job in jobs], [job[2] for job in jobs]):
        lanes = len(jobs[rows[0]][0])
        length = _rounded(max(-(-jobs[i][2] // lanes) for i in rows)) * lanes
        width = _rounded(max(len(jobs[i][1]) for i in rows))
        numbers = [[len(jobs[i][1]), jobs[i][2], jobs[i][3] == LOW] for i in rows]
        n_words, counts, strict = _padded(numbers, 3, np.int32).T
        result = decode_lanes(
            lane_tables(tables),
            _padded([jobs[i][0] for i in rows], lanes, np.uint32),
            _padded([jobs[i][1] for i in rows], width, np.uint16),
            n_words,
            counts,
            strict.astype(bool),
            length=length,
        )
        symbols, states, used, escapes = map(np.asarray, result)
        for j, i in enumerate(rows):
            count = jobs[i][2]
            out[i] = (symbols[j, :count].copy(), states[j], int(used[j]), int(escapes[j]))
    return out


def _entries_of(tables: LaneTables, symbols: Array, counts: Array) -> tuple[Array, Array, Array]:
    """[B, N] table entries, [B, N] which of them count, [B] number of escapes."""
    index = jnp.arange(symbols.shape[1], dtype=jnp.int32)
    channel = index % len(tables.offset)
    offset, length = tables.offset[channel][None], tables.length[channel][None]
    # Compared before subtracting: the difference may wrap around 32 bits, but not inside.
    outside = (symbols < offset) | (symbols >= offset + length)
    number = jnp.where(outside, length, symbols - offset)
    valid = index[None] < counts[:, None]
    entry = tables.entries[tables.base[channel][None] + number]
    return entry, valid, (outside & valid).sum(1, dtype=jnp.int32)


def _find(tables: LaneTables, channel: Array, slot: Array) -> Array:
    """Position of the symbol with c <= slot < c + f: [B, K] int32."""
    if tables.lookup.size:
        place = channel << tables.precision.astype(jnp.int32) | slot.astype(jnp.int32)
        return tables.lookup[place].astype(jnp.int32)
    base = tables.base[channel]
    low = jnp.zeros(slot.shape, jnp.int32)
    high = jnp.broadcast_to(tables.length[channel] + 1, slot.shape)
    for _ in range(17):  # a channel has at most 2^16 entries
        middle = (low + high) // 2
        below = (tables.entries[base + middle] & jnp.uint32(0xFFFF)) <= slot
        low, high = jnp.where(below, middle, low), jnp.where(below, high, middle)
    return low


def _by_step(a: Array, lanes: int) -> Array:
    """[B, T K] to [T, B, K]."""
    return a.reshape(a.shape[0], -1, lanes).transpose(1, 0, 2)


def _by_stream(a: Array) -> Array:
    """[T, B, K] to [B, T K]."""
    return a.transpose(1, 0, 2).reshape(a.shape[1], -1)


def _groups(lanes: Sequence[int], counts: Sequence[int]) -> Iterable[list[int]]:
    """Which streams pass together: equal lanes, and no more padding than memory allows."""
    for k in sorted(set(lanes)):
        rows = sorted((i for i in range(len(lanes)) if lanes[i] == k), key=lambda i: -counts[i])
        while rows:
            size = max(1, _MAX_PADDED // (2 * max(1, counts[rows[0]])))
            yield rows[:size]
            rows = rows[size:]


def _rounded(n: int) -> int:
    """The next of 16, 20, 24, 28, 32, 40, ...: at most a quarter more than n."""
    step = 1 << max(2, (n - 1).bit_length() - 3)
    return max(16, -(-n // step) * step)


def _padded(rows: Sequence[Any], width: int, dtype: Any) -> np.ndarray:
    """Rows of different lengths in one array, their number rounded up to a power of two."""
    out = np.zeros((1 << (len(rows) - 1).bit_length(), width), dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
