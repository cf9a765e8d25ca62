"""WIDERFace's average precision of a folder of prediction files, or of a detector on its images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data.images import read_image
from jaxcomp.data.widerface import WiderTruth, read_widerface_truth
from jaxcomp.errors import DataError
from jaxcomp.evaluate.widerface import evaluate_widerface
from jaxcomp.evaluate.widerface_files import read_predictions, write_predictions
from jaxcomp.evaluate.widerface_protocols import protocol_of, to_predictions
from jaxcomp.loaders_face import load_face_detector

ENDINGS = (".jpg", ".jpeg", ".png")
BUCKET = 64  # padding of images, so that few sizes are compiled


def evaluate_folder(
    truth: str | os.PathLike[str], results: str | os.PathLike[str]
) -> dict[str, Any]:
    """What `evaluate_widerface` returns for the files of the official tool.

    Args:
      truth: folder with `wider_face_val.mat` and `wider_{easy,medium,hard}_val.mat`.
      results: folder with EVENT/IMAGE.txt for every image.

    Raises:
      DataError: a file is missing or of another layout.
    """
    known = read_widerface_truth(truth)
    return evaluate_widerface(known.boxes, read_predictions(results, known.boxes), known.subsets)


def detect_folder(
    truth: str | os.PathLike[str],
    images: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    results: str | os.PathLike[str],
    protocol: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes the prediction files of a detector for every image of the ground truth.

    Files that are there are kept, so that an interrupted run goes on.

    Returns:
      How many images were looked at.

    Raises:
      DataError: an image is missing or cannot be read.
      CheckpointError: the weights cannot be read.
      ConfigError: the protocol is unknown.
    """
    known, how = read_widerface_truth(truth), protocol_of(protocol)
    paths = _paths(known, Path(images))
    detector, done = load_face_detector(weights, bucket=BUCKET), 0
    for i, (name, path) in enumerate(paths.items(), 1):
        if not Path(results, f"{name}.txt").is_file():
            found = detector.detect(read_image(path), protocol=how)
            write_predictions(results, {name: np.asarray(to_predictions(found))})
            done += 1
        progress(i, len(paths))
    return done


def _paths(known: WiderTruth, folder: Path) -> dict[str, Path]:
    paths = {}
    for name in known.boxes:
        found = next((p for e in ENDINGS if (p := folder / f"{name}{e}").is_file()), None)
        if found is None:
            raise DataError(f"{folder / name}.jpg: no such image; --images is WIDER_val/images")
        paths[name] = found
    return paths
