"""How many directions a set of features fills: what tells a collapse before accuracy does."""

from __future__ import annotations

import jax.numpy as jnp

from jaxcomp.types import Array


def entropy_rank(singular: Array) -> Array:
    """Exponential of the entropy of singular values [K] divided by their sum, from 1 to K.

    On features as they are this is RankMe (Garrido et al., 2023, arXiv:2210.02885, equation 2); on
    centred ones the effective rank (Roy and Vetterli, 2007). Zeros give 0.
    """
    total = jnp.sum(singular)
    p = singular / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)


def feature_ranks(x: Array, weights: Array | None = None) -> dict[str, Array]:
    """Spread of features.

    Args:
      x: [N, D].
      weights: [N], 1 for rows that count and 0 for others; None for all.

    Returns:
      {"std": mean over channels of the standard deviation over rows, "rankme", "effective_rank"};
      0 without a row.
    """
    x = x.astype(jnp.float32)
    w = jnp.ones(x.shape[0]) if weights is None else weights.astype(jnp.float32)
    count = jnp.maximum(w.sum(), 1.0)
    column = w[:, None]
    mean = (x * column).sum(0, keepdims=True) / count
    centred = (x - mean) * column
    std = jnp.sqrt(jnp.square(centred).sum(0) / count).mean()
    values = {
        name: entropy_rank(jnp.linalg.svd(y, compute_uv=False))
        for name, y in (("rankme", x * column), ("effective_rank", centred))
    }
    return {"std": std, **values}
