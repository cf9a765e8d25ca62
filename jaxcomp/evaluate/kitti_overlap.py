"""Overlaps between the ground truth and the detections of the same frame: 2-D, BEV, 3-D."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxcomp.evaluate.kitti_frames import Objects
from jaxcomp.ops import rotated

_TINY = np.finfo(np.float64).tiny


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """All pairs of one object of `a` and one of `b` in the same frame, P in all.

    Attributes:
      rows: [P] int64 index into `a`; the pairs of one object lie together, in its frame's order.
      columns: [P] int64 index into `b`.
      base: [N] int64 first pair of each object of `a`.
    """

    rows: np.ndarray
    columns: np.ndarray
    base: np.ndarray

    @classmethod
    def same_frame(cls, a: Objects, b: Objects) -> Pairs:
        """Pairs in the order of `a`, then of `b`."""
        counts = np.diff(b.start)[a.frame]
        base = np.cumsum(counts) - counts
        rows = np.repeat(np.arange(len(a.kind)), counts)
        columns = np.arange(len(rows)) - base[rows] + b.start[a.frame[rows]]
        return cls(rows, columns, base)


def overlap_2d(a: Objects, b: Objects, pairs: Pairs) -> np.ndarray:
    """IoU of the image boxes, [P]; no "+1 pixel"."""
    shared = _shared_2d(a, b, pairs)
    union = _area_2d(a)[pairs.rows] + _area_2d(b)[pairs.columns] - shared
    return shared / np.maximum(union, _TINY)


def coverage_2d(a: Objects, regions: Objects) -> np.ndarray:
    """Largest share of each object's box in one region of its frame, [N]; 0 without regions."""
    pairs = Pairs.same_frame(a, regions)
    share = _shared_2d(a, regions, pairs) / np.maximum(_area_2d(a)[pairs.rows], _TINY)
    out = np.zeros(len(a.kind))
    np.maximum.at(out, pairs.rows, share)
    return out


def overlaps_bev_3d(a: Objects, b: Objects, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """IoU from above and of the volumes, [P] each; 0 where one has no 3-D box.

    A box stands on its location (y points down) and is turned about the vertical axis alone, so
    that the shared volume is the shared area times the shared height.
    """
    full = (a.has_3d[pairs.rows] & b.has_3d[pairs.columns]).nonzero()[0]
    i, j = pairs.rows[full], pairs.columns[full]
    shared = rotated.pair_areas(_rectangles(a), _rectangles(b), i, j)
    area_a, area_b = (np.prod(x.dimensions[:, 1:], -1) for x in (a, b))
    top_a, top_b = (x.location[:, 1] - x.dimensions[:, 0] for x in (a, b))
    bottom = np.minimum(a.location[i, 1], b.location[j, 1])
    volume = shared * np.maximum(bottom - np.maximum(top_a[i], top_b[j]), 0.0)
    volume_a, volume_b = area_a * a.dimensions[:, 0], area_b * b.dimensions[:, 0]
    bev, solid = np.zeros((2, len(pairs.rows)))
    bev[full] = shared / np.maximum(area_a[i] + area_b[j] - shared, _TINY)
    solid[full] = volume / np.maximum(volume_a[i] + volume_b[j] - volume, _TINY)
    return bev, solid


def _rectangles(x: Objects) -> np.ndarray:
    """Footprints (x, z, length, width, rotation_y), [N, 5]."""
    ground, size = x.location[:, [0, 2]], x.dimensions[:, [2, 1]]
    return np.column_stack([ground, size, x.rotation_y])


def _area_2d(x: Objects) -> np.ndarray:
    return np.prod(x.box[:, 2:] - x.box[:, :2], -1)


def _shared_2d(a: Objects, b: Objects, pairs: Pairs) -> np.ndarray:
    low = np.maximum(a.box[pairs.rows, :2], b.box[pairs.columns, :2])
    high = np.minimum(a.box[pairs.rows, 2:], b.box[pairs.columns, 2:])
    return np.prod(np.maximum(high - low, 0.0), -1)
