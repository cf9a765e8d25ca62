"""WIDERFace as TensorFlow Datasets prepares it, `wider_face`, read without TensorFlow.

A record holds the image, its name "event/image.jpg" and the faces: `bbox` is (ymin, xmin, ymax,
xmax) in shares of the image, clipped to it, beside the six attributes. There are no landmarks.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data.tfds_folder import TfdsFolder, version_folder
from jaxcomp.data.widerface import ATTRIBUTES, MISSING, POINTS, FaceLabels
from jaxcomp.errors import DataError

NAME = "wider_face"
_FEATURES = ("image", "image/filename", "faces")
_COLUMNS = ("bbox", *ATTRIBUTES)
_THREADS = 8


def find_prepared(root: Path) -> Path | None:
    """The latest version of the data set in a data_dir, its own folder or a version's, or None.

    Raises:
      DataError: there are several data sets, and none has the name that TFDS gives it.
    """
    start = root / NAME if (root / NAME).is_dir() else root
    depths = ("", "*/", "*/*/")
    if not any(next(start.glob(f"{depth}dataset_info.json"), None) for depth in depths):
        return None
    return version_folder(start)


class PreparedFaces(TfdsFolder):
    """A split of a prepared `wider_face`; the folder is that of the version."""

    def __init__(self, folder: Path, split: str):
        """Opens one split.

        Raises:
          DataError: as of `TfdsFolder`, or the records are of another data set.
        """
        super().__init__(folder, (split,))
        self.split = split
        faces = self.features["faces"] if "faces" in self.features else None
        known = {*self.features, *getattr(faces, "feature", ())}
        missing = [name for name in (*_FEATURES, *_COLUMNS) if name not in known]
        if missing:
            raise DataError(
                f"{folder}: its records have no {', '.join(missing)}; give a prepared {NAME}"
            )

    def scan(self) -> list[FaceLabels]:
        """The labels of every record, boxes in shares of the image; reads the whole split once.

        Raises:
          DataError: a record cannot be read, or a box is not finite.
        """
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._labels, range(self.size(self.split))))

    def read(self, index: int) -> tuple[np.ndarray, FaceLabels]:
        """Image uint8 [H, W, 3] and labels in pixels of a record."""
        shares = self._labels(index)
        image = self.image(self.split, index, shares.image)
        height, width = image.shape[:2]
        boxes = shares.boxes * np.array([width, height] * 2, np.float32)
        labels = _without_landmarks(shares.image, boxes, shares.attributes)
        return image, labels.inside(height, width)

    def _labels(self, index: int) -> FaceLabels:
        record = self.record(self.split, index)
        name = record["image/filename"]
        name = name.decode() if isinstance(name, bytes) else str(name)
        labels = to_labels(name, record["faces"])
        if not np.isfinite(labels.boxes).all():
            raise DataError(f"{self.folder}: {name}: a box is not finite; prepare the data again")
        return labels


def to_labels(name: str, faces: Mapping[str, Any]) -> FaceLabels:
    """The faces of a record; their boxes stay shares of the image.

    Args:
      name: of the image.
      faces: "bbox" [N, 4] ymin, xmin, ymax, xmax, and the `ATTRIBUTES`, [N] each.
    """
    low_y, low_x, high_y, high_x = np.asarray(faces["bbox"], np.float32).reshape(-1, 4).T
    boxes = np.stack([low_x, low_y, high_x - low_x, high_y - low_y], 1)
    columns = [np.asarray(faces[key]).astype(np.int32).reshape(-1) for key in ATTRIBUTES]
    return _without_landmarks(name, boxes, np.stack(columns, 1))


def _without_landmarks(name: str, boxes: np.ndarray, attributes: np.ndarray) -> FaceLabels:
    count = len(boxes)
    points = np.full((count, POINTS, 2), MISSING, np.float32)
    return FaceLabels(name, boxes, points, np.zeros(count, bool), attributes)
