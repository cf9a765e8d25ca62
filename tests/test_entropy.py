"""The factorised density on cases with known answers, and the quantisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.codecs import entropy, quantise


@pytest.fixture
def density():
    prior = entropy.FactorisedPrior(3)
    variables = prior.init(jax.random.key(0), jnp.zeros((1, 3)), method="bits")
    return variables["params"]


def test_initial_network_has_slope_a_tenth(density):
    zeroed = {k: jnp.zeros_like(v) if "bias" in k else v for k, v in density.items()}
    v = jnp.tile(jnp.asarray([[-30.0], [0.0], [7.0]]), (1, 3))
    np.testing.assert_allclose(entropy.cumulative_logits(zeroed, v), v / 10, atol=1e-5)
    y = jnp.tile(jnp.asarray([[0.0], [5.0], [10.0], [20.0]]), (1, 3))
    expected = np.array([0.02499479, 0.02349636, 0.01965972, 0.01050098])
    np.testing.assert_allclose(entropy.likelihood(zeroed, y)[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(entropy.bits(zeroed, y)[0], 5.322229, rtol=1e-5)


def test_probabilities_of_all_integers_sum_to_one(density):
    y = jnp.tile(jnp.arange(-400.0, 401.0)[:, None], (1, 3))
    np.testing.assert_allclose(entropy.probability(density, y).sum(0), 1.0, rtol=1e-5)


def test_quantiles_invert_the_distribution(density):
    solved = entropy.quantiles(density, 1e-3)
    reached = jax.nn.sigmoid(entropy.cumulative_logits(density, solved.T))
    np.testing.assert_allclose(reached.T, np.tile([1e-3, 0.5, 0.999], (3, 1)), rtol=2e-3)


def test_impossible_latents_cost_thirty_bits_and_pull_the_density_towards_them(density):
    far = jnp.full((1, 3), 1e5)
    np.testing.assert_allclose(entropy.bits(density, far), -np.log2(1e-9), rtol=1e-5)
    grads = jax.jit(jax.grad(lambda d: entropy.bits(d, far).sum()))(density)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_symmetric_point_has_its_full_probability():
    """At lower = -upper a sign() of their sum would be zero, and so would the probability."""
    prior = entropy.FactorisedPrior(1)
    params = prior.init(jax.random.key(0), jnp.zeros((1, 1)), method="bits")["params"]
    params = {k: jnp.zeros_like(v) if "bias" in k else v for k, v in params.items()}
    assert float(entropy.likelihood(params, jnp.zeros((1, 1)))[0, 0]) > 0.02


def test_noise_is_uniform_and_seeded():
    y = jnp.zeros((1000, 4))
    a, b = (quantise.quantise_noise(y, jax.random.key(s)) for s in (0, 1))
    assert float(jnp.abs(a).max()) <= 0.5
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a.var(), 1 / 12, rtol=0.05)


def test_rounding_is_around_the_median_with_halves_to_even():
    y, median = jnp.asarray([[0.5, 1.5, 2.3]]), jnp.asarray([0.0, 0.0, 0.25])
    np.testing.assert_allclose(quantise.quantise_round(y, median), [[0.0, 2.0, 2.25]])
    np.testing.assert_array_equal(quantise.symbols(y, median), [[0, 2, 2]])
    gradient = jax.grad(lambda v: quantise.quantise_ste(v, median).sum())(y)
    np.testing.assert_array_equal(gradient, 1.0)
    np.testing.assert_allclose(quantise.quantise_ste(y, median), [[0.0, 2.0, 2.25]])
    assert (jax.grad(lambda v: quantise.quantise_round(v, median).sum())(y) == 0).all()
