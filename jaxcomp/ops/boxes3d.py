"""Detected lidar boxes as KITTI's results: camera frame, projected 2-D box, observation angle.

Everything is float64 numpy and runs on the host. A lidar box is described in `anchors3d`; a camera
box is the centre of its lower face (x right, y down, z ahead), height, width, length, rotation_y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_NEAR = 0.1  # metres; corners nearer than this (or behind) are projected as if there
RANGE_LOW, RANGE_HIGH = (0.0, -40.0, -3.0), (70.4, 40.0, 0.0)


class Geometry(Protocol):
    """Calibration of a frame: projection and the way from lidar to rectified camera."""

    p2: np.ndarray

    def velo_to_rect(self) -> np.ndarray:
        """[3, 4]."""
        ...


def to_camera(boxes: Any, geometry: Geometry) -> dict[str, np.ndarray]:
    """Camera boxes of lidar boxes.

    Args:
      boxes: [N, 7].
      geometry: of the frame.

    Returns:
      {"location": [N, 3], "dimensions": [N, 3] height, width, length, "rotation_y": [N] in
      [-pi, pi), "alpha": [N] the angle at which the camera sees it, in [-pi, pi)}.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    matrix = geometry.velo_to_rect()
    location = boxes[:, :3] @ matrix[:, :3].T + matrix[:, 3]
    alpha = boxes[:, 6] - np.arctan2(location[:, 0], location[:, 2])
    return {
        "location": location,
        "dimensions": boxes[:, [5, 3, 4]],
        "rotation_y": _wrapped(boxes[:, 6]),
        "alpha": _wrapped(alpha),
    }


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def camera_corners(location: Any, dimensions: Any, rotation_y: Any) -> np.ndarray:
    """Corners of camera boxes, [N, 3], [N, 3], [N] -> [N, 8, 3]; the lower four first."""
    height, width, length = np.asarray(dimensions, np.float64)[..., None].transpose(1, 0, 2)
    x = 0.5 * length * np.array([1, 1, -1, -1] * 2)
    z = 0.5 * width * np.array([1, -1, -1, 1] * 2)
    y = -height * np.array([0] * 4 + [1] * 4)
    cos, sin = (f(np.asarray(rotation_y, np.float64))[:, None] for f in (np.cos, np.sin))
    turned = np.stack([cos * x + sin * z, y, cos * z - sin * x], -1)
    return turned + np.asarray(location, np.float64)[:, None]


def project(corners: np.ndarray, p2: np.ndarray) -> np.ndarray:
    """Smallest 2-D boxes around points, [N, 8, 3] -> [N, 4] left, top, right, bottom, pixels."""
    corners = np.concatenate([corners[..., :2], np.maximum(corners[..., 2:], _NEAR)], -1)
    u, v, depth = np.moveaxis(corners @ p2[:, :3].T + p2[:, 3], -1, 0)
    u, v = u / depth, v / depth
    return np.stack([u.min(1), v.min(1), u.max(1), v.max(1)], 1)


def kitti_columns(
    boxes: Any,
    scores: Any,
    labels: Any,
    geometry: Geometry,
    image_size: tuple[int, int],
    classes: Sequence[str],
    *,
    valid: Any = None,
    low: Sequence[float] | None = RANGE_LOW,
    high: Sequence[float] | None = RANGE_HIGH,
    in_image: bool = True,
) -> dict[str, Any]:
    """Detections of one frame as the columns of KITTI's result files.

    Args:
      boxes: [N, 7] lidar boxes.
      scores: [N].
      labels: [N] int, places in `classes`.
      geometry: of the frame.
      image_size: (height, width), pixels; 2-D boxes are clipped to it.
      classes: names of the labels.
      valid: [N] bool, rows that are no padding; all without.
      low: keep boxes whose x, y, z (lidar) lie strictly above this; None for all.
      high: and strictly below. The defaults are the usual evaluation's; its relatives use 1 for z.
      in_image: keep only boxes whose projection touches the image.

    Returns:
      {"type": list, "box": [M, 4], "score", "alpha", "dimensions", "location", "rotation_y"}.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.int64)
    keep = np.ones(len(boxes), bool) if valid is None else np.asarray(valid, bool).copy()
    if low is not None and high is not None:
        keep &= ((boxes[:, :3] > np.array(low)) & (boxes[:, :3] < np.array(high))).all(1)
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    camera = to_camera(boxes, geometry)
    corners = camera_corners(camera["location"], camera["dimensions"], camera["rotation_y"])
    flat = project(corners, geometry.p2)
    height, width = image_size
    seen = np.ones(len(boxes), bool)
    if in_image:
        seen = (flat[:, 0] < width) & (flat[:, 1] < height) & (flat[:, 2] > 0) & (flat[:, 3] > 0)
        seen &= corners[..., 2].max(1, initial=-np.inf) > _NEAR
    limit = np.array([width, height, width, height], np.float64)
    return {
        "type": [classes[label] for label in labels[seen]],
        "box": np.clip(flat[seen], 0.0, limit),
        "score": scores[seen],
        **{name: column[seen] for name, column in camera.items()},
    }
