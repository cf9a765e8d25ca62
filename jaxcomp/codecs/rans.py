"""Interleaved rANS (Duda, arXiv:1311.2540; Giesen, arXiv:1402.3392) in integer arithmetic alone.

A symbol with the cumulative range [c, c + f) of 2^n changes a state x in [2^16, 2^32) by

    encode   if x >= f 2^(32-n): emit the low 16 bits, x <- x >> 16;  x <- (x // f) 2^n + x % f + c
    decode   x <- f (x >> n) + (x mod 2^n) - c;   if x < 2^16: x <- x 2^16 + next word

where decoding finds the symbol by c <= x mod 2^n < c + f. Symbol i belongs to lane i mod K; every
lane has a state of its own and all share one sequence of 16-bit words. Encoding runs backwards and
reverses the words at the end, so that decoding runs forwards. A symbol outside its table is coded
as the escape, and its value follows in a section after the words: the lanes never diverge.

    payload = varint(E) | K states (uint32) | words (uint16) ... | E bytes of escaped values

in little endian; nothing at all for no symbols. Short streams without escapes take a leaner form,
written as lanes = 0: one state that starts at 1 instead of 2^16 and loses its zero top bytes,

    payload = state (3 or 4 bytes; 1 to 4 if no words follow) | words (uint16) ...

which costs about 2 bytes over the ideal instead of 4. docs/bitstream.md specifies both exactly.
Each has two implementations here that agree byte for byte: numpy, one step of all lanes at a time
(`reference=True`, to read), and loops compiled by numba (to use).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcomp.codecs.tables import CdfTables
from jaxcomp.errors import CorruptStreamError, ShapeError, TruncatedStreamError

MAX_LANES = 64
_LOW = 1 << 16  # smallest value of a state, and its start
SHORT = 0  # "lanes" of the lean form: one lane, no escapes
_SHORT_START = 1
_LANE_BYTES = 8192  # coded bytes per lane: a lane costs about 2 bytes, 0.025 % of that


def encode(
    symbols: np.ndarray, tables: CdfTables, lanes: int | None = None, *, reference: bool = False
) -> tuple[bytes, int]:
    """Codes integers.

    Args:
      symbols: [..., M] integers round(y - median), coded in C order.
      tables: the tables of the M channels.
      lanes: a power of two up to 64; None chooses by the expected size, and `SHORT` (0) where
        that is one lane and there are no escapes.
      reference: use the plain numpy implementation.

    Returns:
      (payload, lanes).

    Raises:
      ShapeError: the symbols are no integers, or have another number of channels.
    """
    symbols = np.asarray(symbols)
    if symbols.ndim < 1 or symbols.shape[-1] != tables.channels or symbols.dtype.kind not in "iu":
        raise ShapeError(
            f"symbols have shape {symbols.shape} and dtype {symbols.dtype}; "
            f"the tables take integers [..., {tables.channels}]"
        )
    if symbols.size and not -(1 << 31) <= symbols.min() <= symbols.max() < 1 << 31:
        raise ShapeError("symbols do not fit 32 bits")
    flat = np.ascontiguousarray(symbols, np.int32).reshape(-1)
    automatic = lanes is None
    lanes = choose_lanes(flat, tables) if lanes is None else _checked_lanes(lanes)
    if not flat.size:
        return b"", lanes
    run = _encode_numpy if reference else _encode_numba
    if automatic and lanes == 1:
        states, words, escapes = run(flat, tables, np.full(1, _SHORT_START, np.uint32))
        if not escapes:
            return _pack_short(int(states[0]), words), SHORT
    states, words, escapes = run(flat, tables, np.full(lanes, _LOW, np.uint32))
    outside = _pack_escapes(flat, tables) if escapes else b""
    parts = (states.astype("<u4"), words.astype("<u2"))
    return write_varint(len(outside)) + b"".join(p.tobytes() for p in parts) + outside, lanes


def decode(
    payload: bytes, count: int, tables: CdfTables, lanes: int, *, reference: bool = False
) -> np.ndarray:
    """Decodes what `encode` wrote.

    Args:
      payload: the bytes.
      count: how many symbols, a multiple of M.
      tables: the tables used to encode.
      lanes: the number that `encode` returned.
      reference: use the plain numpy implementation.

    Returns:
      [count] int32.

    Raises:
      TruncatedStreamError: the payload ends too early.
      CorruptStreamError: it is too long, or its states do not end where encoding began.
    """
    if lanes != SHORT:
        lanes = _checked_lanes(lanes)
    if count == 0 and not payload:
        return np.zeros(0, np.int32)
    start = _SHORT_START if lanes == SHORT else _LOW
    states, words, outside = _split_short(payload) if lanes == SHORT else _split(payload, lanes)
    run = _decode_numpy if reference else _decode_numba
    numbers, used = run(states, words, count, tables, start)
    if used > len(words):
        raise TruncatedStreamError(f"rANS payload: more than its {len(words)} words are needed")
    if used < len(words) or (states != start).any():
        raise CorruptStreamError("rANS payload: the final states are wrong; the data were damaged")
    return _unpack_escapes(numbers, outside, tables)


def choose_lanes(flat: np.ndarray, tables: CdfTables) -> int:
    """A power of two: more lanes for longer streams, so that they cost at most 0.03 %."""
    rows = flat.reshape(-1, tables.channels)
    sample = rows[:: max(1, len(rows) // 256)]
    if not sample.size:
        return 1
    expected = ideal_bits(sample, tables) / 8 * len(rows) / len(sample)
    wanted = max(1, min(MAX_LANES, int(expected) // _LANE_BYTES))
    return 1 << (wanted.bit_length() - 1)


def ideal_bits(symbols: np.ndarray, tables: CdfTables) -> float:
    """Bits an ideal coder spends with these tables: -sum log2 f/2^n, and 8 per escape byte."""
    flat = np.ascontiguousarray(symbols, np.int32).reshape(-1)
    channel, number = _numbers(flat, tables)
    width = tables.cdf[channel, number + 1] - tables.cdf[channel, number]
    spent = flat.size * tables.precision - np.log2(width.astype(np.float64)).sum()
    return float(spent) + 8 * len(_pack_escapes(flat, tables))


def write_varint(value: int) -> bytes:
    """A non-negative integer in groups of 7 bits, low group first, top bit = more follow."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, position behind it) of a `write_varint` number of at most 5 bytes."""
    value = 0
    for shift in range(0, 35, 7):
        if position >= len(data):
            raise TruncatedStreamError(f"the stream ends inside a number at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise CorruptStreamError(f"the number before byte {position} is longer than 5 bytes")


def _checked_lanes(lanes: int) -> int:
    if not 1 <= lanes <= MAX_LANES or lanes & (lanes - 1):
        raise CorruptStreamError(f"lanes = {lanes}; a power of two from 1 to {MAX_LANES} is needed")
    return lanes


def _numbers(flat: np.ndarray, tables: CdfTables) -> tuple[np.ndarray, np.ndarray]:
    """Channel and position in its table (the escape's if outside) of every symbol."""
    channel = np.tile(np.arange(tables.channels), flat.size // tables.channels)
    relative = flat.astype(np.int64) - tables.offset[channel]
    inside = (relative >= 0) & (relative < tables.length[channel])
    return channel, np.where(inside, relative, tables.length[channel])


def _pack_escapes(flat: np.ndarray, tables: CdfTables) -> bytes:
    """Escaped values in order: 2 d for d >= 0 above the table, 2 d - 1 for d >= 1 below it."""
    channel, number = _numbers(flat, tables)
    (where,) = np.nonzero(number == tables.length[channel])
    relative = flat[where].astype(np.int64) - tables.offset[channel[where]]
    length = tables.length[channel[where]]
    coded = np.where(relative < 0, -2 * relative - 1, 2 * (relative - length))
    return b"".join(write_varint(int(value)) for value in coded)


def _unpack_escapes(numbers: np.ndarray, data: bytes, tables: CdfTables) -> np.ndarray:
    """Positions in the tables to symbols, reading the escaped ones from `data`."""
    grid = numbers.reshape(-1, tables.channels)
    symbols = grid + tables.offset
    position = 0
    for row, m in np.argwhere(grid == tables.length) if data else ():
        coded, position = read_varint(data, position)
        relative = -(coded + 1) // 2 if coded & 1 else int(tables.length[m]) + coded // 2
        value = relative + int(tables.offset[m])
        if not -(1 << 31) <= value < 1 << 31:
            raise CorruptStreamError(f"an escaped symbol of channel {m} does not fit 32 bits")
        symbols[row, m] = value
    if position != len(data) or (not data and (grid == tables.length).any()):
        raise CorruptStreamError("the escaped values do not match the number of escapes")
    return symbols.astype(np.int32).reshape(-1)


def _pack_short(state: int, words: np.ndarray) -> bytes:
    """The lean payload: the state without zero top bytes, then the words."""
    size = max(1, (state.bit_length() + 7) // 8)
    return state.to_bytes(size, "little") + words.astype("<u2").tobytes()


def _split_short(payload: bytes) -> tuple[np.ndarray, np.ndarray, bytes]:
    """(state [1] uint32, words uint16, no escape bytes) of a lean payload.

    Words follow only a state of at least 2^16, so the length tells the size of the state: all of
    up to 4 bytes, else 3 if it is odd and 4 if it is even.
    """
    if not payload:
        raise TruncatedStreamError("rANS payload: it is empty, the state is missing")
    size = len(payload) if len(payload) <= 4 else 4 - len(payload) % 2
    state = int.from_bytes(payload[:size], "little")
    if (size > 1 and state >> 8 * (size - 1) == 0) or (len(payload) > 4 and state < _LOW):
        raise CorruptStreamError("rANS payload: the state has zero top bytes")
    words = np.frombuffer(payload, "<u2", offset=size).astype(np.uint16)
    return np.asarray([state], np.uint32), words, b""


def _split(payload: bytes, lanes: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """(states [K] uint32, words uint16, escape bytes) of a payload."""
    escape_bytes, start = read_varint(payload, 0)
    middle = len(payload) - start - 4 * lanes - escape_bytes
    if middle < 0:
        raise TruncatedStreamError(
            f"rANS payload: {len(payload)} bytes cannot hold {lanes} states and {escape_bytes} "
            "escape bytes"
        )
    if middle % 2:
        raise CorruptStreamError("rANS payload: half a word is left over")
    states = np.frombuffer(payload, "<u4", lanes, start).astype(np.uint32)
    words = np.frombuffer(payload, "<u2", middle // 2, start + 4 * lanes).astype(np.uint16)
    if (states < _LOW).any():
        raise CorruptStreamError("rANS payload: a state is below 2^16")
    return states, words, payload[len(payload) - escape_bytes :]


def _encode_numpy(
    flat: np.ndarray, tables: CdfTables, initial: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """The reference encoder from initial states: (states, words, number of escapes)."""
    lanes = len(initial)
    channel, number = _numbers(flat, tables)
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


def _decode_numpy(
    states: np.ndarray, words: np.ndarray, count: int, tables: CdfTables, start: int
) -> tuple[np.ndarray, int]:
    """The reference decoder: (positions in the tables, words needed); `states` ends in place.

    Encoding began at `start`. Below 2^16 the last symbols decode without new words.
    """
    lanes, position = len(states), 0
    numbers = np.zeros(count, np.int64)
    mask = np.uint64((1 << tables.precision) - 1)
    for first in range(0, count, lanes):
        channel = np.arange(first, min(first + lanes, count)) % tables.channels
        x = states[: len(channel)].astype(np.uint64)
        slot = x & mask
        number = (tables.cdf[channel, 1:] <= slot[:, None]).sum(1)
        c = tables.cdf[channel, number].astype(np.uint64)
        f = tables.cdf[channel, number + 1].astype(np.uint64) - c
        x = f * (x >> np.uint64(tables.precision)) + slot - c
        (hungry,) = np.nonzero(x < _LOW)  # the first lane reads first
        if position + len(hungry) > len(words):
            if start == _LOW:
                return numbers, len(words) + 1
            hungry = hungry[: len(words) - position]
        new = words[position : position + len(hungry)].astype(np.uint64)
        x[hungry] = (x[hungry] << np.uint64(16)) | new
        position += len(hungry)
        states[: len(channel)] = x
        numbers[first : first + lanes] = number
    return numbers, position


def _encode_numba(
    flat: np.ndarray, tables: CdfTables, initial: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    states, words = initial.copy(), np.empty(flat.size, np.uint16)
    args = (tables.offset, tables.length, tables.cdf, tables.precision, states, words)
    emitted, escapes = _compiled()[0](flat, *args)
    return states, words[:emitted][::-1], escapes


def _decode_numba(
    states: np.ndarray, words: np.ndarray, count: int, tables: CdfTables, start: int
) -> tuple[np.ndarray, int]:
    numbers = np.zeros(count, np.int64)
    args = (tables.buckets, tables.cdf, tables.precision, states, words, start == _LOW, numbers)
    return numbers, _compiled()[1](*args)


def _encode_loop(flat, offset, length, cdf, precision, states, words):
    """Scalar encoder; fills `states` and `words` (in order of emission)."""
    n, mask = np.uint64(precision), np.uint64(0xFFFF)
    lanes, channels = len(states), len(offset)
    emitted, escapes = 0, 0
    m, lane = channels, (flat.size - 1) % lanes + 1
    for i in range(flat.size - 1, -1, -1):
        m = (m if m > 0 else channels) - 1
        lane = (lane if lane > 0 else lanes) - 1
        k = np.int64(flat[i]) - offset[m]
        if k < 0 or k >= length[m]:
            k = np.int64(length[m])
            escapes += 1
        c = np.uint64(cdf[m, k])
        f = np.uint64(cdf[m, k + 1]) - c
        x = np.uint64(states[lane])
        if x >= f << (np.uint64(32) - n):
            words[emitted] = x & mask
            emitted += 1
            x = x >> np.uint64(16)
        q = x // f
        states[lane] = (q << n) + (x - q * f) + c
    return emitted, escapes


def _decode_loop(buckets, cdf, precision, states, words, strict, numbers):
    """Scalar decoder; fills `numbers`, returns the words needed (one more than there are: stop).

    With `strict` a state below 2^16 needs a word; without, the last symbols decode below it.
    """
    n, low = np.uint64(precision), np.uint64(1 << 16)
    mask = (np.uint64(1) << n) - np.uint64(1)
    lanes, channels = len(states), len(buckets)
    used, m, lane = 0, 0, 0
    for i in range(len(numbers)):
        x = np.uint64(states[lane])
        slot = x & mask
        k = np.int64(buckets[m, np.int64((slot << np.uint64(8)) >> n)])
        while np.uint64(cdf[m, k + 1]) <= slot:
            k += 1
        c = np.uint64(cdf[m, k])
        x = (np.uint64(cdf[m, k + 1]) - c) * (x >> n) + slot - c
        if x < low:
            if used < len(words):
                x = (x << np.uint64(16)) | np.uint64(words[used])
                used += 1
            elif strict:
                return len(words) + 1
        states[lane] = x
        numbers[i] = k
        m = m + 1 if m + 1 < channels else 0
        lane = lane + 1 if lane + 1 < lanes else 0
    return used


@functools.cache
def _compiled() -> tuple[Callable, Callable]:
    """The two loops as machine code: compiled on first use, kept on disk where that is possible."""
    import numba

    def view(dtype: Any, rank: int) -> Any:
        # Inputs may be read-only: jax and frombuffer give such arrays.
        return numba.types.Array(dtype, rank, "C", readonly=True)

    i32, u32, i64, u16 = numba.int32, numba.uint32, numba.int64, numba.uint16
    rows, out = (view(u32, 2), i64), (u32[::1],)
    specs = (
        (_encode_loop, (view(i32, 1), view(i32, 1), view(i32, 1), *rows, *out, u16[::1])),
        (_decode_loop, (view(i32, 2), *rows, *out, view(u16, 1), numba.boolean, i64[::1])),
    )
    compiled: list[Any] = []
    options: dict[str, Any]
    signature: Any
    for loop, signature in specs:
        options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
        try:
            compiled.append(numba.njit(signature, cache=True, **options)(loop))
        except (RuntimeError, OSError):  # no directory to keep it in, or a read-only one
            compiled.append(numba.njit(signature, **options)(loop))
    return compiled[0], compiled[1]
