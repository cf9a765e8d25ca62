"""Detection batches from KITTI-style records: images, padded boxes, what counts and what not."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import threading
from typing import Any

import numpy as np

from jaxcomp.data import images, pipeline
from jaxcomp.errors import DataError
from jaxcomp.types import DataSplits

CLASS_NAMES = ("Car", "Pedestrian", "Cyclist")  # labels 1, 2, 3; 0 is background
MIN_HEIGHT = 8.0  # pixels at 128 rows; scales with the image
MIN_VISIBLE = 0.3
MAX_TRUNCATED = 0.5
_CACHE_LIMIT = 2 * 2**30  # bytes of decoded images that are kept in memory


def detection_targets(record: dict, height: int, max_boxes: int) -> dict[str, np.ndarray]:
    """Padded targets of one record.

    Args:
      record: a decoded `scenes` record with `objects`.
      height: image rows, which scale the smallest countable box.
      max_boxes: padded length N; countable objects go first, then the largest.

    Returns:
      boxes float32 [N, 4] xyxy, labels int32 [N], valid bool [N] (countable), ignore bool [N].

    Raises:
      DataError: a box is not finite or ends before it starts.
    """
    objects = record["objects"]
    boxes = np.asarray(objects["box"], np.float32).reshape(-1, 4)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise DataError(
            f"record {record['index']}: box {boxes.tolist()} is junk; generate the data again"
        )
    labels = np.array([_label(name, record["index"]) for name in objects["type"]], np.int32)
    countable = (
        (boxes[:, 3] - boxes[:, 1] >= MIN_HEIGHT * height / 128)
        & (np.asarray(objects["visible"], np.float32) >= MIN_VISIBLE)
        & (np.asarray(objects["truncated"], np.float32) <= MAX_TRUNCATED)
        & (labels > 0)
    )
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.lexsort((-area, ~countable))
    if countable.sum() > max_boxes:
        logging.getLogger(__name__).warning(
            "record %s has %d countable objects, %d are kept; raise data.max_boxes",
            record["index"], countable.sum(), max_boxes,
        )  # fmt: skip
    order = order[:max_boxes]
    targets = {
        "boxes": np.zeros((max_boxes, 4), np.float32), "labels": np.zeros(max_boxes, np.int32),
        "valid": np.zeros(max_boxes, bool), "ignore": np.zeros(max_boxes, bool),
    }  # fmt: skip
    count = len(order)
    targets["boxes"][:count], targets["labels"][:count] = boxes[order], labels[order]
    targets["valid"][:count], targets["ignore"][:count] = countable[order], ~countable[order]
    return targets


def _label(name: Any, index: Any) -> int:
    name = name.decode() if isinstance(name, bytes) else str(name)
    if name in CLASS_NAMES:
        return CLASS_NAMES.index(name) + 1
    if name in ("DontCare", "Van", "Truck", "Tram", "Misc", "Person_sitting"):
        return 0
    raise DataError(f"record {index}: object type {name!r}; use one of {', '.join(CLASS_NAMES)}")


class DetectionRecords:
    """Random access to detection rows of a TFDS data source; gathers batches for the pipeline.

    Args:
      source: sequence of records with `image` bytes, `index` and `objects`.
      size: (height, width) of the images.
      max_boxes: padded number of boxes.
      split: named in errors.
      augment: flip and jitter when the pipeline gives a generator.
      cache: keep decoded rows in memory.
    """

    def __init__(self, source, size, max_boxes: int, split: str, augment=False, cache=True):
        self.source, self.size, self.max_boxes, self.split = source, size, max_boxes, split
        self.augment = augment
        self.cache = cache and len(source) * size[0] * size[1] * 3 <= _CACHE_LIMIT
        self._rows: dict[str, np.ndarray] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """One row: image, image_id and targets."""
        record = self.source[int(index)]
        where = f"scenes {self.split} record {index} (frame {record['index']})"
        fix = "delete the data set's folder to make it again"
        image = images.decode_image(record["image"], f"{where}: the image", fix)
        if image.shape != (*self.size, 3):
            raise DataError(
                f"{where}: image {image.shape}, expected {(*self.size, 3)}; check data.height"
            )
        targets = detection_targets(record, self.size[0], self.max_boxes)
        return {"image": image, "image_id": np.int32(record["index"]), **targets}

    def rows(self, indices) -> dict[str, np.ndarray]:
        """Stacked rows, decoded in threads."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            found = list(pool.map(self.row, indices))
        return {key: np.stack([row[key] for row in found]) for key in found[0]}

    def gather(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """A batch of rows; `rng` is there for training batches only."""
        if self.cache:
            with self._lock:
                if self._rows is None:
                    self._rows = self.rows(range(len(self.source)))
            batch = {key: np.take(value, indices, axis=0) for key, value in self._rows.items()}
        else:
            batch = self.rows(indices)
        return augment_batch(batch, rng) if self.augment and rng is not None else batch


def augment_batch(batch: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Flips half of the images left to right, and varies brightness, contrast and tint."""
    image, boxes = batch["image"].copy(), batch["boxes"].copy()
    width = image.shape[2]
    flip = rng.random(len(image)) < 0.5
    image[flip] = image[flip, :, ::-1]
    real = (batch["labels"] > 0) | batch["ignore"]
    turned = np.stack(
        [width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1
    )
    boxes = np.where((flip[:, None] & real)[..., None], turned, boxes)
    gain = rng.uniform(0.8, 1.2, (len(image), 1)) * rng.uniform(0.94, 1.06, (len(image), 3))
    shift = rng.uniform(-16, 16, (len(image), 1))
    # One table of 256 entries for each image and channel: a look-up costs less than float images.
    table = np.arange(256) * gain[..., None] + shift[..., None]
    table = np.clip(table + 0.5, 0, 255).astype(np.uint8)
    for i, c in np.ndindex(len(image), 3):
        image[i, ..., c] = table[i, c][image[i, ..., c]]
    return {**batch, "image": image, "boxes": boxes}


def scenes_splits(config: Any, batch_size: int) -> DataSplits:
    """`DataSplits` of the embedded scenes, generated on first use."""
    from jaxcomp.data import scenes

    data = config.data
    settings = scenes.ScenesSettings(
        height=data.height, width=data.width, seed=data.seed,
        train_size=data.train_size, val_size=data.val_size,
    )  # fmt: skip
    builder = scenes.prepare_scenes(settings, data.dir or None, data.workers)
    make = functools.partial(
        _records, builder, (data.height, data.width), data.max_boxes, data.cache
    )
    train, held_out = make("train", data.augment), make("validation", False)
    return pipeline.make_data_splits(
        (train.gather, len(train)), (held_out.gather, len(held_out)), batch_size, config.seed,
        threads=data.num_threads,
    )  # fmt: skip


def _records(
    builder, size, max_boxes: int, cache: bool, split: str, augment: bool
) -> DetectionRecords:
    from jaxcomp.data import scenes

    return DetectionRecords(
        scenes.detection_source(builder, split), size, max_boxes, split, augment, cache
    )
