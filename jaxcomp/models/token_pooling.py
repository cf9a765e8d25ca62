"""Average pooling and linear interpolation of token sequences and grids, with validity.

Without a `grid`, tokens are a sequence in raster order; with one (rows, columns), squares of
neighbours are pooled. A mask is pooled as a mask: a window counts where more than half of it does.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from jaxcomp.types import Array

Grid = tuple[int, int] | None


def pooled_grid(grid: Grid, factor: int) -> Grid:
    """(rows, columns) after pooling; a remainder is dropped."""
    return None if grid is None else (grid[0] // factor, grid[1] // factor)


def pooled_length(tokens: int, grid: Grid, factor: int) -> int:
    """Tokens after pooling; a remainder is dropped."""
    small = pooled_grid(grid, factor)
    return tokens // factor if small is None else small[0] * small[1]


def windows(x: Array, grid: Grid, factor: int) -> Array:
    """[B, N, D] to the members of every window, [B, N', factor or factor^2, D]."""
    b, n, d = x.shape
    if grid is None:
        count = n // factor
        return x[:, : count * factor].reshape(b, count, factor, d)
    rows, columns = grid[0] // factor, grid[1] // factor
    x = x.reshape(b, *grid, d)[:, : rows * factor, : columns * factor]
    x = x.reshape(b, rows, factor, columns, factor, d).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * columns, factor * factor, d)


def pool_mask(valid: Array, grid: Grid, factor: int) -> Array:
    """Pools bool [B, N] to bool [B, N']: valid where more than half of a window is."""
    return windows(valid[..., None].astype(jnp.float32), grid, factor).mean((2, 3)) > 0.5


def pool(x: Array, valid: Array | None, grid: Grid, factor: int) -> Array:
    """Averages windows of `factor` tokens (`factor` x `factor` with a grid).

    Args:
      x: [B, N, D].
      valid: bool [B, N], the tokens that count; a window without one gives zeros. None for all.
      grid: (rows, columns) of the tokens, None for a sequence.
      factor: of each axis; 1 changes nothing.

    Returns:
      [B, N', D]; the remainder of an axis is dropped.
    """
    if factor == 1:
        return x
    if valid is None:
        return windows(x, grid, factor).mean(2)
    weight = windows(valid[..., None].astype(x.dtype), grid, factor)
    total = (windows(x, grid, factor) * weight).sum(2)
    return total / jnp.maximum(weight.sum(2), 1)


@functools.lru_cache(maxsize=64)
def interpolation(low: int, high: int, ratio: float) -> np.ndarray:
    """Weights float32 [high, low] of half-pixel linear interpolation.

    Position i reads at (i + 1/2) / ratio - 1/2, clamped to the ends; with ratio = high / low this
    is `torch.nn.functional.interpolate(mode="linear", align_corners=False)`.
    """
    source = np.maximum((np.arange(high) + 0.5) / ratio - 0.5, 0)
    first = np.minimum(np.floor(source).astype(int), low - 1)
    second = np.minimum(first + 1, low - 1)
    share = np.where(source > low - 1, 0.0, source - first)
    weights = np.zeros((high, low), np.float64)
    np.add.at(weights, (np.arange(high), first), 1 - share)
    np.add.at(weights, (np.arange(high), second), share)
    return weights.astype(np.float32)


@functools.lru_cache(maxsize=64)
def upsampling(low: int, high: int, grids: tuple[Grid, Grid], stretched: bool) -> np.ndarray:
    """Weights float32 [high, low] from a level to the finer one.

    Args:
      low: tokens of the coarser level.
      high: tokens of the finer one.
      grids: of the two levels, (coarser, finer), or (None, None).
      stretched: to the ends of the axis, as the original does. Otherwise a coarse token lies over
        the two (or four) that were pooled into it, however long the axis is.
    """
    small, large = grids
    if small is None or large is None:
        return interpolation(low, high, high / low if stretched else 2.0)
    axes = [
        interpolation(a, b, b / a if stretched else 2.0) for a, b in zip(small, large, strict=True)
    ]
    return np.kron(*axes)


def upsample(x: Array, valid: Array | None, weights: np.ndarray) -> Array:
    """Interpolates [B, M, D] to [B, N, D] with weights [N, M].

    Tokens that are not `valid` (bool [B, M]) have no part in it: the weights of the others are
    scaled up, and where there is none the result is zeros.
    """
    w = jnp.asarray(weights, x.dtype)
    if valid is None:
        return jnp.einsum("nm,bmd->bnd", w, x)
    counts = valid.astype(x.dtype)
    total = jnp.einsum("nm,bmd->bnd", w, x * counts[..., None])
    share = jnp.einsum("nm,bm->bn", w, counts)[..., None]
    return total / jnp.where(share > 1e-6, share, 1)


def first_tokens(wanted: Array, room: int) -> tuple[Array, Array]:
    """Indices of the wanted tokens in raster order, on a static length.

    Args:
      wanted: bool [B, N].
      room: length; further wanted tokens are left out.

    Returns:
      (int32 [B, room], 0 in the padding; bool [B, room], which are real).
    """
    order = jnp.argsort(~wanted, axis=1, stable=True)[:, :room]
    valid = jnp.arange(room)[None] < wanted.sum(1, keepdims=True)
    return jnp.where(valid, order, 0).astype(jnp.int32), valid


def onto_grid(x: Array, wanted: Array) -> tuple[Array, Array]:
    """Puts what `first_tokens` listed back in its places.

    Args:
      x: [B, K, D], one row for each of the first K wanted tokens.
      wanted: bool [B, N].

    Returns:
      ([B, N, D], zeros elsewhere; bool [B, N], where there is a row).
    """
    rank = jnp.cumsum(wanted, 1) - 1
    there = wanted & (rank < x.shape[1])
    index = jnp.clip(rank, 0, x.shape[1] - 1)
    rows = jnp.take_along_axis(x, index[..., None], 1)
    return jnp.where(there[..., None], rows, 0), there
