"""Accuracy of a face detector on held-out images, and pictures of what it finds."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcomp.data.face_records import FaceRecords
from jaxcomp.data.widerface import FaceLabels
from jaxcomp.errors import DataError
from jaxcomp.evaluate.face_pictures import draw_faces
from jaxcomp.evaluate.widerface import SUBSETS, evaluate_widerface
from jaxcomp.evaluate.widerface_files import write_predictions
from jaxcomp.evaluate.widerface_protocols import to_predictions
from jaxcomp.loaders_face import LoadedFaceDetector
from jaxcomp.workdir import atomic_write

SHOWN = 0.5  # weaker faces would cover the picture
ENLARGED = 480  # pixels that the longer side of a small picture is enlarged to


def evaluate_faces(
    detector: LoadedFaceDetector,
    records: FaceRecords,
    *,
    protocol: str = "original",
    heights: Sequence[float] = (32.0, 16.0, 0.0),
    rows: int = 0,
    pictures: int = 0,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Average precision by WIDERFace's rules, for faces by their height.

    Args:
      detector: what to measure.
      records: the images.
      protocol: how they are given to it, see `evaluate.widerface_protocols`.
      heights: least height in pixels of the faces of "easy", "medium" and "hard".
      rows: images; 0 for all.
      pictures: images that are drawn.
      folder: gets prediction files in the official layout; None writes nothing.
      progress: called with the number of images done.

    Returns:
      ({"frames", "unreadable", "ap_easy", "ap_medium", "ap_hard", "ap_mean", "faces", "protocol",
      "heights", "curves"}, pictures with truth beside detections, uint8 [H, W, 3]).
    """
    truth: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    drawn: list[np.ndarray] = []
    total = min(rows, len(records)) or len(records)
    broken = 0
    for row in range(total):
        try:
            image, labels = records.image(row)
        except DataError:
            broken += 1
            continue
        one = detector.detect(image, protocol=protocol)
        name = records.source.names[row]
        truth[name], found[name] = labels.boxes, to_predictions(one)
        if len(drawn) < pictures:
            drawn.append(_picture(image, labels, one))
        progress(row + 1)
    subsets = {
        subset: {name: boxes[:, 3] >= least for name, boxes in truth.items()}
        for subset, least in zip(SUBSETS, heights, strict=True)
    }
    result = evaluate_widerface(truth, found, subsets)
    if folder is not None:
        write_predictions(folder, found, whole_pixels=False)
    parts = result["subsets"]
    metrics = {
        "frames": len(truth),
        "unreadable": broken,
        **{f"ap_{name}": parts[name]["ap"] for name in SUBSETS},
        "ap_mean": result["mean"],
        "faces": {name: parts[name]["faces"] for name in SUBSETS},
        "protocol": protocol,
        "heights": list(heights),
        "curves": {name: _thin(parts[name]["curve"]) for name in SUBSETS},
    }
    return metrics, drawn


def _thin(curve: Mapping[str, list[float]], most: int = 100) -> dict[str, list[float]]:
    """Every tenth of a curve's 1,000 points, for a summary of bearable size."""
    step = max(len(curve["recall"]) // most, 1)
    return {name: [round(v, 5) for v in values[::step]] for name, values in curve.items()}


def _picture(image: np.ndarray, labels: FaceLabels, found: Mapping[str, Any]) -> np.ndarray:
    """Truth on the left, what was found on the right."""
    scale = max(ENLARGED // max(image.shape[:2]), 1)
    large = np.repeat(np.repeat(image, scale, 0), scale, 1)
    corners = np.concatenate([labels.boxes[:, :2], labels.boxes[:, :2] + labels.boxes[:, 2:]], 1)
    points = np.where(labels.has_landmarks[:, None, None], labels.landmarks, -1e6)
    truth = {"boxes": corners, "landmarks": points, "scores": np.ones(len(labels))}
    halves = []
    for faces in (truth, found):
        scaled = {
            "boxes": np.asarray(faces["boxes"]) * scale,
            "landmarks": np.asarray(faces["landmarks"]) * scale,
            "scores": faces["scores"],
        }
        png = draw_faces(large, scaled, least=SHOWN)
        halves.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
    return np.concatenate([halves[0], np.full((len(large), 6, 3), 255, np.uint8), halves[1]], 1)


def save_pictures(folder: Path, pictures: Sequence[np.ndarray]) -> None:
    """Writes them as PNG."""
    for i, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        atomic_write(folder / f"faces_{i:02d}.png", buffer.getvalue())
