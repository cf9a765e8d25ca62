"""Non-maximum suppression on padded, fixed shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcomp.ops import boxes as box_ops
from jaxcomp.types import Array


def nms_keep(boxes: Array, groups: Array, valid: Array, iou_threshold: float) -> Array:
    """Greedy suppression of boxes that are already sorted by falling score.

    Args:
      boxes: [N, 4] pixels.
      groups: [N] int; only boxes of one group (class, pyramid level) suppress each other.
      valid: [N] bool; padding never suppresses and is never kept.
      iou_threshold: a box is dropped when a kept one of its group overlaps it by more than this.

    Returns:
      [N] bool, the boxes to keep.
    """
    overlap = box_ops.iou(boxes, boxes) > iou_threshold
    overlap &= groups[:, None] == groups[None, :]
    later = jnp.arange(boxes.shape[0])

    def visit(i: Array, keep: Array) -> Array:
        suppressed = overlap[i] & (later > i) & keep[i]
        return keep & ~suppressed

    return jax.lax.fori_loop(0, boxes.shape[0], visit, valid)


def top_detections(
    boxes: Array,
    scores: Array,
    groups: Array,
    valid: Array,
    *,
    iou_threshold: float,
    pre: int,
    post: int,
) -> tuple[Array, Array, Array, Array]:
    """Sorts, suppresses and pads to a fixed number of boxes.

    Args:
      boxes: [N, 4] pixels.
      scores: [N].
      groups: [N] int, see `nms_keep`.
      valid: [N] bool.
      iou_threshold: see `nms_keep`.
      pre: how many of the best boxes enter the suppression.
      post: how many boxes come out, padded with invalid ones.

    Returns:
      (boxes [post, 4], scores [post], groups [post], valid [post]); padding is all zeros.
    """
    pre = min(pre, boxes.shape[0])
    _, order = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), pre)
    boxes, scores, groups, valid = boxes[order], scores[order], groups[order], valid[order]
    keep = nms_keep(boxes, groups, valid, iou_threshold)
    # A stable sort moves the kept boxes to the front without changing their order.
    front = jnp.argsort(~keep, stable=True)[: min(post, pre)]
    picked = keep[front]
    out = (
        jnp.where(picked[:, None], boxes[front], 0.0),
        jnp.where(picked, scores[front], 0.0),
        jnp.where(picked, groups[front], 0),
        picked,
    )
    return jax.tree.map(lambda x: _pad_rows(x, post), out)


def _pad_rows(x: Array, rows: int) -> Array:
    return jnp.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
