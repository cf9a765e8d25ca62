"""Suppression and voting of boxes on the host, for lists of any length.

Overlaps are of boxes with one pixel more on each side, (x2 - x1 + 1) (y2 - y1 + 1), as in the
evaluations that face detectors grew up with. `jaxcomp.ops.nms` has the form for compiled programs.
"""

from __future__ import annotations

import numpy as np

from jaxcomp.ops.native import compiled

_SUPPRESS = "void(f8[:, ::1], f8, b1[::1])"
_GROUP = "void(f8[:, ::1], f8, i8[::1])"


def suppress(boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy suppression of boxes that are sorted by falling score.

    Args:
      boxes: [N, 4] x1, y1, x2, y2, pixels.
      iou_threshold: a box is dropped when a kept one overlaps it by more than this.

    Returns:
      [N] bool, the boxes to keep.
    """
    keep = np.ones(len(boxes), np.bool_)
    compiled(_suppress_loop, _SUPPRESS)(_table(boxes), iou_threshold, keep)
    return keep


def vote(
    boxes: np.ndarray, scores: np.ndarray, points: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges boxes that overlap, each group into its mean weighted by the scores.

    A group is the best box that is left and what overlaps it by the threshold or more; it gets the
    best score. A box that no other supports is dropped, unless it is the last one: where an image
    is looked at many times, a face that only one look sees is more often none.

    Args:
      boxes: [N, 4] x1, y1, x2, y2, pixels, sorted by falling score.
      scores: [N], positive.
      points: [N, ...] averaged likewise.
      iou_threshold: of a group.

    Returns:
      (boxes [M, 4], scores [M], points [M, ...]), best first.
    """
    group = np.full(len(boxes), -1, np.int64)
    compiled(_group_loop, _GROUP)(_table(boxes), iou_threshold, group)
    count = int(group.max(initial=-1)) + 1
    members = np.bincount(group, minlength=count)
    weight = np.bincount(group, scores, minlength=count)

    def mean(x: np.ndarray) -> np.ndarray:
        total = np.zeros((count, *x.shape[1:]))
        shape = (-1,) + (1,) * (x.ndim - 1)
        np.add.at(total, group, x * scores.reshape(shape))
        return total / weight.reshape(shape)

    best = np.zeros(count)
    np.maximum.at(best, group, scores)
    supported = members > 1
    supported[-1:] = True
    return mean(boxes)[supported], best[supported], mean(points)[supported]


def _table(boxes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(boxes, np.float64).reshape(-1, 4))


def _suppress_loop(boxes, limit, keep):
    for i in range(len(boxes)):
        if not keep[i]:
            continue
        x1, y1, x2, y2 = boxes[i]
        area = (x2 - x1 + 1) * (y2 - y1 + 1)
        for j in range(i + 1, len(boxes)):
            width = min(x2, boxes[j, 2]) - max(x1, boxes[j, 0]) + 1
            height = min(y2, boxes[j, 3]) - max(y1, boxes[j, 1]) + 1
            if width <= 0 or height <= 0:
                continue
            inside = width * height
            other = (boxes[j, 2] - boxes[j, 0] + 1) * (boxes[j, 3] - boxes[j, 1] + 1)
            if inside / (area + other - inside) > limit:
                keep[j] = False


def _group_loop(boxes, limit, group):
    count = 0
    for i in range(len(boxes)):
        if group[i] >= 0:
            continue
        x1, y1, x2, y2 = boxes[i]
        area = (x2 - x1 + 1) * (y2 - y1 + 1)
        group[i] = count
        for j in range(i + 1, len(boxes)):
            if group[j] >= 0:
                continue
            width = max(min(x2, boxes[j, 2]) - max(x1, boxes[j, 0]) + 1, 0.0)
            height = max(min(y2, boxes[j, 3]) - max(y1, boxes[j, 1]) + 1, 0.0)
            inside = width * height
            other = (boxes[j, 2] - boxes[j, 0] + 1) * (boxes[j, 3] - boxes[j, 1] + 1)
            if inside / (area + other - inside) >= limit:
                group[j] = count
        count += 1
