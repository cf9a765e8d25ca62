"""Objects of KITTI's labels as lidar boxes, and the geometry that augmentation needs.

A lidar box is [7]: x, y, z of the centre of its lower face, w, l, h (metres), yaw. At yaw 0 w lies
along x and l along y; yaw turns clockwise seen from above and equals rotation_y:

    axis of w: (cos yaw, -sin yaw)        axis of l: (sin yaw, cos yaw)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxcomp.data import kitti_format
from jaxcomp.data.kitti_format import Calibration, KittiObject

_SIGNS = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])


class LidarObjects(NamedTuple):
    """Objects of a frame.

    Attributes:
      boxes: float32 [M, 7].
      labels: int32 [M], the place of the class; -1 for others.
      difficulty: int32 [M], 0 easy to 2 hard, -1 for none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray

    def select(self, keep: np.ndarray) -> LidarObjects:
        """Those for which the mask or index array says so."""
        return LidarObjects(*(column[keep] for column in self))


def lidar_objects(
    objects: Sequence[KittiObject],
    calibration: Calibration,
    classes: Sequence[str],
    image_height: int = 375,
) -> LidarObjects:
    """Labels of the camera's frame as lidar boxes; DontCare and objects without a size left out.

    Args:
      objects: of the frame.
      calibration: of the frame.
      classes: names of labels 0, 1, ...
      image_height: that the difficulty's pixel limits scale with.
    """
    kept = [o for o in objects if o.type != "DontCare" and min(o.dimensions) > 0]
    place = np.array([o.location for o in kept], np.float64).reshape(-1, 3)
    size = np.array([o.dimensions for o in kept], np.float64).reshape(-1, 3)
    matrix = calibration.velo_to_rect()
    bottom = np.linalg.solve(matrix[:, :3], (place - matrix[:, 3]).T).T
    yaw = np.array([o.rotation_y for o in kept], np.float64)
    number = {name: i for i, name in enumerate(classes)}
    return LidarObjects(
        np.concatenate([bottom, size[:, [1, 2, 0]], yaw[:, None]], 1).astype(np.float32),
        np.array([number.get(o.type, -1) for o in kept], np.int32),
        np.array([_difficulty(o, image_height) for o in kept], np.int32),
    )


def _difficulty(item: KittiObject, image_height: int) -> int:
    # The object must be higher than the limit here, not as high.
    height = math.nextafter(item.box[3] - item.box[1], -math.inf)
    return kitti_format.difficulty(height, item.occluded, item.truncated, image_height)


def axes(yaw: np.ndarray) -> np.ndarray:
    """Directions of w and l in the ground plane, [...] -> [..., 2 (axis), 2 (x, y)]."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Corners seen from above, [..., 7] -> [..., 4, 2]."""
    half = 0.5 * boxes[..., None, 3:5] * _SIGNS
    return boxes[..., None, :2] + half @ axes(boxes[..., 6])


def collide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which boxes overlap seen from above, [N, 7] x [M, 7] -> bool [N, M].

    Two rectangles are apart exactly if a side of one separates them (separating axes; Gottschalk et
    al., 1996).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return ~(_separated(a, b) | _separated(b, a).T)


def _separated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether a side of `a` separates the pair, bool [N, M]."""
    own = axes(a[:, 6])
    away = b[None, :, :2] - a[:, None, :2]
    turned = b[None, :, 6] - a[:, None, 6]
    cos, sin = np.abs(np.cos(turned)), np.abs(np.sin(turned))
    half_w, half_l = 0.5 * b[None, :, 3], 0.5 * b[None, :, 4]
    apart = np.zeros((len(a), len(b)), bool)
    for axis, reach in enumerate((half_w * cos + half_l * sin, half_w * sin + half_l * cos)):
        x, y = own[:, axis, 0, None], own[:, axis, 1, None]
        distance = np.abs(away[..., 0] * x + away[..., 1] * y)
        apart |= distance >= 0.5 * a[:, None, 3 + axis] + reach
    return apart


def inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Points in one box, bool [N]; faces belong to it."""
    box = np.asarray(box, np.float64)
    rise = points[:, 2] - box[2]
    reach = 0.5 * math.hypot(box[3], box[4])
    near = (rise >= 0) & (rise <= box[5]) & (np.abs(points[:, 0] - box[0]) <= reach)
    rows = np.flatnonzero(near)
    along = np.abs((points[rows, :2] - box[:2]) @ axes(box[6]).T)
    out = np.zeros(len(points), bool)
    out[rows[(along <= 0.5 * box[3:5]).all(1)]] = True
    return out


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Turns x and y the way a growing yaw turns a box, [N, 2] -> [N, 2]."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = points[:, 0], points[:, 1]
    return np.stack([x * cos + y * sin, y * cos - x * sin], 1).astype(points.dtype)


def wrap(angle: np.ndarray) -> np.ndarray:
    """Angles in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi
