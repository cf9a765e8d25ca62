"""Weighted sums of table rows: both forms against numpy, gradients, several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcomp.ops import gather_sum as module
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


def test_the_loops_can_be_called_here():
    assert module.registered()


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
