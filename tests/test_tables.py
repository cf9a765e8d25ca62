"""Integer tables: optimal rounding, invariants, serialisation."""

import copy
import dataclasses
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import errors
from jaxcomp.codecs import rans, rans_jax
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles
from jaxcomp.codecs.tables import CdfTables, build_tables, quantise_pmf, tables_from_pmfs


def _cost(p, f):
    return -(p * np.log2(f)).sum()


def _compositions(total, parts):
    """All ways to write a total as an ordered sum of positive integers: [ways, parts]."""
    cuts = itertools.combinations(range(1, total), parts - 1)
    return np.diff([(0, *cut, total) for cut in cuts], axis=1)


@pytest.mark.parametrize(("parts", "precision"), [(2, 8), (3, 6), (4, 5), (5, 4), (8, 4), (15, 4)])
def test_rounding_is_optimal_among_all_frequencies(parts, precision):
    rng = np.random.default_rng(parts)
    every = _compositions(1 << precision, parts)
    for concentration in (0.1, 0.3, 1.0, 10.0):
        p = rng.dirichlet(np.full(parts, concentration)) + 1e-9
        best = -(p * np.log2(every)).sum(1).max()
        f = quantise_pmf(p, precision)
        assert f.sum() == 1 << precision
        assert f.min() >= 1
        assert _cost(p, f) <= best + 1e-12


def test_no_exchange_of_one_unit_improves_large_tables():
    """The cost is separable and convex, so this is optimality for any size."""
    p = np.random.default_rng(0).dirichlet(np.full(700, 0.2)) + 1e-9
    f = quantise_pmf(p, 15)
    gain, loss = p * np.log1p(1 / f), np.full(700, np.inf)
    loss[f > 1] = (p * -np.log1p(-1 / np.maximum(f, 2)))[f > 1]
    assert gain.max() <= loss.min() + 1e-12


def test_tables_of_categories_need_only_their_weights():
    tables = tables_from_pmfs([np.arange(1, 5), [3, 0, 1]], precision=10)
    np.testing.assert_array_equal(tables.offset, 0)
    np.testing.assert_array_equal(tables.length, [4, 3])
    width = np.diff(tables.cdf[0].astype(int))
    np.testing.assert_allclose(width[:4] / 1024, np.arange(1, 5) / 10, atol=2e-3)
    assert width[4] == 1


@pytest.mark.parametrize(
    "rows",
    [
        *([], [[]], [[0.5, np.nan]], [[0.5, -0.1]], [[0.0, 0.0]], [[1e308, 1e308]], [[np.inf]]),
        *([0.5, 0.5], [[[0.5, 0.5]]], [["a"]], [[0.5], None]),
    ],
)
def test_impossible_probabilities_are_refused(rows):
    with pytest.raises(errors.ProbabilityError, match=r"probabilit"):
        tables_from_pmfs(rows)


@pytest.mark.parametrize(
    "more",
    [
        *({"offset": 0.5}, {"offset": 2**31}, {"offset": [1, 2, 3]}, {"offset": "a"}),
        *({"median": np.nan}, {"median": [[0.0]]}, {"median": 1e39}),
        *({"escape": -1}, {"escape": np.nan}, {"escape": [1, 1, 1]}),
        *({"precision": 0}, {"precision": 17}, {"precision": 1.5}),
    ],
)
def test_impossible_numbers_beside_probabilities_are_refused(more):
    tables_from_pmfs([[1, 2], [3]], offset=[1.0, -2.0], median=0.5, escape=[0, 1], precision=16)
    with pytest.raises(errors.ProbabilityError):
        tables_from_pmfs([[1, 2], [3]], **more)


def test_tables_cannot_be_written_to_and_leave_their_makers_arrays_alone(built):
    tables = built[2]
    length, cdf = np.asarray([1], np.int32), np.asarray([[0, 3, 4]], np.uint32)
    own = CdfTables(2, np.zeros(1, np.float32), np.zeros(1, np.int32), length, cdf)
    read = CdfTables.from_bytes(tables.to_bytes())
    for one in (tables, own, read, pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        for name in ("median", "offset", "length", "cdf"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(one, name)[0] = 1
    length[0] = cdf[0, 1] = 2  # as before, and without consequence
    assert own.cdf[0, 1] == 3 and own.length[0] == 1


def test_tables_go_to_a_device_once(built):
    tables = CdfTables.from_bytes(built[2].to_bytes())
    symbols = np.zeros((5, 6), np.int32)
    payload, lanes = rans.encode(symbols, tables, backend="jax")
    first = rans_jax.lane_tables(tables)
    with jax.transfer_guard_host_to_device("disallow_explicit"):
        assert rans_jax.lane_tables(tables) is first
    rans.decode(payload, 30, tables, lanes, backend="jax")
    assert rans_jax.lane_tables(tables) is first


@pytest.mark.parametrize("pmf", [[1.0, 0.0], [0.0, 1.0, 0.0], np.ones(32), [1e-30] * 7])
def test_rounding_of_degenerate_vectors(pmf):
    f = quantise_pmf(np.asarray(pmf), 5)
    assert f.sum() == 32
    assert f.min() >= 1


def test_more_symbols_than_frequencies_is_an_error():
    with pytest.raises(ValueError, match="precision"):
        quantise_pmf(np.ones(33), 5)


@pytest.fixture(scope="module")
def built():
    codec = FactorisedCodec(4, 8, 6, stages=1)
    variables = jax.jit(codec.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 4)))
    variables = refresh_quantiles(variables)
    return codec, variables, build_tables(codec, variables)


