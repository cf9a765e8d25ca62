"""Generalised divisive normalisation, forward and inverse (Balle et al. 2016, arXiv:1511.06281).

    GDN    y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)
    IGDN   y_i = x_i * sqrt(beta_i + sum_j gamma_ij x_j^2)

beta and gamma must not become negative. They are stored as s with the effective value
max(s, bound)^2 - pedestal, where pedestal = 2^-36 keeps the slope at zero away from zero. The
maximum lets a gradient through that would raise s (`lower_bound`), so a value at its bound is not
stuck. Everything is computed in float32, whatever the dtype of the features: the sum of squares
overflows float16 and loses its small terms in bfloat16.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

PEDESTAL = 2.0**-36
BETA_MIN = 1e-6


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def lower_bound(x: Array, bound: float) -> Array:
    """max(x, bound), whose gradient also passes below the bound where it would raise x.

    Args:
      x: float array of any shape.
      bound: a constant.

    Returns:
      max(x, bound). A descent step raises x when its gradient is negative; such gradients pass.
    """
    return jnp.maximum(x, jnp.asarray(bound, x.dtype))


def _lower_bound_forward(x: Array, bound: float) -> tuple[Array, Array]:
    return lower_bound(x, bound), x >= jnp.asarray(bound, x.dtype)


def _lower_bound_backward(bound: float, inside: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(inside | (gradient < 0), gradient, 0),)


lower_bound.defvjp(_lower_bound_forward, _lower_bound_backward)


def to_stored(value: Array) -> Array:
    """The stored form of a non-negative value: sqrt(value + pedestal)."""
    return jnp.sqrt(value + PEDESTAL)


def from_stored(stored: Array, minimum: float) -> Array:
    """The effective value of a stored one, at least `minimum`: max(s, bound)^2 - pedestal."""
    return lower_bound(stored, (minimum + PEDESTAL) ** 0.5) ** 2 - PEDESTAL


def gdn(x: Array, beta: Array, gamma: Array, *, inverse: bool = False) -> Array:
    """Normalises each channel by a pooled magnitude of all channels.

    Args:
      x: [..., C], any float dtype; computed in float32.
      beta: [C] float32, effective (not stored) values.
      gamma: [C, C] float32, gamma[i, j] weighs channel j in the norm of channel i.
      inverse: multiply instead of divide.

    Returns:
      [..., C] of the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    pooled = lax.dot_general(wide * wide, gamma, (((x.ndim - 1,), (1,)), ((), ())))
    norm = pooled + beta.reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * (jnp.sqrt(norm) if inverse else lax.rsqrt(norm))).astype(x.dtype)


class GDN(nn.Module):
    """`gdn` with trainable beta (initially 1) and gamma (initially 0.1 I), both stored forms.

    Attributes:
      inverse: the decoder's variant.
    """

    inverse: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] to [..., C]."""
        channels = x.shape[-1]
        beta = self.param("beta", lambda _: to_stored(jnp.ones(channels)))
        gamma = self.param("gamma", lambda _: to_stored(0.1 * jnp.eye(channels)))
        return gdn(x, from_stored(beta, BETA_MIN), from_stored(gamma, 0.0), inverse=self.inverse)
