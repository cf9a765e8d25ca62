"""How the tokens of the target encoder are normalised before anything is predicted of them.

What a patch's own position says can be predicted from the position alone, and one fact about the
whole image from any patch of it. A small network learns these two first, and its tokens shrink to
them. "centred" and "whitened" take the first away; "whitened" also gives every direction of what is
left the same weight, so that predicting one of them well is not enough (whitened targets: Ermolov
et al., 2021, arXiv:2007.06346).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxcomp.types import Array

TARGET_NORMS = ("none", "token", "centred", "whitened")
EPSILON = 1e-6
SHRINKAGE = 0.01  # of the mean variance, added to each: directions of pure noise stay small


def normalised_targets(tokens: Array, how: str, real: Array | None = None) -> Array:
    """Normalises tokens [B, N, D] without learned parameters.

    Args:
      tokens: of whole images.
      how: "none"; "token": each token by its own mean and deviation, as I-JEPA does;
        "centred": minus the mean over images at its position, divided by each channel's deviation;
        "whitened": the same mean, then decorrelated over all tokens (ZCA) to unit variance.
      real: bool or float [B], the images that count for means and covariances; None for all.

    Returns:
      float32 [B, N, D]; for "none" the tokens as they are.
    """
    if how == "none":
        return tokens
    x = tokens.astype(jnp.float32)
    if how == "token":
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
    weight = jnp.ones(x.shape[0]) if real is None else real.astype(jnp.float32)
    weight = weight.reshape(-1, 1, 1)
    count = jnp.maximum(weight.sum(), 1.0)
    x = x - (weight * x).sum(0, keepdims=True) / count
    flat = (jnp.sqrt(weight) * x).reshape(-1, x.shape[-1])
    if how == "centred":
        variance = jnp.square(flat).sum(0) / (count * x.shape[1])
        return x / jnp.sqrt(variance + EPSILON).reshape(1, 1, -1)
    values, vectors = jnp.linalg.eigh(flat.T @ flat / (count * x.shape[1]))
    values = jnp.maximum(values, 0.0)
    values = values + SHRINKAGE * values.mean() + EPSILON
    return x @ ((vectors / jnp.sqrt(values).reshape(1, -1)) @ vectors.T)