def test_tables_follow_the_density(built):
    codec, variables, tables = built
    y = np.arange(tables.length[0]) + tables.offset[0] + tables.median[0]
    y = jnp.tile(jnp.asarray(y, jnp.float32)[None, None, :, None], (1, 1, 1, 6))
    bits = codec.apply(variables, y, method="bits")[0, 0, :, 0]
    width = np.diff(tables.cdf[0, : tables.length[0] + 1].astype(np.int64))
    frequent = width > 200
    coded = tables.precision - np.log2(width[frequent])
    assert frequent.any()
    np.testing.assert_allclose(coded, np.asarray(bits)[frequent], atol=0.02)


def test_building_is_pure_and_repeatable(built):
    codec, variables, tables = built
    assert build_tables(codec, variables).digest == tables.digest
    other = jax.tree.map(lambda a: a * 1.01, variables)
    assert build_tables(codec, other).digest != tables.digest


def test_long_tables_are_cut_around_the_median(built):
    codec, variables, _ = built
    tables = build_tables(codec, variables, max_length=11)
    np.testing.assert_array_equal(tables.length, 11)
    np.testing.assert_array_equal(tables.offset, -5)


def test_bytes_round_trip_exactly(built):
    tables = built[2]
    again = CdfTables.from_bytes(tables.to_bytes())
    for field in dataclasses.fields(tables):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(tables, field.name))
    assert again.digest == tables.digest


def test_copies_leave_out_what_was_derived(built):
    tables = built[2]
    symbols = np.zeros((1, 6), np.int32)
    wanted = [rans.encode(symbols, tables, backend=backend) for backend in rans.BACKENDS]
    again = pickle.loads(pickle.dumps(tables))
    assert set(vars(again)) == {field.name for field in dataclasses.fields(tables)}
    assert [rans.encode(symbols, again)] * 3 == wanted


def test_golden_bytes():
    """The serialised form is part of every stream's identity: it must not drift."""
    tables = tables_from_pmfs(
        [[0.5, 0.25], [0.9]], offset=[-1, 0], median=[0.0, 0.5], escape=[0.25, 0.1], precision=4
    )
    expected = "4a585401040200000004000000000000000000003fffffffff0000000002000000010000000800" + (
        "0c000e00"
    )
    assert tables.to_bytes().hex() == expected


def test_damaged_bytes_are_typed_errors(built):
    data = built[2].to_bytes()
    with pytest.raises(errors.VersionError):
        CdfTables.from_bytes(b"XXX" + data[3:])
    with pytest.raises(errors.VersionError):
        CdfTables.from_bytes(data[:3] + b"\x09" + data[4:])
    for size in (0, 5, 20, len(data) - 1):
        with pytest.raises(errors.TruncatedStreamError):
            CdfTables.from_bytes(data[:size])
    with pytest.raises(errors.CorruptStreamError):
        CdfTables.from_bytes(data + b"\0")
    with pytest.raises(errors.CorruptStreamError):
        CdfTables.from_bytes(data[:-2] + b"\0\0")


def test_hostile_tables_are_refused_before_they_are_built():
    blob = bytearray(tables_from_pmfs([[0.5]] * 3, escape=0.5).to_bytes())
    precise = bytes(blob[:4]) + bytes([40]) + bytes(blob[5:])
    with pytest.raises(errors.CorruptStreamError, match="precision 40"):
        CdfTables.from_bytes(precise)
    wide = bytes(blob[:5]) + (100_000).to_bytes(4, "little") + (1 << 16).to_bytes(4, "little")
    with pytest.raises(errors.CorruptStreamError, match="100000 channels"):
        CdfTables.from_bytes(wide + bytes(100))
