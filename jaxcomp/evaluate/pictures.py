"""Frames that are kept whole for the report: image, ground truth, detections, feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def keep_pictures(
    store: dict[str, list],
    batch: Mapping[str, Any],
    detections: Mapping[str, Mapping[str, np.ndarray]],
    arrays: Mapping[str, np.ndarray],
    *,
    limit: int,
) -> None:
    """Appends real rows of a batch to `store` until it holds `limit` of them.

    Args:
      store: name to one entry a frame; grows in place.
      batch: a detection batch; its image and ground truth ("truth_…") are kept.
      detections: prefix to padded detections, kept as "prefix_boxes" and so on.
      arrays: further arrays [B, ...], kept under their names.
      limit: frames to hold in all.
    """
    for row in np.flatnonzero(batch["mask"]):
        if len(store.get("image", ())) >= limit:
            return
        entry = {name: batch[name][row] for name in ("image", "image_id")}
        entry |= {f"truth_{name}": batch[name][row] for name in ("boxes", "labels", "valid")}
        entry |= {name: value[row] for name, value in arrays.items()}
        for prefix, found in detections.items():
            entry |= {f"{prefix}_{name}": value[row] for name, value in found.items()}
        for name, value in entry.items():
            store.setdefault(name, []).append(value)
