"""Interleaved rANS (Duda, arXiv:1311.2540; Giesen, arXiv:1402.3392) in integer arithmetic alone.

A symbol with the cumulative range [c, c + f) of 2^n changes a state x in [2^16, 2^32) by

    encode   if x >= f 2^(32-n): emit the low 16 bits, x <- x >> 16;  x <- (x // f) 2^n + x % f + c
    decode   x <- f (x >> n) + (x mod 2^n) - c;   if x < 2^16: x <- x 2^16 + next word

where decoding finds the symbol by c <= x mod 2^n < c + f. Symbol i belongs to lane i mod K; every
lane has a state of its own and all share one sequence of 16-bit words. Encoding runs backwards and
the words are stored in reverse, so that decoding runs forwards. A symbol outside its table is coded
as the escape, and its value follows in a section after the words: the lanes never diverge.

    payload = varint(E) | K states (uint32) | words (uint16) ... | E bytes of escaped values

in little endian; nothing at all for no symbols. Short streams without escapes take a leaner form,
written as lanes = 0: one state that starts at 1 instead of 2^16 and loses its zero top bytes,

    payload = state (3 or 4 bytes; 1 to 4 if no words follow) | words (uint16) ...

which costs about 2 bytes over the ideal instead of 4. docs/bitstream.md specifies both exactly.

This module packs and checks payloads. The lanes are run by one of three implementations that agree
byte for byte: `numba` (compiled loops, the default), `numpy` (the reference, to read) and `jax`
(jit on any device, a whole batch of streams in one call).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcomp.codecs import rans_numba, rans_numpy
from jaxcomp.codecs.tables import CdfTables, derived
from jaxcomp.errors import (
    BitstreamError,
    CorruptStreamError,
    ShapeError,
    StreamTooLargeError,
    TruncatedStreamError,
)

MAX_LANES = 64
SHORT = 0  # "lanes" of the lean form: one lane, no escapes
BACKENDS = ("numba", "numpy", "jax")
# What a decoder does one after the other, by default at most: 10 s in plain numpy, 1 s compiled.
MAX_STEPS = {"numba": 1 << 24, "numpy": 1 << 19, "jax": 1 << 24}
_LOW = rans_numpy.LOW  # smallest value of a state, and its start
_SHORT_START = 1
# Coded bytes per lane. A lane costs 2 bytes (the second one 5, for the longer form). Rounding the
# tables and the states costs some 0.08 % of a stream, and all together shall stay below 0.1 %.
_LANE_BYTES = 8192
_SAMPLE = 1024  # symbols looked at to choose the lanes

Coded = tuple[np.ndarray, np.ndarray, int]  # states [K] uint32, words uint16, number of escapes


def encode(
    symbols: np.ndarray, tables: CdfTables, lanes: int | None = None, *, backend: str = "numba"
) -> tuple[bytes, int]:
    """Codes integers.

    Args:
      symbols: [..., M] integers round(y - median), coded in C order.
      tables: the tables of the M channels.
      lanes: a power of two up to 64; None chooses by the expected size, and `SHORT` (0) where
        that is one lane and there are no escapes.
      backend: one of `BACKENDS`; all give the same bytes.

    Returns:
      (payload, lanes).

    Raises:
      ShapeError: the symbols are no integers, or have another number of channels.
    """
    return encode_batch([symbols], tables, lanes, backend=backend)[0]


def encode_batch(
    streams: Sequence[np.ndarray],
    tables: CdfTables,
    lanes: int | None = None,
    *,
    backend: str = "numba",
) -> list[tuple[bytes, int]]:
    """`encode` of several streams, of equal or different lengths; `jax` codes them in one call."""
    checked_backend(backend)
    flats = [_flat(symbols, tables) for symbols in streams]
    wanted = [choose_lanes(f, tables) if lanes is None else _checked_lanes(lanes) for f in flats]
    short = [lanes is None and k == 1 and f.size > 0 for f, k in zip(flats, wanted, strict=True)]
    initial = [
        np.full(k, _SHORT_START if lean else _LOW, np.uint32)
        for k, lean in zip(wanted, short, strict=True)
    ]
    coded = _run_encoder(flats, tables, initial, backend)
    # The short form has no place for escapes: those streams are coded again.
    again = [i for i, lean in enumerate(short) if lean and coded[i][2]]
    one = np.full(1, _LOW, np.uint32)
    redone = _run_encoder([flats[i] for i in again], tables, [one] * len(again), backend)
    for i, result in zip(again, redone, strict=True):
        coded[i], short[i] = result, False
    return [
        (_pack_short(c), SHORT) if lean else (_pack(flat, tables, c), k)
        for flat, c, k, lean in zip(flats, coded, wanted, short, strict=True)
    ]


def decode(
    payload: bytes,
    count: int,
    tables: CdfTables,
    lanes: int,
    *,
    backend: str = "numba",
    max_steps: int | None = None,
) -> np.ndarray:
    """Decodes what `encode` wrote.

    Args:
      payload: the bytes.
      count: how many symbols, a multiple of M. Memory is allocated for as many.
      tables: the tables used to encode.
      lanes: the number that `encode` returned.
      backend: one of `BACKENDS`.
      max_steps: the most symbols of one lane, None for the backend's `MAX_STEPS`: it bounds the
        time before anything is decoded.

    Returns:
      [count] int32.

    Raises:
      TruncatedStreamError: the payload ends too early.
      CorruptStreamError: it is too long, or its states do not end where encoding began.
      StreamTooLargeError: more than `max_steps`.
      ShapeError: the count is not a number of whole rows of M symbols.
    """
    rules: dict[str, Any] = {"backend": backend, "max_steps": max_steps}
    (out,) = decode_each([payload], [count], tables, [lanes], **rules)
    if isinstance(out, BitstreamError):
        raise out
    return out


def decode_each(
    payloads: Sequence[bytes],
    counts: Sequence[int],
    tables: CdfTables,
    lanes: Sequence[int],
    *,
    backend: str = "numba",
    max_steps: int | None = None,
) -> list[np.ndarray | BitstreamError]:
    """`decode` of several streams; a damaged one gives its error and leaves the others alone."""
    limit = MAX_STEPS[checked_backend(backend)] if max_steps is None else max_steps
    out: list[Any] = [None] * len(payloads)
    jobs, index, escaped = [], [], []
    for i, (payload, count, k) in enumerate(zip(payloads, counts, lanes, strict=True)):
        if count < 0 or count % tables.channels:
            raise ShapeError(f"{count} symbols are not rows of {tables.channels} channels")
        try:
            if _checked_lanes(k, SHORT) != SHORT and count == 0 and not payload:
                out[i] = np.zeros(0, np.int32)
                continue
            if steps_of(count, k) > limit:
                raise too_many_steps(steps_of(count, k), backend, limit)
            split = _split_short(payload) if k == SHORT else _split(payload, k)
        except BitstreamError as error:
            out[i] = error
            continue
        jobs.append((*split[:2], count, _SHORT_START if k == SHORT else _LOW))
        index.append(i)
        escaped.append(split[2])
    for i, job, outside, done in zip(
        index, jobs, escaped, _run_decoder(jobs, tables, backend), strict=True
    ):
        try:
            out[i] = _finish(job, done, outside, tables)
        except BitstreamError as error:
            out[i] = error
    return out


def choose_lanes(flat: np.ndarray, tables: CdfTables) -> int:
    """A power of two: more lanes for longer streams, so that they cost less than 0.1 %."""
    # An entry costs at most the precision, an escape up to 5 bytes more.
    if flat.size * (tables.precision + 40) < 8 * 2 * _LANE_BYTES:
        return 1
    rows = flat.reshape(-1, tables.channels)
    sample = rows[:: max(1, len(rows) * tables.channels // _SAMPLE)]
    bits, base = _costs(tables)
    number = sample - tables.offset[None]
    outside = (number < 0) | (number >= tables.length[None])
    number = np.where(outside, tables.length[None], number)
    expected = float(bits[number + base[None]].sum()) / 8 * len(rows) / len(sample)
    wanted = max(1, min(MAX_LANES, int(expected) // _LANE_BYTES))
    return 1 << (wanted.bit_length() - 1)


def ideal_bits(symbols: np.ndarray, tables: CdfTables) -> float:
    """Bits an ideal coder spends with these tables: -sum log2 f/2^n, and 8 per escape byte."""
    flat = _flat(symbols, tables)
    channel, number = rans_numpy.numbers(flat, tables)
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


def _checked_lanes(lanes: int, *others: int) -> int:
    if lanes not in others and (not 1 <= lanes <= MAX_LANES or lanes & (lanes - 1)):
        raise CorruptStreamError(f"lanes = {lanes}; a power of two from 1 to {MAX_LANES} is needed")
    return lanes


def checked_backend(backend: str) -> str:
    """The name of a backend; raises `ValueError` for another one."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}; there are {', '.join(BACKENDS)}")
    return backend


