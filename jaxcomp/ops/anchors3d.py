"""Anchors of a bird's-eye-view detector: grid, assignment, box coder (Lang et al., 2019).

A lidar box is [7]: x, y, z of the centre of its lower face, w, l, h (metres) and yaw (radians). At
yaw 0 w lies along x and l along y; yaw turns clockwise seen from above and equals KITTI's
rotation_y. Anchors are in the order (row, column, class, yaw).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.types import Array

# A log size beyond this factor is junk; it keeps exp() finite and touches no sensible box.
MAX_LOG_SCALE = math.log(1000.0)


class AnchorKind(NamedTuple):
    """Anchors of one class.

    Attributes:
      size: w, l, h in metres.
      bottom: z of the lower face.
      positive_iou: overlap from which an anchor is positive.
      negative_iou: overlap under which it is negative; also the least for which the best anchors of
        an object become positive.
    """

    size: tuple[float, float, float]
    bottom: float
    positive_iou: float
    negative_iou: float


class Targets(NamedTuple):
    """What the anchors of an image should say; A anchors.

    Attributes:
      labels: [A] int32 class; -1 for objects of no class, K (the number of classes) for background
        and for anchors between the thresholds.
      counts: [A] bool, takes part in the classification loss: false between the thresholds.
      matched: [A] bool, positive, whatever the class of the object.
      index: [A] int32 row of the matched object; 0 where there is none.
    """

    labels: Array
    counts: Array
    matched: Array
    index: Array


def make_anchors(
    low: Sequence[float],
    high: Sequence[float],
    shape: tuple[int, int],
    kinds: Sequence[AnchorKind],
    yaws: Sequence[float],
) -> np.ndarray:
    """Anchors in the middle of every place of a map.

    Args:
      low: x, y (and more) where the map starts, metres.
      high: where it ends.
      shape: (rows, columns) of the map; rows along y.
      kinds: of the classes.
      yaws: of each class.

    Returns:
      float32 [rows, columns, classes, yaws, 7].
    """
    x, y = (
        low[axis] + (np.arange(n) + 0.5) * (high[axis] - low[axis]) / n
        for axis, n in ((0, shape[1]), (1, shape[0]))
    )
    out = np.empty((*shape, len(kinds), len(yaws), 7), np.float32)
    out[..., 0] = x[None, :, None, None]
    out[..., 1] = y[:, None, None, None]
    out[..., 2] = np.array([kind.bottom for kind in kinds])[:, None]
    out[..., 3:6] = np.array([kind.size for kind in kinds])[:, None]
    out[..., 6] = np.array(yaws)
    return out


def wrap(angle: Array, offset: float, period: float) -> Array:
    """The angle plus a multiple of the period, in [-offset * period, (1 - offset) * period)."""
    return angle - jnp.floor(angle / period + offset) * period


def nearest_rectangles(boxes: Array) -> Array:
    """Boxes turned to the nearest multiple of 90 degrees, seen from above, [..., 7] -> [..., 4]."""
    swap = jnp.abs(wrap(boxes[..., 6], 0.5, math.pi)) > math.pi / 4
    size = jnp.where(swap[..., None], boxes[..., 4:2:-1], boxes[..., 3:5])
    return jnp.concatenate([boxes[..., :2] - 0.5 * size, boxes[..., :2] + 0.5 * size], -1)


def nearest_iou(a: Array, b: Array) -> Array:
    """IoU of every pair after turning to the axes, [N, 7] x [M, 7] -> [N, M]."""
    a, b = nearest_rectangles(a), nearest_rectangles(b)
    top = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    size = jnp.maximum(top - jnp.maximum(a[:, None, :2], b[None, :, :2]), 0.0)
    shared = size[..., 0] * size[..., 1]
    area_a, area_b = ((r[:, 2] - r[:, 0]) * (r[:, 3] - r[:, 1]) for r in (a, b))
    return shared / (area_a[:, None] + area_b[None, :] - shared + 1e-8)


def assign(
    anchors: np.ndarray, boxes: Array, labels: Array, valid: Array, kinds: Sequence[AnchorKind]
) -> Targets:
    """Matches the anchors of every class to all objects, whatever class these have.

    Under the negative threshold an anchor is background, from the positive one on it belongs to its
    best object. Then each object claims the anchors with its highest overlap, if that reaches
    the negative threshold; later objects win. No object at all makes everything background.

    Args:
      anchors: [rows, columns, classes, yaws, 7].
      boxes: [M, 7] objects, padded.
      labels: [M] int, -1 for objects that are none of the classes.
      valid: [M] bool.
      kinds: of the classes.

    Returns:
      Targets of the flattened anchors.
    """
    parts = []
    for number, kind in enumerate(kinds):
        own = jnp.asarray(anchors[:, :, number].reshape(-1, 7))
        parts.append(_assign_class(own, boxes, valid, kind))
    lead, yaws = anchors.shape[:2], anchors.shape[3]
    index, ignored = (
        jnp.stack([p[i].reshape(*lead, yaws) for p in parts], 2).reshape(-1) for i in (0, 1)
    )
    matched = index >= 0
    index = jnp.maximum(index, 0)
    found = jnp.where(matched, labels[index], len(kinds)).astype(jnp.int32)
    return Targets(found, ~ignored, matched, index)


def _assign_class(anchors: Array, boxes: Array, valid: Array, kind: AnchorKind):
    """(row of the object or -1, between the thresholds) of [A] anchors."""
    overlap = jnp.where(valid[None, :], nearest_iou(anchors, boxes), -1.0)
    # Computed once: "equal to the highest" compares a number with itself.
    overlap = jax.lax.optimization_barrier(overlap)
    best, index = overlap.max(1), overlap.argmax(1).astype(jnp.int32)
    highest = overlap.max(0)
    claims = (overlap == highest[None, :]) & (highest >= kind.negative_iou)[None, :]
    rows = jnp.arange(boxes.shape[0], dtype=jnp.int32)[None, :]
    claimed = jnp.where(claims, rows, -1).max(1)
    index = jnp.where(best >= kind.positive_iou, index, -1)
    index = jnp.where(claimed >= 0, claimed, index)
    return index, (index < 0) & (best >= kind.negative_iou)


def encode(boxes: Array, anchors: Array) -> Array:
    """Targets of `boxes` relative to `anchors`, both [..., 7] (SECOND; Yan et al., 2018).

    Shifts in diagonals of the anchor's base (z: in heights, from middle to middle), log ratios of
    sizes, difference of yaws. Sizes under a millimetre count as one, so that all is finite.
    """
    size, own = jnp.maximum(boxes[..., 3:6], 1e-3), anchors[..., 3:6]
    diagonal = jnp.sqrt(own[..., :1] ** 2 + own[..., 1:2] ** 2)
    shift = (boxes[..., :2] - anchors[..., :2]) / diagonal
    middle = boxes[..., 2:3] + 0.5 * size[..., 2:] - anchors[..., 2:3] - 0.5 * own[..., 2:]
    turn = boxes[..., 6:] - anchors[..., 6:]
    return jnp.concatenate([shift, middle / own[..., 2:], jnp.log(size / own), turn], -1)


def decode(deltas: Array, anchors: Array) -> Array:
    """Inverse of `encode`, both [..., 7]; log sizes are clamped to +-`MAX_LOG_SCALE`."""
    own = anchors[..., 3:6]
    diagonal = jnp.sqrt(own[..., :1] ** 2 + own[..., 1:2] ** 2)
    centre = anchors[..., :2] + deltas[..., :2] * diagonal
    size = own * jnp.exp(jnp.clip(deltas[..., 3:6], -MAX_LOG_SCALE, MAX_LOG_SCALE))
    middle = anchors[..., 2:3] + 0.5 * own[..., 2:] + deltas[..., 2:3] * own[..., 2:]
    bottom = middle - 0.5 * size[..., 2:]
    return jnp.concatenate([centre, bottom, size, anchors[..., 6:] + deltas[..., 6:]], -1)


def direction_labels(yaw: Array) -> Array:
    """Which half turn a yaw lies in: 0 for [0, pi), 1 for [pi, 2 pi), any shape."""
    half = jnp.floor(wrap(yaw, 0.0, 2 * math.pi) / math.pi)
    return jnp.clip(half, 0, 1).astype(jnp.int32)


def directed_yaw(yaw: Array, direction: Array) -> Array:
    """The yaw, known up to a half turn, in the half turn that the direction (0 or 1) says."""
    return wrap(yaw, 1.0, math.pi) + (1 - direction) * math.pi
