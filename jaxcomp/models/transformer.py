"""Pre-norm transformer blocks (Dosovitskiy et al., 2021, arXiv:2010.11929) and their options."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.types import Array

SMALL = 0.02
INIT = nn.initializers.truncated_normal(SMALL)
ROPE_BASE = 100.0


def layer_norm(epsilon: float, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    """Layer normalisation whose epsilon is never the library's default."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, name=name)


def dense(features: int, dtype: Any, name: str | None = None) -> nn.Dense:
    """A linear layer with a bias, truncated normal kernel."""
    return nn.Dense(features, dtype=dtype, kernel_init=INIT, name=name)


def rotary(x: Array, places: Array) -> Array:
    """Axial rotary position embedding (Heo et al., 2024, arXiv:2403.13298).

    Half of the channels turn with the row, half with the column, at frequencies
    100^(-i / (d / 4)). Products of queries and keys then depend on differences of places.

    Args:
      x: [B, N, H, d], d a multiple of 4.
      places: float32 [B or 1, N, 2], (row, column).

    Returns:
      As `x`.
    """
    quarter = x.shape[-1] // 4
    rates = jnp.asarray(ROPE_BASE ** (-np.arange(quarter) / quarter), jnp.float32)
    angles = places[..., None] * rates.reshape(1, 1, 1, -1)  # [B, N, 2, d / 4]
    angles = angles.reshape(*angles.shape[:2], 1, 2 * quarter)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention through `jax.nn.dot_product_attention`.

    Attributes:
      heads: that divide the width.
      dtype: compute type.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, valid: Array | None, places: Array | None) -> Array:
        """Mixes the tokens [B, N, D].

        Args:
          x: tokens.
          valid: bool [B, N], keys that count; None for all.
          places: [B or 1, N, 2] for rotary embedding; None for none.
        """
        width = x.shape[-1]
        # q, k and v are the outermost part of the outputs, then heads, then channels.
        qkv = dense(3 * width, self.dtype, "qkv")(x)
        qkv = qkv.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        if places is not None:
            q, k = rotary(q, places), rotary(k, places)
        mask = None if valid is None else valid[:, None, None, :]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return dense(width, self.dtype, "out")(y.reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers around the exact GELU.

    Attributes:
      hidden: width between them.
      dtype: compute type.
    """

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps each token [B, N, D] by itself."""
        hidden = nn.gelu(dense(self.hidden, self.dtype, "up")(x), approximate=False)
        return dense(x.shape[-1], self.dtype, "down")(hidden)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      heads: of the attention.
      hidden: width of the MLP.
      epsilon: of the layer normalisations.
      layer_scale: start of a learned gain of each branch (Touvron et al., 2021, arXiv:2103.17239);
        0 for none.
      drop_path: probability that a sample skips a branch in training (Huang et al., 2016,
        arXiv:1603.09382).
      dtype: compute type.
    """

    heads: int
    hidden: int
    epsilon: float
    layer_scale: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, valid: Array | None, places: Array | None, train: bool = False
    ) -> Array:
        """Tokens [B, N, D] to tokens; arguments as of `Attention`."""
        y = layer_norm(self.epsilon, self.dtype, "norm1")(x)
        y = Attention(self.heads, self.dtype, name="attention")(y, valid, places)
        x = x + self._branch(y, "scale1", train)
        y = layer_norm(self.epsilon, self.dtype, "norm2")(x)
        y = Mlp(self.hidden, self.dtype, name="mlp")(y)
        return x + self._branch(y, "scale2", train)

    def _branch(self, y: Array, name: str, train: bool) -> Array:
        if self.layer_scale:
            start = nn.initializers.constant(self.layer_scale)
            gain = self.param(name, start, (y.shape[-1],))
            y = y * gain.astype(y.dtype).reshape(1, 1, -1)
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)
        return drop(y) if self.drop_path else y


def make_blocks(
    depth: int, *, remat: bool = False, drop_path: float = 0.0, **options: Any
) -> list[Block]:
    """`depth` blocks.

    Args:
      depth: how many.
      remat: compute activations again in the backward pass instead of keeping them.
      drop_path: of the last block; the rate rises linearly from 0 at the first.
      **options: of `Block`.
    """
    kind = nn.remat(Block, static_argnums=(4,)) if remat else Block
    rates = np.linspace(0.0, drop_path, depth).tolist()
    return [kind(drop_path=rate, **options) for rate in rates]
