"""Frames that are kept whole for the report: image, ground truth, detections, feature maps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jaxcomp.evaluate.detection import native_factors


def keep_pictures(
    store: dict[str, list],
    batch: Mapping[str, Any],
    detections: Mapping[str, Mapping[str, np.ndarray]],
    arrays: Mapping[str, np.ndarray],
    *,
    limit: int,
) -> None:
    """Appends real rows of a batch to `store` until it holds `limit` of them, all of one size.

    Args:
      store: name to one entry a frame; grows in place.
      batch: a detection batch, boxes in the network's pixels; its image and ground truth
        ("truth_…", in pixels of the image) are kept.
      detections: prefix to padded detections, kept as "prefix_boxes" and so on.
      arrays: further arrays [B, ...], kept under their names.
      limit: frames to hold in all.
    """
    factors = native_factors(batch)
    batch = {**batch, "boxes": np.asarray(batch["boxes"]) * factors}
    detections = {
        prefix: {**found, "boxes": np.asarray(found["boxes"]) * factors}
        for prefix, found in detections.items()
    }
    for row in np.flatnonzero(batch["mask"]):
        if len(store.get("image", ())) >= limit:
            return
        if "image" in store and store["image"][0].shape != np.shape(batch["image"][row]):
            continue
        entry = {name: batch[name][row] for name in ("image", "image_id")}
        entry |= {f"truth_{name}": batch[name][row] for name in ("boxes", "labels", "valid")}
        entry |= {name: value[row] for name, value in arrays.items()}
        for prefix, found in detections.items():
            entry |= {f"{prefix}_{name}": value[row] for name, value in found.items()}
        for name, value in entry.items():
            store.setdefault(name, []).append(value)


def draw_detections(image: np.ndarray, found: Sequence[tuple[str, float, Any]]) -> bytes:
    """A PNG of an image (uint8 [H, W, 3]) with (class name, score, xyxy box) on it."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for name, score, box in found:
        x1, y1, x2, y2 = (float(v) for v in box)
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=(255, 64, 64), width=2)
        label, place = f"{name} {score:.2f}", (x1 + 1, max(y1 - 11, 0))
        draw.rectangle(draw.textbbox(place, label), fill=(0, 0, 0))
        draw.text(place, label, fill=(255, 255, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
