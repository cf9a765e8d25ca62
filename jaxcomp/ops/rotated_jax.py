"""`jaxcomp.ops.rotated` inside jit: IoU and suppression of rotated rectangles, on fixed shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcomp.types import Array


def corners(boxes: Array) -> Array:
    """Corners of rectangles (x, y, a, b, angle), counterclockwise, [..., 5] -> [..., 4, 2]."""
    signs = jnp.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], boxes.dtype)
    cos, sin = jnp.cos(boxes[..., None, 4]), jnp.sin(boxes[..., None, 4])
    half = 0.5 * boxes[..., None, 2:4] * signs.reshape((1,) * (boxes.ndim - 1) + (4, 2))
    a, b = half[..., 0], half[..., 1]
    return boxes[..., None, :2] + jnp.stack([cos * a + sin * b, cos * b - sin * a], -1)


def area(boxes: Array) -> Array:
    """Areas, [..., 5] -> [...]; a rectangle without a positive size is empty."""
    size = jnp.maximum(boxes[..., 2:4], 0.0)
    return size[..., 0] * size[..., 1]


def intersection_area(a: Array, b: Array) -> Array:
    """Area that each rectangle of `a` shares with that of `b`; both [..., 5], the same shape.

    As in `rotated.intersection_area`: the outline of `b` in the frame of `a`, with crossings added
    and coordinates clamped. Only differences of centres enter, so that float32 does.
    """
    cos, sin = jnp.cos(a[..., 4]), jnp.sin(a[..., 4])
    x, y = b[..., 0] - a[..., 0], b[..., 1] - a[..., 1]
    centre = jnp.stack([cos * x - sin * y, sin * x + cos * y], -1)
    turn = b[..., 4:] - a[..., 4:]
    outline = corners(jnp.concatenate([centre, b[..., 2:4], turn], -1))
    for axis in (0, 1):
        outline = _clamp(outline, axis, 0.5 * a[..., 2 + axis, None])
    x, y = outline[..., 0], outline[..., 1]
    doubled = (x * jnp.roll(y, -1, -1) - jnp.roll(x, -1, -1) * y).sum(-1)
    full = (area(a) > 0) & (area(b) > 0)
    return jnp.where(full, jnp.maximum(0.5 * doubled, 0.0), 0.0)


def _clamp(outline: Array, axis: int, half: Array) -> Array:
    """[..., P, 2] -> [..., 3 P, 2]: crossings with +-half added, then the coordinate clamped."""
    step = jnp.roll(outline, -1, -2) - outline
    along = jnp.where(step[..., axis] == 0.0, 1.0, step[..., axis])  # such an edge crosses nothing
    first = jnp.clip((half - outline[..., axis]) / along, 0.0, 1.0)
    second = jnp.clip((-half - outline[..., axis]) / along, 0.0, 1.0)
    times = jnp.stack(
        [jnp.zeros_like(first), jnp.minimum(first, second), jnp.maximum(first, second)], -1
    )
    path = outline[..., None, :] + times[..., None] * step[..., None, :]
    path = path.reshape(*outline.shape[:-2], 3 * outline.shape[-2], 2)
    clamped = jnp.clip(path[..., axis], -half, half)
    return path.at[..., axis].set(clamped)


def iou(a: Array, b: Array) -> Array:
    """Intersection over union, both [..., 5] of the same shape -> [...]; 0 where one is empty."""
    shared = intersection_area(a, b)
    return shared / jnp.maximum(area(a) + area(b) - shared, 1e-8)


def iou_matrix(a: Array, b: Array) -> Array:
    """IoU of every pair, [N, 5] x [M, 5] -> [N, M]."""
    shape = (a.shape[0], b.shape[0], 5)
    return iou(jnp.broadcast_to(a[:, None], shape), jnp.broadcast_to(b[None], shape))


def nms_keep(overlap: Array, order: Array, valid: Array, iou_threshold: float) -> Array:
    """Greedy suppression.

    Args:
      overlap: [N, N] IoU.
      order: [N] int, the boxes from the best to the worst.
      valid: [N] bool; others neither suppress nor are kept.
      iou_threshold: a box is dropped when a better kept one overlaps it by more than this.

    Returns:
      [N] bool in the boxes' own order.
    """
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))
    beats = (overlap > iou_threshold) & (rank[:, None] < rank[None, :])

    def visit(i: Array, keep: Array) -> Array:
        row = order[i]
        return keep & ~(beats[row] & keep[row])

    return jax.lax.fori_loop(0, order.shape[0], visit, valid)
