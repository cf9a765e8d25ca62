"""The fully factorised density of latents (Balle et al. 2018, arXiv:1802.01436, appendix 6.1).

Each channel has its own cumulative distribution c(v) = sigmoid(f(v)), where f is a monotone network
of layer sizes 1-3-3-3-3-1 per channel:

    x <- softplus(H) x + b,   then   x <- x + tanh(a) * tanh(x)   after all layers but the last.

A latent y quantised with a window of width one has the probability c(y + 1/2) - c(y - 1/2). It is
computed in float32 on the side of zero where both sigmoids are small (the "sign trick"), which
keeps its relative accuracy in both tails, and bounded below by 1e-9 so that its log is finite.

The rate needs no quantiles. They matter for coding: the median is the centre of the rounding grid,
and the tails say how long a table must be. Instead of training them beside the network (an
auxiliary loss with its own optimiser) they are solved from the density by bisection.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcomp.codecs.gdn import lower_bound

Array = jax.Array

FILTERS = (1, 3, 3, 3, 3, 1)
INIT_SCALE = 10.0
LIKELIHOOD_BOUND = 1e-9
LAYERS = len(FILTERS) - 1


def cumulative_logits(params: Mapping[str, Array], v: Array) -> Array:
    """f(v), the logit of the cumulative distribution of every channel.

    Args:
      params: `matrix_i` [M, out, in] for i = 0..4, `bias_i` [M, out], `factor_i` [M, out] for
        i = 0..3, all float32 and unconstrained.
      v: [..., M] float32.

    Returns:
      [..., M] float32, increasing in v.
    """
    # The three units of a layer are kept as separate arrays: elementwise code that fuses. Stacked
    # units (a contraction or a sum over an axis of three) run 5 to 10 times slower on CPU.
    units = [v]
    lead = (1,) * (v.ndim - 1)

    def spread(a: Array) -> Array:
        return a.reshape(*lead, -1)

    for layer in range(LAYERS):
        matrix = jax.nn.softplus(params[f"matrix_{layer}"])
        bias = params[f"bias_{layer}"]
        mixed = [
            sum(spread(matrix[:, k, j]) * unit for j, unit in enumerate(units)) + spread(bias[:, k])
            for k in range(FILTERS[layer + 1])
        ]
        if layer < LAYERS - 1:
            gate = jnp.tanh(params[f"factor_{layer}"])
            mixed = [x + spread(gate[:, k]) * jnp.tanh(x) for k, x in enumerate(mixed)]
        units = mixed
    return units[0]


def probability(params: Mapping[str, Array], y: Array) -> Array:
    """c(y + 1/2) - c(y - 1/2) in [0, 1], without the lower bound; [..., M] to [..., M] float32."""
    y = y.astype(jnp.float32)
    lower = cumulative_logits(params, y - 0.5)
    upper = cumulative_logits(params, y + 0.5)
    # Both arguments are flipped to the negative side. (A plain sign() gives p = 0 at l = -u.)
    flip = jax.lax.stop_gradient(jnp.where(lower + upper > 0, -1.0, 1.0))
    return jnp.abs(jax.nn.sigmoid(flip * upper) - jax.nn.sigmoid(flip * lower))


def likelihood(params: Mapping[str, Array], y: Array) -> Array:
    """`probability` bounded below by 1e-9, with the gradient that lets it grow again."""
    return lower_bound(probability(params, y), LIKELIHOOD_BOUND)


def bits(params: Mapping[str, Array], y: Array) -> Array:
    """Ideal code length -log2 p of (noisy or rounded) latents, in bits; [..., M] to [..., M]."""
    return -jnp.log2(likelihood(params, y))


@functools.partial(jax.jit, static_argnames=("steps",))
def quantiles(params: Mapping[str, Array], tail: Array | float, steps: int = 60) -> Array:
    """Solves c(v) = p for p = tail, 1/2 and 1 - tail by bisection.

    Args:
      params: as in `cumulative_logits`.
      tail: the probability left outside on each side, in (0, 1/2).
      steps: bisection steps; the bracket is the whole float range that the codec can produce.

    Returns:
      [M, 3] float32: lower quantile, median, upper quantile.
    """
    target = jnp.log(tail) - jnp.log1p(-tail)
    targets = jnp.stack([target, jnp.zeros_like(target), -target])[:, None]  # [3, 1]
    shape = (3, params["bias_0"].shape[0])

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = cumulative_logits(params, middle) < targets
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    start = (jnp.full(shape, -1e6, jnp.float32), jnp.full(shape, 1e6, jnp.float32))
    low, high = jax.lax.fori_loop(0, steps, halve, start)
    return (0.5 * (low + high)).T


class FactorisedPrior(nn.Module):
    """The density's parameters (58 per channel), and its quantiles as non-trained statistics.

    `stats/quantiles` [M, 1, 3] holds (lower, median, upper), initially (-10, 0, 10) as in
    CompressAI, whose count of 61 parameters per channel includes them. Only the median is used, as
    the centre of the rounding grid in evaluation and coding. Any centre is valid (the rate is that
    of the shifted grid); `factorised.refresh_quantiles` moves it to the density's true median.

    Attributes:
      channels: M.
    """

    channels: int

    def setup(self) -> None:
        """Creates the density's parameters and the quantiles."""
        scale = INIT_SCALE ** (1 / LAYERS)
        density = {}
        for i, (wide_in, wide_out) in enumerate(itertools.pairwise(FILTERS)):
            value = math.log(math.expm1(1 / (scale * wide_out)))
            density[f"matrix_{i}"] = self.param(
                f"matrix_{i}", nn.initializers.constant(value), (self.channels, wide_out, wide_in)
            )
            density[f"bias_{i}"] = self.param(
                f"bias_{i}", _centred_uniform, (self.channels, wide_out)
            )
            if i < LAYERS - 1:
                density[f"factor_{i}"] = self.param(
                    f"factor_{i}", nn.initializers.zeros, (self.channels, wide_out)
                )
        self.density = density
        self.quantiles = self.variable("stats", "quantiles", initial_quantiles, self.channels)

    def bits(self, y: Array) -> Array:
        """[..., M] latents to [..., M] bits."""
        return bits(self.density, y)

    def median(self) -> Array:
        """[M] float32, the centre of the rounding grid."""
        return self.quantiles.value[:, 0, 1]


def initial_quantiles(channels: int) -> Array:
    """[M, 1, 3] float32 filled with (-10, 0, 10)."""
    return jnp.tile(jnp.asarray([-10.0, 0.0, 10.0], jnp.float32), (channels, 1, 1))


def _centred_uniform(rng: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(rng, shape, jnp.float32, -0.5, 0.5)
