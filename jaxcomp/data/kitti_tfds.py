"""Reads the `kitti` that TensorFlow Datasets prepares, without TensorFlow.

TFDS (3.x) keeps the images and labels of the object data, split by drive into train, validation and
test. It lacks DontCare regions, calibration and lidar, and measures boxes from the bottom of the
image: `bbox` is (ymin, xmin, ymax, xmax) in shares of the image with y = (height - row) / height.
"""

from __future__ import annotations

import concurrent.futures
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcomp.data.kitti_files import KittiFrame
from jaxcomp.data.kitti_format import KittiObject
from jaxcomp.data.kitti_junk import Junk
from jaxcomp.data.kitti_scan import Annotation, inside
from jaxcomp.data.tfds_folder import TfdsFolder
from jaxcomp.errors import DataError

_LOG = logging.getLogger(__name__)
_SPLITS = ("train", "validation")
_THREADS = 8


class Prepared(TfdsFolder):
    """A prepared `kitti` folder (that of the version)."""

    def __init__(self, folder: Path):
        super().__init__(folder, _SPLITS)
        self._names = self.features["objects"]["type"].names

    def read(self, frame: KittiFrame) -> np.ndarray:
        """uint8 [H, W, 3] of a frame that `scan` made."""
        return self.image(frame.sequence, frame.number, f"frame {frame.name}")

    def scan(self, split: str, junk: Junk) -> list[Annotation]:
        """The annotations of "train" or "validation", by frame name; reads every record once."""
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda i: self._annotate(split, i), range(self.size(split))))
        annotations = []
        for annotation, problems in found:
            junk.extend(problems)
            if annotation is not None:
                annotations.append(annotation)
        return sorted(annotations, key=lambda item: item.name)

    def _annotate(self, split: str, index: int):
        where = f"{self.folder}: record {index} of {split}"
        try:
            record = self.record(split, index)
            with Image.open(io.BytesIO(record["image"])) as image:
                height, width, plain = image.height, image.width, image.mode == "RGB"
        except DataError as error:
            return None, [("frame", str(error))]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return None, [("frame", f"{where}: the image does not decode ({error})")]
        name = record["image/file_name"]
        name = (name.decode() if isinstance(name, bytes) else str(name)).rpartition(".")[0]
        objects = make_objects(record["objects"], self._names, height, width)
        sound = [item for item in objects if np.isfinite(_numbers(item)).all()]
        problems = [("object", f"{where}: a value is not finite")] * (len(objects) - len(sound))
        kept, outside = inside([(where, item) for item in sound], height, width)
        frame = KittiFrame(name, split, index)
        return Annotation(frame, height, width, kept, plain), problems + outside


def make_objects(
    found: dict[str, np.ndarray], names: Sequence[str], height: int, width: int
) -> list[KittiObject]:
    """KITTI objects of a record's `objects`; boxes to KITTI's two decimals of a pixel.

    Args:
      found: columns type, truncated, occluded, alpha, bbox, dimensions, location, rotation_y.
      names: of the types, by number.
      height: of the image, pixels.
      width: of the image, pixels.
    """
    bottom, left, top, right = np.moveaxis(
        np.asarray(found["bbox"], np.float64).reshape(-1, 4), -1, 0
    )
    boxes = np.stack(
        [left * width, (1 - top) * height, right * width, (1 - bottom) * height], axis=-1
    )
    rows = zip(np.round(boxes, 2).tolist(), *(np.asarray(found[k]).tolist() for k in _COLUMNS),
               strict=True)  # fmt: skip
    return [
        KittiObject(
            names[kind], _short(truncated), int(occluded), _short(alpha), tuple(box),
            tuple(map(_short, size)), tuple(map(_short, place)), _short(yaw),
        )
        for box, kind, truncated, occluded, alpha, size, place, yaw in rows
    ]  # fmt: skip


_COLUMNS = ("type", "truncated", "occluded", "alpha", "dimensions", "location", "rotation_y")


def _short(value: float) -> float:
    return round(float(value), 2)  # KITTI's files have two decimals, float32 has more digits


def _numbers(item: KittiObject) -> list[float]:
    return [item.truncated, item.alpha, *item.box, *item.dimensions, *item.location,
            item.rotation_y]  # fmt: skip
