"""The entropy coder: its implementations agree, invert, and stay near the bound."""

import pickle
import sys
import types

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import errors
from jaxcomp.codecs import rans, rans_jax, rans_numba
from jaxcomp.codecs.tables import tables_from_pmfs


def _laplace(scales, precision=15, escape=2e-6):
    rows, offset = [], []
    for s in scales:
        reach = int(10 * s) + 2
        p = np.exp(-np.abs(np.arange(-reach, reach + 1)) / s)
        rows.append(p / p.sum())
        offset.append(-reach)
    return tables_from_pmfs(rows, offset=offset, escape=escape, precision=precision)


TABLES = _laplace([0.2, 1.0, 4.0])


def _all(symbols, tables, lanes=None, backends=rans.BACKENDS):
    """Encodes and decodes with every implementation; they must agree."""
    payload, used = rans.encode(symbols, tables, lanes)
    for backend in backends:
        assert rans.encode(symbols, tables, lanes, backend=backend) == (payload, used), backend
        out = rans.decode(payload, symbols.size, tables, used, backend=backend)
        np.testing.assert_array_equal(out, symbols.reshape(-1), err_msg=backend)
    return payload, used


LANES = [None, 1, 2, 4, 8, 16, 32, 64]
values = st.one_of(st.integers(-4, 4), st.integers(-(2**31), 2**31 - 1))


@st.composite
def _any_tables(draw, channels):
    """Tables of arbitrary frequencies, lengths, offsets and precision."""
    precision = draw(st.sampled_from([3, 9, 16]))
    weights = st.lists(st.integers(0, 2**20), min_size=1, max_size=7).filter(any)
    rows = draw(st.lists(weights, min_size=channels, max_size=channels))
    offset = draw(st.lists(st.integers(-6, 3), min_size=channels, max_size=channels))
    escape = draw(st.sampled_from([0, 1, 2**20]))
    return tables_from_pmfs(rows, offset=offset, escape=escape, precision=precision)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    rows=st.lists(st.tuples(values, values, values), max_size=40),
    lanes=st.sampled_from(LANES),
    tables=_any_tables(3),
)
def test_implementations_agree_and_invert(rows, lanes, tables):
    _all(np.asarray(rows, np.int32).reshape(-1, 3), tables, lanes)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    rows=st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=60),
    precision=st.sampled_from([8, 15, 16]),
)
def test_short_form_inverts(rows, precision):
    symbols = np.asarray(rows, np.int32)
    _, lanes = _all(symbols, _laplace([0.2, 1.0, 4.0], precision))
    assert lanes == rans.SHORT


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(
    sizes=st.lists(st.integers(0, 50), max_size=9), seed=st.integers(0, 99), tables=_any_tables(2)
)
def test_a_batch_of_different_lengths_is_its_streams_one_by_one(sizes, seed, tables):
    rng = np.random.default_rng(seed)
    streams = [rng.integers(-5, 6, (n, 2), np.int32) for n in sizes]
    for lanes in (None, 4):
        single = [rans.encode(s, tables, lanes) for s in streams]
        for backend in rans.BACKENDS:
            assert rans.encode_batch(streams, tables, lanes, backend=backend) == single
            out = rans.decode_each(
                [p for p, _ in single],
                [s.size for s in streams],
                tables,
                [k for _, k in single],
                backend=backend,
            )
            for got, sent in zip(out, streams, strict=True):
                np.testing.assert_array_equal(got, sent.reshape(-1))


def test_a_damaged_stream_leaves_its_batch_alone():
    symbols, tables = _draw(60, [0.5, 2.0], np.random.default_rng(3))
    payload, lanes = rans.encode(symbols, tables)
    for backend in rans.BACKENDS:
        out = rans.decode_each(
            [payload, payload[:-2], payload],
            [symbols.size] * 3,
            tables,
            [lanes] * 3,
            backend=backend,
        )
        assert isinstance(out[1], errors.BitstreamError)
        for good in (out[0], out[2]):
            np.testing.assert_array_equal(good, symbols.reshape(-1))


