"""GDN: the formula, its inverse, orientation of gamma, and bounded parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.codecs import gdn


def _case():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    beta = rng.uniform(0.5, 1.5, 5).astype(np.float32)
    gamma = rng.uniform(0, 0.3, (5, 5)).astype(np.float32)
    return x, beta, gamma


@pytest.mark.parametrize("inverse", [False, True])
def test_is_the_formula(inverse):
    x, beta, gamma = _case()
    norm = np.sqrt(beta + np.einsum("ij,bhwj->bhwi", gamma, x**2))
    expected = x * norm if inverse else x / norm
    ours = gdn.gdn(*map(jnp.asarray, (x, beta, gamma)), inverse=inverse)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_initial_module_is_symmetric_and_nearly_the_identity_for_small_inputs():
    x = jnp.full((1, 1, 1, 3), 1e-3)
    for inverse in (False, True):
        module = gdn.GDN(inverse)
        y = module.apply(module.init(jax.random.key(0), x), x)
        np.testing.assert_allclose(y, x, rtol=1e-5)


def test_large_half_precision_inputs_do_not_overflow():
    x = jnp.full((1, 1, 1, 2), 3e4, jnp.float16)  # the square is not a float16
    y = gdn.gdn(x, jnp.ones(2), 0.1 * jnp.eye(2))
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(y, np.float32), 10**0.5, rtol=1e-3)


def test_a_parameter_at_its_bound_can_leave_it_upwards_only():
    stored = jnp.asarray([-1.0, 0.0])
    up = jax.grad(lambda s: -gdn.from_stored(s, 0.25).sum())(stored)
    down = jax.grad(lambda s: gdn.from_stored(s, 0.25).sum())(stored)
    assert (up < 0).all()
    np.testing.assert_array_equal(down, 0)
    np.testing.assert_allclose(gdn.from_stored(stored, 0.25), 0.25, rtol=1e-6)
    np.testing.assert_allclose(
        gdn.from_stored(gdn.to_stored(jnp.asarray(0.7)), 0.0), 0.7, rtol=1e-6
    )
