"""Elementwise losses; the caller masks and reduces."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcomp.types import Array


def smooth_l1(error: Array, beta: float) -> Array:
    """Huber-like loss: quadratic below `beta`, linear above (Fast R-CNN, eq. 3, at beta = 1)."""
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def bernoulli_divergence(target: Array, found: Array) -> Array:
    """KL between the distributions of two logits, elementwise, in nats."""
    chance = jax.nn.sigmoid(target)
    positive = jax.nn.log_sigmoid(target) - jax.nn.log_sigmoid(found)
    negative = jax.nn.log_sigmoid(-target) - jax.nn.log_sigmoid(-found)
    return chance * positive + (1.0 - chance) * negative