@pytest.mark.parametrize("lanes", [None, 1])
def test_equal_streams_that_take_their_steps_together(lanes):
    """Four at a time, with and without escapes, some damaged: as if each were alone."""
    rng = np.random.default_rng(5)
    assert rans_numba._mean_likeliest(TABLES) < rans_numba._GUESS_BATCH
    streams = [_draw(40, [0.2, 1.0, 4.0], rng)[0] for _ in range(11)]
    if lanes:
        streams[2][5] = streams[6][0] = 1000
    coded = rans.encode_batch(streams, TABLES, lanes)
    payloads = [p for p, _ in coded]
    payloads[1], payloads[4] = payloads[1][:-2], payloads[4] + b"\0\0"
    payloads[9] = bytes(len(payloads[9])) if lanes else b"\xff" * len(payloads[9])
    jobs = ([120] * 11, TABLES, [k for _, k in coded])
    out, slow = (rans.decode_each(payloads, *jobs, backend=b) for b in ("numba", "numpy"))
    for i, (fast, plain) in enumerate(zip(out, slow, strict=True)):
        assert type(fast) is type(plain)
        if i in (1, 4, 9):
            assert isinstance(fast, errors.BitstreamError)
        else:
            np.testing.assert_array_equal(fast, streams[i].ravel())


def test_large_tables_are_searched_where_others_are_looked_up(monkeypatch):
    symbols, tables = _draw(50, [0.3, 1.0, 9.0], np.random.default_rng(4))
    payload, lanes = rans.encode(symbols, tables)
    monkeypatch.setattr(rans_jax, "_MAX_LOOKUP", 0)
    _, tables = _draw(1, [0.3, 1.0, 9.0], np.random.default_rng(4))  # nothing derived yet
    assert rans_jax.lane_tables(tables).lookup.size == 0
    out = rans.decode(payload, symbols.size, tables, lanes, backend="jax")
    np.testing.assert_array_equal(out, symbols.reshape(-1))


def test_lanes_run_inside_jit_and_spread_over_devices():
    rng = np.random.default_rng(6)
    symbols = np.stack([_draw(16, [0.2, 1.0, 4.0], rng)[0].ravel() for _ in range(8)])
    tables = _laplace([0.2, 1.0, 4.0])  # nothing derived yet
    counts, initial = np.full(8, 48, np.int32), np.full((8, 4), 1 << 16, np.uint32)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), "b")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b"))

    @jax.jit
    def there_and_back(symbols, counts, initial):
        lanes = rans_jax.lane_tables(tables)
        states, words, n_words, _ = rans_jax.encode_lanes(lanes, symbols, counts, initial)
        strict = jnp.ones(len(counts), bool)
        return states, rans_jax.decode_lanes(
            lanes, states, words, n_words, counts, strict, length=symbols.shape[1]
        )

    placed = jax.device_put((symbols, counts, initial), rows)
    states, (out, final, used, escapes) = there_and_back(*placed)
    assert len(out.sharding.device_set) == len(jax.devices()) == 4
    np.testing.assert_array_equal(out, symbols)
    np.testing.assert_array_equal(final, initial)
    for row, state, n in zip(symbols, np.asarray(states), np.asarray(used), strict=True):
        expected, words, _ = rans_numba.encode(row, tables, initial[0])
        np.testing.assert_array_equal(state, expected)
        assert n == len(words)
    assert not np.asarray(escapes).any()


def test_lengths_share_compiled_programs():
    tables = _laplace([1.0, 2.0])
    before = rans_jax.decode_lanes._cache_size()
    for n in range(33, 41):
        _all(np.zeros((n, 2), np.int32), tables, 2, ["jax"])
    assert rans_jax.decode_lanes._cache_size() - before <= 1


