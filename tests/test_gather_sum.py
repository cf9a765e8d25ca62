"""Weighted sums of table rows: both forms against numpy, gradients, several devices."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcomp.models.featherface_layers import ConvNorm
from jaxcomp.ops import gather_sum as module
from jaxcomp.ops import host_calls
from jaxcomp.ops.gather_sum import gather_sum

FORMS = [True, False]


def drawn(batch=4, places=7, channels=5, rows=3, reads=6, seed=0):
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((batch, places, channels)).astype(np.float32)
    index = rng.integers(0, places, (batch, rows, reads)).astype(np.int32)
    return table, index, rng.standard_normal((batch, rows, reads)).astype(np.float32)


def expected(table, index, weights):
    rows = table[np.arange(len(table))[:, None, None], index]
    return np.einsum("brkm,brk->brm", rows, weights)


def gradients(native, table, index, weights):
    def total(table, weights):
        return jnp.sin(gather_sum(table, index, weights, native=native)).sum()

    return jax.jit(jax.grad(total, (0, 1)))(table, weights)


def header_version():
    """(major, minor) of the interface that this jaxlib offers, from the header it ships."""
    file = Path(jaxlib.__file__).parent / "include/xla/ffi/api/c_api.h"
    found = re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", file.read_text())
    return tuple(map(int, found))


def test_the_loops_can_be_called_where_the_interface_is_the_one_they_know():
    assert module.registered() or header_version() != host_calls.VERSION


def test_another_interface_is_refused_and_xla_does_the_work(monkeypatch):
    """The handler tells a version that no XLA has: registration fails instead of guessing."""

    def handler(frame):
        extension = host_calls._words(host_calls._words(frame, 2)[1], 4)
        host_calls._words(extension[3], 4)[3] = 99
        return 0

    with pytest.raises(Exception, match="version"):
        host_calls.register("jaxcomp_test_of_another_version", handler)
    monkeypatch.setattr(module, "registered", lambda: None)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    arrays = drawn()
    np.testing.assert_allclose(gather_sum(*arrays), expected(*arrays), atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_only_training_calls_foreign_loops(monkeypatch, train):
    """An exported program must not need them."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    layer = ConvNorm(8, deformable=True)
    x = jnp.zeros((1, 4, 4, 8))
    variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, False))
    variables = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), variables)

    def run(x):
        return layer.apply(variables, x, train, mutable=["batch_stats"])[0]

    assert ("ffi_call" in str(jax.make_jaxpr(run)(x))) == (train and bool(module.registered()))


@pytest.mark.parametrize("native", FORMS)
@pytest.mark.parametrize("channels", [1, 14, 28])
def test_it_is_its_definition(native, channels):
    arrays = drawn(channels=channels)
    found = jax.jit(lambda *a: gather_sum(*a, native=native))(*arrays)
    np.testing.assert_allclose(found, expected(*arrays), atol=1e-5)


def test_gradients_of_both_forms_agree():
    """Rows that are read several times collect all their gradients."""
    arrays = drawn(places=2, reads=9)
    for a, b in zip(*(gradients(native, *arrays) for native in FORMS), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("native", FORMS)
def test_no_index_reaches_other_memory(native):
    table, index, weights = drawn()
    index[:] = np.random.default_rng(1).choice([-(2**31), -1, 7, 2**31 - 1], index.shape)
    for found in (gather_sum(jnp.asarray(table), index, weights, native=native),
                  *gradients(native, table, index, weights)):  # fmt: skip
        assert np.isfinite(found).all()


def test_other_types_take_the_form_of_the_backend():
    table, index, weights = drawn()
    halves = gather_sum(jnp.asarray(table, jnp.bfloat16), index, jnp.asarray(weights, jnp.bfloat16))
    assert halves.dtype == jnp.bfloat16
    np.testing.assert_allclose(halves.astype(np.float32), expected(table, index, weights), atol=0.2)


@pytest.mark.parametrize("native", FORMS)
def test_arrays_on_several_devices(native):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arrays = drawn()
    spread = [jax.device_put(x, rows) for x in arrays]
    found = jax.jit(lambda *a: gather_sum(*a, native=native))(*spread)
    np.testing.assert_allclose(found, expected(*arrays), atol=1e-5)
    for a, b in zip(gradients(native, *spread), gradients(True, *arrays), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
