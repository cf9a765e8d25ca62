"""Rounding and its stand-ins in training: one function per meaning.

    training, rate       y + U(-1/2, 1/2)             `quantise_noise`  (Balle 2017, eq. 9)
    training, decoder    round, gradient of identity  `quantise_ste`    (Theis 2017, sec. 2.1)
    evaluation, coding   round(y - median) + median   `quantise_round`  (CompressAI convention)

Halves go to the even integer, as in numpy and PyTorch. The noise ignores the median: a uniform
window of width one is the same whichever grid it stands for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def quantise_noise(y: Array, rng: Array) -> Array:
    """Adds uniform noise of width one, the differentiable model of rounding (arXiv:1611.01704).

    Args:
      y: latents of any shape, float.
      rng: a key, used once.

    Returns:
      y + U(-1/2, 1/2), same shape and dtype.
    """
    return y + jax.random.uniform(rng, y.shape, y.dtype, -0.5, 0.5)


def quantise_round(y: Array, median: Array) -> Array:
    """Rounds to the grid of integers shifted by the median of each channel.

    Args:
      y: [..., M] latents.
      median: [M]; the grid passes through it, so that the likeliest value costs least.

    Returns:
      [..., M] values round(y - median) + median. The gradient is zero.
    """
    centre = median.reshape((1,) * (y.ndim - 1) + (-1,))
    return jnp.round(y - centre) + centre


def quantise_ste(y: Array, median: Array) -> Array:
    """`quantise_round` forwards, the identity backwards (straight-through, arXiv:1703.00395)."""
    return y + jax.lax.stop_gradient(quantise_round(y, median) - y)


def symbols(y: Array, median: Array) -> Array:
    """The integers that are coded: round(y - median) as int32, [..., M]."""
    centre = median.reshape((1,) * (y.ndim - 1) + (-1,))
    limit = 2.0**30  # keeps an absurd latent inside int32 instead of wrapping it around
    return jnp.clip(jnp.round(y - centre), -limit, limit).astype(jnp.int32)
