"""The entropy coder: both implementations agree, invert, and stay near the bound."""

import sys
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxcomp import errors
from jaxcomp.codecs import rans
from jaxcomp.codecs.tables import from_pmfs


def _laplace(scales, precision=15, escape=2e-6):
    rows, offset = [], []
    for s in scales:
        reach = int(10 * s) + 2
        p = np.exp(-np.abs(np.arange(-reach, reach + 1)) / s)
        rows.append(np.append(p / p.sum(), escape))
        offset.append(-reach)
    return from_pmfs(rows, offset, np.zeros(len(rows)), precision)


TABLES = _laplace([0.2, 1.0, 4.0])


def _both(symbols, tables, lanes=None):
    payload, used = rans.encode(symbols, tables, lanes)
    assert rans.encode(symbols, tables, lanes, reference=True) == (payload, used)
    for reference in (False, True):
        out = rans.decode(payload, symbols.size, tables, used, reference=reference)
        np.testing.assert_array_equal(out, symbols.reshape(-1))
    return payload, used


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    rows=st.lists(
        st.tuples(*[st.one_of(st.integers(-4, 4), st.integers(-(2**30), 2**30))] * 3), max_size=40
    ),
    lanes=st.sampled_from([None, 1, 2, 4, 8, 16, 32, 64]),
    precision=st.integers(8, 16),
)
def test_implementations_agree_and_invert(rows, lanes, precision):
    symbols = np.asarray(rows, np.int32).reshape(-1, 3)
    _both(symbols, _laplace([0.2, 1.0, 4.0], precision), lanes)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    rows=st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=60),
    precision=st.integers(8, 16),
)
def test_short_form_inverts(rows, precision):
    symbols = np.asarray(rows, np.int32)
    _, lanes = _both(symbols, _laplace([0.2, 1.0, 4.0], precision))
    assert lanes == rans.SHORT


def test_nothing_and_one_symbol():
    assert _both(np.zeros((0, 3), np.int32), TABLES) == (b"", 1)
    single = _laplace([1.0])
    payload, _ = _both(np.asarray([[1]]), single, 1)
    assert len(payload) == 5  # the escape count and one state
    payload, _ = _both(np.asarray([[1]]), single)
    assert len(payload) == 2  # the short form's state


def test_escapes_at_the_edges_of_the_table():
    low, high = TABLES.offset, TABLES.offset + TABLES.length
    symbols = np.stack([low - 1, low, high - 1, high, low - 1000, high + 1000]).astype(np.int32)
    _both(symbols, TABLES)
    extremes = np.asarray([[-(2**31), 2**31 - 1, 0]], np.int32)
    _both(extremes, TABLES)


def _draw(count, scales, rng):
    tables = _laplace(scales)
    columns = []
    for m, scale in enumerate(scales):
        reach = np.arange(tables.length[m]) + tables.offset[m]
        p = np.exp(-np.abs(reach) / scale)
        columns.append(rng.choice(reach, count, p=p / p.sum()))
    return np.stack(columns, 1).astype(np.int32), tables


def test_long_streams_are_within_a_thousandth_of_the_ideal():
    symbols, tables = _draw(30_000, np.linspace(0.3, 5, 16), np.random.default_rng(0))
    payload, lanes = rans.encode(symbols, tables)
    ideal = rans.ideal_bits(symbols, tables) / 8
    assert lanes > 1
    assert ideal < len(payload) < 1.001 * ideal + 4


@pytest.mark.parametrize("count", [50, 500, 5000])
def test_streams_of_any_length_are_within_a_hundredth_of_the_ideal(count):
    symbols, tables = _draw(count, np.linspace(0.05, 3, 16), np.random.default_rng(1))
    payload, _ = rans.encode(symbols, tables)
    assert len(payload) < 1.002 * rans.ideal_bits(symbols, tables) / 8 + 3


def test_golden_payload():
    symbols = np.asarray([[0, 1, -3], [0, -2, 7], [1, 0, 0], [0, 0, 60]], np.int32)
    payload, _ = _both(symbols, TABLES, 2)
    assert payload.hex() == GOLDEN


