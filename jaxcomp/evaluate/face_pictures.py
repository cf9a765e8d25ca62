"""Faces drawn into their image."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ((255, 64, 64), (64, 128, 255), (255, 224, 0), (64, 255, 64), (255, 64, 255))


def draw_faces(image: np.ndarray, found: Mapping[str, Any], *, least: float = 0.5) -> bytes:
    """A PNG with boxes, scores and landmarks: eyes red and blue, nose yellow, mouth green, pink.

    Args:
      image: uint8 RGB [H, W, 3].
      found: {"boxes": [N, 4], "scores": [N], "landmarks": [N, 5, 2]}, pixels.
      least: score from which faces are drawn.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    faces = zip(found["boxes"], found["scores"], found["landmarks"], strict=True)
    for box, score, points in faces:
        if score < least:
            continue
        x1, y1, x2, y2 = (float(v) for v in box)
        x2, y2 = max(x1, x2), max(y1, y2)
        draw.rectangle((x1, y1, x2, y2), outline=(255, 160, 0), width=2)
        draw.text((x1 + 2, max(y1 - 11, 0)), f"{float(score):.3f}", fill=(255, 255, 0))
        radius = max(1.0, (x2 - x1) / 40)
        for (x, y), colour in zip(points, COLOURS, strict=True):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
