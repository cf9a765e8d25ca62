"""Rotated rectangles in a plane: corners, areas of intersections, IoU.

A rectangle is (x, y, a, b, angle): its centre, its size along its own two axes, and radians. At
angle 0 the axes are the plane's; the rectangle is turned by -angle, so that with a = length and
b = width KITTI's (x, z, rotation_y) fits as it is, and likewise a lidar box (x, y, w, l, yaw) whose
yaw is rotation_y.

        axis of a: (cos angle, -sin angle)        axis of b: (sin angle, cos angle)

Everything is float64 numpy. `intersection_area` is the readable form, on whole arrays and without
branches; `pair_areas` is a compiled loop for many pairs, which clips differently (Sutherland and
Hodgman, "Reentrant polygon clipping", 1974), so each checks the other.
"""

from __future__ import annotations

import numpy as np

from jaxcomp.errors import ShapeError
from jaxcomp.ops.native import compiled

_SIGNATURE = "void(f8[:, ::1], f8[:, ::1], i8[::1], i8[::1], f8[::1])"
_SIGNS = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
# A clip gives at most two points for each that it gets, and there are four clips.
_POINTS = 4 * 2**4


def corners(boxes: np.ndarray) -> np.ndarray:
    """Corners of rectangles in counterclockwise order (x right, y up), [..., 5] -> [..., 4, 2]."""
    boxes = _checked(boxes)
    cos, sin = (f(boxes[..., None, 4]) for f in (np.cos, np.sin))
    a, b = np.moveaxis(0.5 * boxes[..., None, 2:4] * _SIGNS, -1, 0)
    return boxes[..., None, :2] + np.stack([cos * a + sin * b, cos * b - sin * a], -1)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas, [..., 5] -> [...]; a rectangle without a positive size is empty."""
    size = np.maximum(_checked(boxes)[..., 2:4], 0.0)
    return size[..., 0] * size[..., 1]


def intersection_area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area that each rectangle of `a` shares with that of `b`; [..., 5] x [..., 5] -> [...].

    The corners of `b` are taken into the frame of `a`. The points where its edges cross the two
    lines x = -h and x = h are added, then all x are clamped to [-h, h]: what lies outside turns
    into a path along a line, which encloses no area. The same with y, and the area of the outline
    is what is left.
    """
    a, b = np.broadcast_arrays(_checked(a), _checked(b))
    relative = b.copy()
    cos, sin = np.cos(a[..., 4]), np.sin(a[..., 4])
    x, y = b[..., 0] - a[..., 0], b[..., 1] - a[..., 1]
    relative[..., 0], relative[..., 1] = cos * x - sin * y, sin * x + cos * y
    relative[..., 4] -= a[..., 4]
    outline = corners(relative)
    for axis in (0, 1):
        outline = _clamp(outline, axis, 0.5 * a[..., 2 + axis, None])
    x, y = outline[..., 0], outline[..., 1]
    doubled = (x * np.roll(y, -1, -1) - np.roll(x, -1, -1) * y).sum(-1)
    full = (area(a) > 0) & (area(b) > 0)
    return np.where(full, np.maximum(0.5 * doubled, 0.0), 0.0)


def _clamp(outline: np.ndarray, axis: int, half: np.ndarray) -> np.ndarray:
    """[..., P, 2] -> [..., 3 P, 2]: crossings with +-half added, then the coordinate clamped."""
    step = np.roll(outline, -1, -2) - outline
    along = np.where(step[..., axis] == 0.0, 1.0, step[..., axis])  # such an edge crosses nothing
    first = np.clip((half - outline[..., axis]) / along, 0.0, 1.0)
    second = np.clip((-half - outline[..., axis]) / along, 0.0, 1.0)
    times = np.stack([np.zeros_like(first), np.minimum(first, second), np.maximum(first, second)])
    path = outline[..., None, :] + np.moveaxis(times, 0, -1)[..., None] * step[..., None, :]
    path = path.reshape(*outline.shape[:-2], -1, 2)
    path[..., axis] = np.clip(path[..., axis], -half, half)
    return path


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, [..., 5] x [..., 5] -> [...]; 0 where either is empty."""
    shared = intersection_area(a, b)
    return shared / np.maximum(area(a) + area(b) - shared, np.finfo(np.float64).tiny)


def pair_areas(a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Area that `a[rows[p]]` shares with `b[columns[p]]`, [N, 5], [M, 5], [P], [P] -> [P] float64.

    Raises:
      ShapeError: `a` or `b` is not [..., 5], or an index is out of range.
    """
    # Copies, because compiled code would refuse arrays that are read-only.
    a, b = (np.array(_checked(x), order="C") for x in (a, b))
    rows, columns = (np.array(x, np.int64, order="C") for x in (rows, columns))
    for index, boxes in ((rows, a), (columns, b)):
        if index.size and not 0 <= index.min() <= index.max() < len(boxes):
            raise ShapeError(f"pairs point outside of {len(boxes)} rectangles; check the indices")
    out = np.zeros(len(rows))
    compiled(_pair_loop, _SIGNATURE)(a, b, rows, columns, out)
    return out


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every pair by the compiled loop, [N, 5] x [M, 5] -> [N, M]; 0 where one is empty."""
    rows, columns = (x.ravel() for x in np.indices((len(a), len(b))))
    shared = pair_areas(a, b, rows, columns).reshape(len(a), len(b))
    union = area(a)[:, None] + area(b)[None] - shared
    return shared / np.maximum(union, np.finfo(np.float64).tiny)


def _checked(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    if boxes.shape[-1:] != (5,):
        raise ShapeError(f"rectangles have shape {boxes.shape}; give [..., 5]: x, y, a, b, angle")
    return boxes


def _pair_loop(a, b, rows, columns, out):
    """Fills `out` with areas: the corners of one, clipped by the four sides of the other."""
    x, y = np.empty(_POINTS), np.empty(_POINTS)
    u, v = np.empty(_POINTS), np.empty(_POINTS)
    for p in range(len(rows)):
        first, second = a[rows[p]], b[columns[p]]
        half, other = 0.5 * first[2], 0.5 * first[3]
        hx, hy = 0.5 * second[2], 0.5 * second[3]
        dx, dy = second[0] - first[0], second[1] - first[1]
        reach = np.hypot(half, other) + np.hypot(hx, hy)
        if min(half, other, hx, hy) <= 0.0 or dx * dx + dy * dy >= reach * reach:
            continue
        cos, sin = np.cos(first[4]), np.sin(first[4])
        dx, dy = cos * dx - sin * dy, sin * dx + cos * dy
        cos, sin = np.cos(second[4] - first[4]), np.sin(second[4] - first[4])
        for k in range(4):
            x[k], y[k] = dx + cos * hx + sin * hy, dy + cos * hy - sin * hx
            hx, hy = (hx, -hy) if k % 2 else (-hx, hy)
        count = 4
        for _ in range(4):  # keep x <= half, then turn everything by a quarter
            n = 0
            for k in range(count):
                j = k + 1 if k + 1 < count else 0
                if x[k] <= half:
                    u[n], v[n] = y[k], -x[k]
                    n += 1
                if (x[k] <= half) != (x[j] <= half):
                    u[n] = y[k] + (half - x[k]) / (x[j] - x[k]) * (y[j] - y[k])
                    v[n] = -half
                    n += 1
            x, y, u, v, count = u, v, x, y, n
            half, other = other, half
        doubled = 0.0
        for k in range(count):
            j = k + 1 if k + 1 < count else 0
            doubled += x[k] * y[j] - x[j] * y[k]
        out[p] = max(0.5 * doubled, 0.0)