def test_reciprocals_divide_exactly():
    """The encoder's product replaces x // f for every f and the x nearest to a wrong result."""
    for n in range(1, 17):
        f = np.arange(1, 1 << n, dtype=np.uint64)
        limit = f << np.uint64(32 - n)
        reciprocal = ((np.uint64(1) << np.uint64(32 + n)) + f - np.uint64(1)) // f
        for x in (limit - np.uint64(1), limit - f, limit // f * f // np.uint64(2) - np.uint64(1)):
            assert (x * reciprocal >> np.uint64(32 + n) == x // f).all()


def test_nothing_and_one_symbol():
    assert _all(np.zeros((0, 3), np.int32), TABLES) == (b"", 1)
    single = _laplace([1.0])
    payload, _ = _all(np.asarray([[1]]), single, 1)
    assert len(payload) == 5  # the escape count and one state
    payload, _ = _all(np.asarray([[1]]), single)
    assert len(payload) == 2  # the short form's state


def test_escapes_at_the_edges_of_the_table():
    low, high = TABLES.offset, TABLES.offset + TABLES.length
    symbols = np.stack([low - 1, low, high - 1, high, low - 1000, high + 1000]).astype(np.int32)
    _all(symbols, TABLES)
    extremes = np.asarray([[-(2**31), 2**31 - 1, 0]], np.int32)
    _all(extremes, TABLES)


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
    payload, _ = _all(symbols, TABLES, 2)
    assert payload.hex() == GOLDEN


GOLDEN = "01fa420b00f6e747017a0688a222"


@pytest.mark.parametrize("backend", rans.BACKENDS)
@pytest.mark.parametrize("wanted", [2, None])
def test_damage_is_noticed_or_harmless_but_never_a_crash(wanted, backend):
    symbols, tables = _draw(40, [0.5, 2.0], np.random.default_rng(2))
    payload, lanes = rans.encode(symbols, tables, wanted)
    assert lanes == (wanted or rans.SHORT)
    noticed = 0
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 0x55
        try:
            rans.decode(bytes(damaged), symbols.size, tables, lanes, backend=backend)
        except errors.BitstreamError:
            noticed += 1
    assert noticed > 0.9 * len(payload)
    for size in range(len(payload)):
        with pytest.raises(errors.BitstreamError):
            rans.decode(payload[:size], symbols.size, tables, lanes, backend=backend)


def test_wrong_symbols_and_lanes_are_typed_errors():
    with pytest.raises(errors.ShapeError, match=r"\[..., 3\]"):
        rans.encode(np.zeros((2, 4), np.int32), TABLES)
    with pytest.raises(errors.ShapeError, match="float"):
        rans.encode(np.zeros((2, 3)), TABLES)
    for lanes in (0, 3, 128):
        with pytest.raises(errors.CorruptStreamError):
            rans.encode(np.zeros((2, 3), np.int32), TABLES, lanes)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cannot cache function: no locator available"),
        pickle.UnpicklingError("pickle data was truncated"),
    ],
)
def test_compiles_without_a_usable_cache(monkeypatch, error):
    """Numba finds no writable directory, or a damaged file in it; coding must go on."""
    calls = []

    def njit(*_, cache=False, **__):
        calls.append(cache)
        if cache:
            raise error
        return lambda loop: loop

    import numba

    fake = types.SimpleNamespace(**{**vars(numba), "njit": njit})
    monkeypatch.setitem(sys.modules, "numba", fake)
    for loop in (rans_numba._encode_loop, rans_numba._decode_loop):
        assert rans_numba.compiled.__wrapped__(loop) is loop
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
    assert [_all(s, TABLES)[0].hex() for s in (few, many)] == SHORT_GOLDEN


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
    with pytest.raises(errors.ShapeError, match="rows"):
        rans.decode(b"", 4, TABLES, 1)
    with pytest.raises(ValueError, match="numba, numpy, jax"):
        rans.encode(np.zeros((1, 3), np.int32), TABLES, backend="c")
    with pytest.raises(errors.ShapeError, match="32 bits"):
        rans.encode(np.asarray([[0, 0, 2**32 + 1]]), TABLES)
