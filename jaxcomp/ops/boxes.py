"""Boxes as [..., 4] float arrays (x1, y1, x2, y2) in pixels, without the "+1 pixel" convention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxcomp.types import Array

# Largest log size change a coder may predict (a factor of 62.5), so that exp() stays finite.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes: Array) -> Array:
    """Areas in square pixels, [..., 4] -> [...]; inverted boxes count as empty."""
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return size[..., 0] * size[..., 1]


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of every pair, [N, 4] x [M, 4] -> [N, M]; 0 where both are empty."""
    top_left = jnp.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    size = jnp.maximum(bottom_right - top_left, 0.0)
    intersection = size[..., 0] * size[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return jnp.where(union > 0, intersection / jnp.maximum(union, 1e-12), 0.0)


def coverage(a: Array, b: Array) -> Array:
    """Share of each box of `a` that lies inside each box of `b`, [N, 4] x [M, 4] -> [N, M]."""
    top_left = jnp.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    size = jnp.maximum(bottom_right - top_left, 0.0)
    return size[..., 0] * size[..., 1] / jnp.maximum(area(a)[:, None], 1e-12)


def _centre_form(boxes: Array) -> tuple[Array, Array]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(boxes: Array, anchors: Array, weights: Sequence[float]) -> Array:
    """Regression targets (dx, dy, dw, dh) of `boxes` relative to `anchors`, both [..., 4].

    The R-CNN parametrisation (Girshick et al., 2014, appendix C), multiplied by `weights`.
    Degenerate boxes are treated as one hundredth of a pixel, so that the result stays finite.
    """
    centre, size = _centre_form(boxes)
    anchor_centre, anchor_size = _centre_form(anchors)
    anchor_size = jnp.maximum(anchor_size, 1e-2)
    shift = (centre - anchor_centre) / anchor_size
    scale = jnp.log(jnp.maximum(size, 1e-2) / anchor_size)
    # A numpy constant of the same rank, so that strict rank promotion stays satisfied.
    factor = np.asarray(weights, np.float32).reshape((1,) * (boxes.ndim - 1) + (4,))
    return jnp.concatenate([shift, scale], -1) * factor


def decode(deltas: Array, anchors: Array, weights: Sequence[float]) -> Array:
    """Inverse of `encode`; log sizes are clamped to `MAX_LOG_SCALE`. Both [..., 4]."""
    factor = np.asarray(weights, np.float32).reshape((1,) * (deltas.ndim - 1) + (4,))
    deltas = deltas / factor
    centre, size = _centre_form(anchors)
    new_centre = centre + deltas[..., :2] * size
    new_size = size * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE))
    return jnp.concatenate([new_centre - 0.5 * new_size, new_centre + 0.5 * new_size], -1)


def clip(boxes: Array, image_size: Array) -> Array:
    """Clips [..., 4] boxes to an image; `image_size` is [..., 2] = (height, width)."""
    limit = jnp.stack([image_size[..., 1], image_size[..., 0]] * 2, -1).astype(boxes.dtype)
    return jnp.clip(boxes, 0.0, jnp.broadcast_to(limit, boxes.shape))


def base_anchors(size: float, ratios: Sequence[float]) -> np.ndarray:
    """Anchors of one level around the origin, [len(ratios), 4]; `ratios` are height / width.

    Corners are rounded half to even, as torchvision does, so that trained weights fit.
    """
    root = np.sqrt(np.asarray(ratios, np.float32))
    half = np.stack([size / root, size * root], -1) / 2.0
    return np.round(np.concatenate([-half, half], -1)).astype(np.float32)


def grid_anchors(
    shapes: Sequence[tuple[int, int]],
    padded_size: tuple[int, int],
    sizes: Sequence[float],
    ratios: Sequence[float],
) -> list[np.ndarray]:
    """Anchors of every level, each [H * W * len(ratios), 4] in (y, x, ratio) order.

    The step of a level is the integer quotient of the padded image and the map, which for an
    odd-sized last level is not its nominal stride (416 // 7 = 59, not 64).
    """
    levels = []
    for (height, width), size in zip(shapes, sizes, strict=True):
        step_y, step_x = padded_size[0] // height, padded_size[1] // width
        y, x = np.meshgrid(np.arange(height) * step_y, np.arange(width) * step_x, indexing="ij")
        shift = np.stack([x, y, x, y], -1).astype(np.float32)
        anchors = shift[:, :, None, :] + base_anchors(size, ratios)[None, None]
        levels.append(anchors.reshape(-1, 4))
    return levels
