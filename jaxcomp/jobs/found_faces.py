"""Where a face detector finds something in the photos that a codec for its features trains on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data.images import read_image
from jaxcomp.data.photos import on_canvas, photo_parts
from jaxcomp.errors import DataError
from jaxcomp.jobs.frozen_features import AnyDetector, with_classes
from jaxcomp.log import LOG


def with_found(config: Any, detector: AnyDetector) -> Any:
    """As `with_classes`; where `data.around` asks for crops around objects, `data.found` has them.

    See `data.photos.photo_splits`. Faces are few in photos, and crops at random rarely show one.
    """
    copy = with_classes(config, detector).copy_and_resolve_references()
    if not config.data.get("around", 0):
        return copy
    photos, _ = photo_parts(config.data)
    found = [
        (i, *box) for i, path in enumerate(photos) for box in found_boxes(config, detector, path)
    ]
    LOG.info("%d objects in %d training photos.", len(found), len(photos))
    with copy.unlocked():
        copy.data.found = tuple(found)
    return copy


def found_boxes(config: Any, detector: AnyDetector, path: Path) -> Iterator[tuple[float, ...]]:
    """x0, y0, x1, y1 in pixels of a photo, of its detections from `data.found_score` on.

    Of a photo that cannot be read there are none; the data set tells of it.
    """
    try:
        image = read_image(path)
    except DataError:
        return
    canvas, (rows, _) = on_canvas(image, config.data.height, config.data.width)
    size = np.array([canvas.shape[:2]], np.float32)
    found = detector.tail(detector.head(canvas[None]), size)
    sure = found["valid"][0] & (found["scores"][0] >= config.data.found_score)
    boxes = found["boxes"][0][sure].astype(np.float64) * (image.shape[0] / rows)
    yield from (tuple(box) for box in np.round(boxes, 1).tolist())