def steps_of(count: int, lanes: int) -> int:
    """Symbols of the longest lane."""
    return -(-count // max(1, lanes))


def too_many_steps(steps: int, backend: str, max_steps: int) -> StreamTooLargeError:
    """The error of a stream that would take too long."""
    other = "" if backend == "numba" else "decode with the backend numba, or "
    return StreamTooLargeError(
        f"{steps} symbols after one another are more than the limit of {max_steps} of the backend "
        f"{backend}; {other}raise it (max_symbols, --max-symbols) if the file is trusted"
    )


def _flat(symbols: Any, tables: CdfTables) -> np.ndarray:
    """Symbols of any integer type as one row of int32."""
    symbols = np.asarray(symbols)
    if symbols.ndim < 1 or symbols.shape[-1] != tables.channels or symbols.dtype.kind not in "iu":
        raise ShapeError(
            f"symbols have shape {symbols.shape} and dtype {symbols.dtype}; "
            f"the tables take integers [..., {tables.channels}]"
        )
    narrow = symbols.dtype.itemsize < 4 or symbols.dtype == np.int32
    if symbols.size and not narrow and not _fit(int(symbols.min()), int(symbols.max())):
        raise ShapeError("symbols do not fit 32 bits")
    return np.ascontiguousarray(symbols, np.int32).reshape(-1)


def _fit(*values: int) -> bool:
    return all(-(1 << 31) <= value < 1 << 31 for value in values)


def _run_encoder(
    flats: Sequence[np.ndarray], tables: CdfTables, initial: Sequence[np.ndarray], backend: str
) -> list[Coded]:
    if backend == "jax":
        from jaxcomp.codecs import rans_jax

        return rans_jax.encode_batch(flats, tables, initial)
    run = rans_numpy.encode if backend == "numpy" else rans_numba.encode
    return [run(flat, tables, start) for flat, start in zip(flats, initial, strict=True)]


def _run_decoder(jobs: Sequence[tuple], tables: CdfTables, backend: str) -> list[tuple]:
    if backend == "jax":
        from jaxcomp.codecs import rans_jax

        return rans_jax.decode_batch(jobs, tables)
    if backend == "numba":
        return rans_numba.decode_batch(jobs, tables)
    return [rans_numpy.decode(states, words, n, tables, at) for states, words, n, at in jobs]


def _finish(job: tuple, done: tuple, outside: bytes, tables: CdfTables) -> np.ndarray:
    """Checks the end of a decoded stream and puts the escaped symbols in."""
    _, words, _, start = job
    symbols, states, used, escapes = done
    if used > len(words):
        raise TruncatedStreamError(f"rANS payload: more than its {len(words)} words are needed")
    if used < len(words) or (states != start).any():
        raise CorruptStreamError("rANS payload: the final states are wrong; the data were damaged")
    if not escapes and not outside:
        return symbols
    if not 1 <= escapes <= len(outside):
        raise CorruptStreamError(
            f"{len(outside)} bytes of escaped values for {escapes} escapes: the data were damaged"
        )
    return _put_escapes(symbols, outside, tables)


def _pack(flat: np.ndarray, tables: CdfTables, coded: Coded) -> bytes:
    """The payload of the long form."""
    states, words, escapes = coded
    if not flat.size:
        return b""
    outside = _pack_escapes(flat, tables) if escapes else b""
    parts = (states.astype("<u4"), words.astype("<u2"))
    return write_varint(len(outside)) + b"".join(p.tobytes() for p in parts) + outside


def _pack_escapes(flat: np.ndarray, tables: CdfTables) -> bytes:
    """Escaped values in order: 2 d for d >= 0 above the table, 2 d - 1 for d >= 1 below it."""
    channel, number = rans_numpy.numbers(flat, tables)
    (where,) = np.nonzero(number == tables.length[channel])
    relative = flat[where].astype(np.int64) - tables.offset[channel[where]]
    length = tables.length[channel[where]]
    coded = np.where(relative < 0, -2 * relative - 1, 2 * (relative - length))
    return b"".join(write_varint(int(value)) for value in coded)


def _put_escapes(symbols: np.ndarray, data: bytes, tables: CdfTables) -> np.ndarray:
    """Replaces what stands for an escape, offset + length, by the values in `data`."""
    grid = symbols.reshape(-1, tables.channels)
    rows, channels = np.nonzero(grid == tables.offset + tables.length)
    position, values = 0, np.empty(len(rows), np.int64)
    for i, m in enumerate(channels):
        coded, position = read_varint(data, position)
        relative = -(coded + 1) // 2 if coded & 1 else int(tables.length[m]) + coded // 2
        value = relative + int(tables.offset[m])
        if not _fit(value):
            raise CorruptStreamError(f"an escaped symbol of channel {m} does not fit 32 bits")
        values[i] = value
    if position != len(data):
        raise CorruptStreamError("the escaped values do not match the number of escapes")
    grid[rows, channels] = values
    return grid.reshape(-1)


def _pack_short(coded: Coded) -> bytes:
    """The lean payload: the state without zero top bytes, then the words."""
    states, words, _ = coded
    state = int(states[0])
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


@derived
def _costs(tables: CdfTables) -> tuple[np.ndarray, np.ndarray]:
    """Bits of every table entry in one row (12 more for an escape's value), [M] where each begins.

    Only to choose lanes, which the stream announces: it need not be the same everywhere.
    """
    inside = np.arange(tables.cdf.shape[1] - 1)[None] <= tables.length[:, None]
    width = np.diff(tables.cdf.astype(np.int64), axis=1)[inside]
    base = np.cumsum(tables.length.astype(np.int64) + 1) - tables.length - 1
    bits = tables.precision - np.log2(width)
    bits[base + tables.length] += 12
    return bits.astype(np.float32), base
