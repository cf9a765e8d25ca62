"""Levels of tokens: plain average pooling, or a feature pyramid with a top-down path.

The pyramid (Lin et al., 2017, arXiv:1612.03144) of tokens x, pooled(x, l) by 2^l:

    lateral_l = norm(linear(pooled(x, l)))
    out_top   = lateral_top
    out_l     = fuse(lateral_l, norm(linear(upsample(out_{l+1}))))

and a last linear layer and norm bring each level to the width of the encoder. Without the pyramid,
that last layer runs on x and its output is pooled.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcomp.models.hjepa_config import HJEPAConfig
from jaxcomp.models.token_pooling import (
    Grid,
    pool,
    pool_mask,
    pooled_grid,
    upsample,
    upsampling,
)
from jaxcomp.models.transformer import dense, layer_norm
from jaxcomp.types import Array

EPSILON = 1e-5
Level = tuple[Array, Array | None]  # tokens [B, N_l, D], bool [B, N_l] or None for all


class LinearNorm(nn.Module):
    """A linear layer and a layer normalisation."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] to [..., features]."""
        x = dense(self.features, self.dtype, "linear")(x)
        return layer_norm(EPSILON, self.dtype, "norm")(x)


class LearnedUpsample(nn.Module):
    """A transposed convolution with stride and kernel 2 (2 x 2 on a grid)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: int, grids: tuple[Grid, Grid]) -> Array:
        """[B, M, D] to [B, size, D]; a dropped remainder repeats the last token of its axis."""
        b, m, d = x.shape
        small, large = grids
        if small is None or large is None:
            y = dense(2 * d, self.dtype, "linear")(x).reshape(b, 2 * m, d)
            return y[:, jnp.minimum(jnp.arange(size), 2 * m - 1)]
        y = dense(4 * d, self.dtype, "linear")(x).reshape(b, *small, 2, 2, d)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * small[0], 2 * small[1], d)
        rows, columns = (
            jnp.minimum(jnp.arange(n), 2 * k - 1) for n, k in zip(large, small, strict=True)
        )
        return y[:, rows][:, :, columns].reshape(b, size, d)


class CrossAttention(nn.Module):
    """Fusion by attention: each fine token asks all coarse ones (residual)."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, coarse: Array, valid: Array | None) -> Array:
        """[B, N, D] and [B, M, D] with bool [B, M] to [B, N, D]."""
        b, _, d = x.shape
        shape = (b, -1, self.heads, d // self.heads)
        q = dense(d, self.dtype, "query")(x).reshape(shape)
        k = dense(d, self.dtype, "key")(coarse).reshape(shape)
        v = dense(d, self.dtype, "value")(coarse).reshape(shape)
        mask = None if valid is None else valid[:, None, None, :]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape)
        return x + dense(d, self.dtype, "out")(y)


class TokenPyramid(nn.Module):
    """All levels of a set of tokens, each [B, N_l, width]."""

    cfg: HJEPAConfig

    @nn.compact
    def __call__(self, x: Array, valid: Array | None, grid: Grid) -> list[Level]:
        """Computes the levels, finest first.

        Args:
          x: [B, N, D].
          valid: bool [B, N]; what is not valid changes no valid output (but in compat mode it
            does). None for all.
          grid: (rows, columns) of the tokens if they are a whole grid and pooling is "2d".

        Returns:
          Tokens and their validity by level.
        """
        cfg = self.cfg
        dtype = jnp.dtype(cfg.encoder.dtype)
        used = None if cfg.compat else valid  # the original pools padding like anything else
        levels = range(cfg.num_hierarchies)
        masks = [None if valid is None else pool_mask(valid, grid, 2**i) for i in levels]
        project = [LinearNorm(cfg.width, dtype, name=f"project{i}") for i in levels]
        if not cfg.use_fpn:
            outs = [pool(project[i](x), used, grid, 2**i) for i in levels]
            return list(zip(outs, masks, strict=True))
        outs = self._fused(x, used, grid, masks)
        return [(project[i](outs[i]), masks[i]) for i in levels]

    def _fused(
        self, x: Array, valid: Array | None, grid: Grid, masks: list[Array | None]
    ) -> list[Array]:
        cfg, dtype, levels = self.cfg, jnp.dtype(self.cfg.encoder.dtype), len(masks)
        outs = []
        for i, features in enumerate(cfg.level_dims):
            lateral = LinearNorm(features, dtype, name=f"lateral{i}")
            outs.append(lateral(pool(x, valid, grid, 2**i)))
        for i in reversed(range(levels - 1)):
            coarse_valid = None if cfg.compat else masks[i + 1]
            outs[i] = self._fuse(i, outs, coarse_valid, grid)
        if cfg.fpn_bottom_up:
            for i in range(1, levels):
                fine_valid = None if cfg.compat else masks[i - 1]
                outs[i] = self._bottom_up(i, outs, fine_valid, pooled_grid(grid, 2 ** (i - 1)))
        return outs

    def _fuse(self, i: int, outs: list[Array], valid: Array | None, grid: Grid) -> Array:
        """Level i with what level i + 1 has to say."""
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.encoder.dtype)
        lateral, coarse = outs[i], outs[i + 1]
        features = lateral.shape[-1]
        down = LinearNorm(features, dtype, name=f"top_down{i}")
        if cfg.fpn_fusion_method == "attention":
            fusion = CrossAttention(cfg.fusion_heads(i), dtype, name=f"fusion{i}")
            return fusion(lateral, down(coarse), valid)
        top_down = down(self._upsample(i, coarse, valid, lateral.shape[1], grid))
        if cfg.fpn_fusion_method == "add":
            return lateral + top_down
        both = jnp.concatenate([lateral, top_down], -1)
        return nn.relu(LinearNorm(features, dtype, name=f"fusion{i}")(both))

    def _upsample(self, i: int, coarse: Array, valid: Array | None, size: int, grid: Grid) -> Array:
        cfg = self.cfg
        grids = (pooled_grid(grid, 2 ** (i + 1)), pooled_grid(grid, 2**i))
        if cfg.fpn_upsampling == "learned":
            known = coarse if valid is None else coarse * valid[..., None].astype(coarse.dtype)
            layer = LearnedUpsample(jnp.dtype(cfg.encoder.dtype), name=f"upsample{i}")
            return layer(known, size, grids)
        if coarse.shape[1] == size and grid is None:
            return coarse
        return upsample(coarse, valid, upsampling(coarse.shape[1], size, grids, cfg.compat))

    def _bottom_up(self, i: int, outs: list[Array], valid: Array | None, grid: Grid) -> Array:
        """Level i with what the finished level i - 1 has to say (Liu et al., 2018, PANet)."""
        layer = LinearNorm(
            outs[i].shape[-1], jnp.dtype(self.cfg.encoder.dtype), name=f"bottom_up{i}"
        )
        fine = pool(outs[i - 1], valid, grid, 2)[:, : outs[i].shape[1]]
        return outs[i] + layer(fine)
