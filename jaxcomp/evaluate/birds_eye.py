"""Sweeps and boxes seen from above, as pictures: ahead is right, left is up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.ops import rotated

GROUND, TOP = -1.8, 0.5  # metres; the tones of points run between these heights
BACKGROUND = (14, 14, 18)


def bev_picture(
    points: Any, low: Sequence[float], high: Sequence[float], scale: float
) -> np.ndarray:
    """Points from above, uint8 [H, W, 3]; higher ones lie on top and are lighter.

    Args:
      points: [N, 4] x, y, z (metres) and reflectance; any that are not finite are left out.
      low: x and y where the picture starts, metres.
      high: where it ends.
      scale: pixels for a metre.
    """
    width, height = (round((high[i] - low[i]) * scale) for i in (0, 1))
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    points = np.asarray(points, np.float64).reshape(-1, 4)
    points = points[np.isfinite(points).all(1)]
    x, y, z, shine = points[np.argsort(points[:, 2], kind="stable")].T
    column = np.floor((x - low[0]) * scale)
    row = np.floor((high[1] - y) * scale)
    seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    rise = np.clip((z - GROUND) / (TOP - GROUND), 0, 1)
    tone = np.stack([70 + 185 * rise, 90 + 120 * rise, 190 - 150 * rise], 1)
    tone *= (0.6 + 0.4 * np.clip(shine, 0, 1))[:, None]
    canvas[row[seen].astype(int), column[seen].astype(int)] = tone[seen].astype(np.uint8)
    return canvas


def bev_outlines(
    boxes: Any, low: Sequence[float], high: Sequence[float], scale: float
) -> np.ndarray:
    """Corners of lidar boxes in pixels of `bev_picture`, [..., 7] -> float32 [..., 4, 2] (x, y)."""
    boxes = np.asarray(boxes, np.float64)
    corners = rotated.corners(boxes[..., [0, 1, 3, 4, 6]])
    x, y = (corners[..., 0] - low[0]) * scale, (high[1] - corners[..., 1]) * scale
    return np.stack([x, y], -1).astype(np.float32)


def bev_entry(
    points: Any,
    boxes: Mapping[str, Mapping[str, Any]],
    low: Sequence[float],
    high: Sequence[float],
    scale: float,
) -> dict[str, np.ndarray]:
    """One frame for the report's page.

    Args:
      points: of the sweep.
      boxes: prefix ("truth", "before", "after") -> {"boxes" [D, 7], "labels" [D], 0 upwards,
        "valid" [D] and, for detections, "scores" [D]}.
      low: x and y where the picture starts, metres.
      high: where it ends.
      scale: pixels for a metre.

    Returns:
      {"image", "PREFIX_outlines" [D, 4, 2], "PREFIX_labels" (1 upwards, as the page counts; 0: no
      class), "PREFIX_valid", "PREFIX_scores"}.
    """
    entry = {"image": bev_picture(points, low, high, scale)}
    for prefix, found in boxes.items():
        entry[f"{prefix}_outlines"] = bev_outlines(found["boxes"], low, high, scale)
        entry[f"{prefix}_labels"] = np.asarray(found["labels"], np.int32) + 1
        entry[f"{prefix}_valid"] = np.asarray(found["valid"], bool)
        if "scores" in found:
            entry[f"{prefix}_scores"] = np.asarray(found["scores"], np.float32)
    return entry
