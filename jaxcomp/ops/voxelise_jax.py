"""`jaxcomp.ops.voxelise` inside jit: the same pillars, points and counts, on static shapes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.ops.voxelise import Dropped, PillarGrid, Pillars
from jaxcomp.types import Array


@functools.partial(jax.jit, static_argnames=("grid", "max_points", "max_pillars"))
def voxelise(
    points: Array, count: Array, *, grid: PillarGrid, max_points: int, max_pillars: int
) -> tuple[Pillars, Dropped]:
    """Pillars of one sweep; `jax.vmap` makes it several.

    Args:
      points: float32 [N, 4] x, y, z, intensity, padded.
      count: int scalar, how many of them are real.
      grid: the cells.
      max_points: that a pillar keeps.
      max_pillars: that are kept, P.

    Returns:
      (pillars with N points and P pillars, int32 counts of what was dropped).
    """
    total = points.shape[0]
    real = jnp.arange(total) < count
    finite = jnp.isfinite(points).all(1)
    cell, inside = _cells(points, grid)
    inside &= real & finite
    cell = jnp.where(inside, cell, grid.cells)

    index = jnp.arange(total, dtype=jnp.int32)
    first = jnp.full(grid.cells + 1, total, jnp.int32).at[cell].min(index)
    opens = inside & (first[cell] == index)
    order_of_opening = jnp.cumsum(opens, dtype=jnp.int32) - 1
    number = order_of_opening[jnp.minimum(first[cell], total - 1)] if total else index
    kept = inside & (number < max_pillars)
    number = jnp.where(kept, number, max_pillars)

    order = jnp.argsort(number, stable=True)
    number, points = number[order], points[order]
    every = jnp.zeros(max_pillars, jnp.int32).at[number].add(1, mode="drop")
    start = jnp.cumsum(every) - every
    slot = index - start.at[number].get(mode="fill", fill_value=0)
    stays = (number < max_pillars) & (slot < max_points)
    # The first points of each pillar move together, over those that are dropped.
    place = jnp.where(stays, jnp.cumsum(stays) - 1, total)
    pillars = Pillars(
        points=jnp.zeros_like(points).at[place].set(points, mode="drop"),
        pillar=jnp.full(total, max_pillars, jnp.int32).at[place].set(number, mode="drop"),
        cells=jnp.full(max_pillars, grid.cells, jnp.int32)
        .at[jnp.where(opens, order_of_opening, max_pillars)]
        .set(cell, mode="drop"),
        counts=jnp.minimum(every, max_points),
    )
    overflow = (inside & ~kept).sum()
    dropped = Dropped(
        bad=(real & ~finite).sum(),
        outside=(real & finite & ~inside).sum(),
        crowded=kept.sum() - stays.sum(),
        overflow=overflow,
        pillars=jnp.maximum(opens.sum() - max_pillars, 0),
    )
    return pillars, dropped


def _cells(points: Array, grid: PillarGrid) -> tuple[Array, Array]:
    """(cell [N], inside [N]) of points; the cell means nothing outside."""
    low, high, size = (np.array([v], np.float32) for v in (grid.low, grid.high, grid.size))
    where = points[:, :3]
    inside = ((where > low) & (where < high)).all(1)
    rows, columns = grid.shape
    # Spread out and hidden from the compiler, which else multiplies by 1 / size, and that rounds
    # differently from the host's division.
    size = jax.lax.optimization_barrier(jnp.broadcast_to(size, where.shape))
    steps = jnp.floor((where - low) / size)
    steps = jnp.where(jnp.isfinite(steps), steps, -1.0).astype(jnp.int32)
    column, row = steps[:, 0], steps[:, 1]
    inside &= (column < columns) & (row < rows)
    return row * columns + column, inside
