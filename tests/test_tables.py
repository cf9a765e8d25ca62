"""Integer tables: optimal rounding, invariants, serialisation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import errors
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles
from jaxcomp.codecs.tables import CdfTables, build_tables, from_pmfs, quantise_pmf


def _cost(p, f):
    return -(p * np.log2(f)).sum()


def test_rounding_is_optimal():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.dirichlet(np.full(3, 0.3)) + 1e-9
        best = min(
            _cost(p, np.array([a, b, 32 - a - b]))
            for a, b in itertools.product(range(1, 31), repeat=2)
            if a + b < 32
        )
        f = quantise_pmf(p, 5)
        assert f.sum() == 32
        assert f.min() >= 1
        np.testing.assert_allclose(_cost(p, f), best, atol=1e-9)


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


def test_golden_bytes():
    """The serialised form is part of every stream's identity: it must not drift."""
    tables = from_pmfs([[0.5, 0.25, 0.25], [0.9, 0.1]], [-1, 0], [0.0, 0.5], 4)
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
    rows = [np.asarray([0.5, 0.5])] * 3
    blob = bytearray(from_pmfs(rows, np.zeros(3), np.zeros(3)).to_bytes())
    precise = bytes(blob[:4]) + bytes([40]) + bytes(blob[5:])
    with pytest.raises(errors.CorruptStreamError, match="precision 40"):
        CdfTables.from_bytes(precise)
    wide = bytes(blob[:5]) + (100_000).to_bytes(4, "little") + (1 << 16).to_bytes(4, "little")
    with pytest.raises(errors.CorruptStreamError, match="100000 channels"):
        CdfTables.from_bytes(wide + bytes(100))