GOLDEN = "01fa420b00f6e747017a0688a222"


@pytest.mark.parametrize("wanted", [2, None])
def test_damage_is_noticed_or_harmless_but_never_a_crash(wanted):
    symbols, tables = _draw(40, [0.5, 2.0], np.random.default_rng(2))
    payload, lanes = rans.encode(symbols, tables, wanted)
    assert lanes == (wanted or rans.SHORT)
    noticed = 0
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 0x55
        try:
            rans.decode(bytes(damaged), symbols.size, tables, lanes)
        except errors.BitstreamError:
            noticed += 1
    assert noticed > 0.9 * len(payload)
    for size in range(len(payload)):
        with pytest.raises(errors.BitstreamError):
            rans.decode(payload[:size], symbols.size, tables, lanes)


def test_wrong_symbols_and_lanes_are_typed_errors():
    with pytest.raises(errors.ShapeError, match=r"\[..., 3\]"):
        rans.encode(np.zeros((2, 4), np.int32), TABLES)
    with pytest.raises(errors.ShapeError, match="float"):
        rans.encode(np.zeros((2, 3)), TABLES)
    for lanes in (0, 3, 128):
        with pytest.raises(errors.CorruptStreamError):
            rans.encode(np.zeros((2, 3), np.int32), TABLES, lanes)


def test_compiles_without_a_cache_directory(monkeypatch):
    """Numba refuses to cache where it finds no writable directory; coding must go on."""
    calls = []

    def njit(*_, cache=False, **__):
        calls.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda loop: loop

    import numba

    fake = types.SimpleNamespace(**{**vars(numba), "njit": njit})
    monkeypatch.setitem(sys.modules, "numba", fake)
    assert rans._compiled.__wrapped__() == (rans._encode_loop, rans._decode_loop)
    assert calls == [True, False, True, False]


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32 - 1])
def test_varints(value):
    data = rans.write_varint(value)
    assert rans.read_varint(b"x" + data, 1) == (value, len(data) + 1)
    with pytest.raises(errors.TruncatedStreamError):
        rans.read_varint(data[:-1], 0)
    with pytest.raises(errors.CorruptStreamError):
        rans.read_varint(b"\xff" * 9, 0)


def test_golden_payloads_of_the_short_form():
    few, many = (
        np.asarray([[0, 1, -3]], np.int32),
        np.asarray([[0, 1, -3], [0, -2, 7]] * 6, np.int32),
    )
    assert [_both(s, TABLES)[0].hex() for s in (few, many)] == SHORT_GOLDEN


SHORT_GOLDEN = ["e6e4", "ba5b710564759cf4acf307759974"]


def decode_by_the_page(payload, count, tables):
    """The short form in plain integers, written from docs/bitstream.md."""
    size = len(payload) if len(payload) <= 4 else 4 - len(payload) % 2
    x = int.from_bytes(payload[:size], "little")
    words = [int.from_bytes(payload[i : i + 2], "little") for i in range(size, len(payload), 2)]
    symbols = []
    for i in range(count):
        m = i % tables.channels
        cdf = [int(c) for c in tables.cdf[m]]
        t = x % 2**tables.precision
        k = next(k for k in range(len(cdf)) if cdf[k] <= t < cdf[k + 1])
        x = (cdf[k + 1] - cdf[k]) * (x // 2**tables.precision) + t - cdf[k]
        if x < 2**16 and words:
            x = 2**16 * x + words.pop(0)
        symbols.append(k + int(tables.offset[m]))
    assert x == 1 and not words
    return symbols


def test_the_page_tells_how_to_decode_the_short_form():
    symbols, tables = _draw(60, [0.3, 2.0, 9.0], np.random.default_rng(5))
    payload, lanes = rans.encode(symbols, tables)
    assert lanes == rans.SHORT
    assert decode_by_the_page(payload, symbols.size, tables) == symbols.reshape(-1).tolist()


def test_symbols_wider_than_32_bits_are_refused():
    with pytest.raises(errors.ShapeError, match="32 bits"):
        rans.encode(np.asarray([[0, 0, 2**32 + 1]]), TABLES)
