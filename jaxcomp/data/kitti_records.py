"""Batches of KITTI frames: native pixels on a static canvas, targets in network pixels."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from jaxcomp.data import kitti_targets
from jaxcomp.data.kitti_files import KittiFrame
from jaxcomp.data.kitti_scan import Annotation
from jaxcomp.data.resize import ResizeRule
from jaxcomp.errors import DataError

_LOG = logging.getLogger(__name__)
_CACHE_LIMIT = 2 * 2**30  # bytes of decoded images that are kept in memory, for each split
Read = Callable[[KittiFrame], np.ndarray]  # uint8 [H, W, 3]


class KittiRecords:
    """Random access to the frames of a split; gathers batches for the pipeline.

    Args:
      annotations: the frames, in the order of the rows.
      read: decodes the image of a frame.
      canvas: (height, width) of the native canvas.
      rule: gives the size of each image in network pixels.
      classes: names of the labels 1, 2, ...
      max_boxes: padded number of boxes.
      augment: flip and jitter when the pipeline gives a generator.
      cache: keep decoded images in memory, as many as fit.
      workers: threads that decode.
      fatal: an image that does not decode is an error; otherwise its row is black and has the mask
        0, so that it neither teaches nor counts (though batch statistics see it in training).

    Raises:
      DataError: an image does not fit the network's canvas; the message names it.
    """

    def __init__(
        self, annotations: Sequence[Annotation], read: Read, canvas: tuple[int, int],
        rule: ResizeRule, classes: Sequence[str], max_boxes: int, *, augment=False, cache=True,
        workers=2, fatal=False,
    ):  # fmt: skip
        self.annotations, self.read, self.canvas = annotations, read, canvas
        self.augment, self.workers, self.fatal = augment, max(1, workers), fatal
        self._targets = _stack_targets(annotations, rule, classes, max_boxes)
        self._images: dict[int, np.ndarray] = {}
        self._room = _CACHE_LIMIT if cache else 0
        self._failed: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.annotations)

    def image(self, index: int) -> np.ndarray | None:
        """uint8 [H, W, 3] of a row, from memory if it is there; None if it does not decode.

        Raises:
          DataError: it does not decode, and that is fatal.
        """
        found = self._images.get(index)
        if found is not None or index in self._failed:
            return found
        item = self.annotations[index]
        try:
            found = self.read(item.frame)
            if found.shape != (item.height, item.width, 3):
                raise DataError(
                    f"{item.frame.image or item.name}: {found.shape[0]} x {found.shape[1]} pixels, "
                    f"but its header said {item.height} x {item.width}; replace the file"
                )
        except DataError as error:
            if self.fatal:
                raise
            with self._lock:
                if index not in self._failed:
                    _LOG.warning("kitti frame %s left out: %s", item.name, error)
                self._failed.add(index)
            return None
        self._keep(index, found)
        return found

    def _keep(self, index: int, image: np.ndarray) -> None:
        with self._lock:
            if index not in self._images and image.nbytes <= self._room:
                self._room -= image.nbytes
                self._images[index] = image

    def gather(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """A batch of rows; `rng` is there for training batches only.

        Returns:
          image uint8 [B, Hn, Wn, 3] (native pixels, zeros at the bottom and right), native_size
          and image_size float32 [B, 2] (height, width in native and in network pixels), image_id
          int32 [B] (the row in the split), mask float32 [B] (0: not decoded), and boxes, labels,
          valid, ignore as `kitti_targets.make_targets` gives them.
        """
        rows = np.asarray(indices, np.int64)
        batch = {key: np.take(value, rows, axis=0) for key, value in self._targets.items()}
        batch["image_id"] = rows.astype(np.int32)
        canvas = np.zeros((len(rows), *self.canvas, 3), np.uint8)
        changes = None
        if self.augment and rng is not None:
            changes = kitti_targets.draw_changes(rng, len(rows))

        def fill(place: int) -> bool:
            image = self.image(int(rows[place]))
            if image is None:
                return False
            if changes is not None:
                image = kitti_targets.change_image(image, changes, place)
            canvas[place, : image.shape[0], : image.shape[1]] = image
            return True

        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            decoded = list(pool.map(fill, range(len(rows))))
        batch["mask"] = np.array(decoded, np.float32)
        for place in np.flatnonzero(~np.array(decoded, bool)):
            _blank(batch, int(place))
        if changes is not None:
            batch["boxes"] = kitti_targets.flip_boxes(
                batch["boxes"], batch["valid"] | batch["ignore"], batch["image_size"][:, 1],
                changes.flip,
            )  # fmt: skip
        return {"image": canvas, **batch}


def _blank(batch: dict[str, np.ndarray], place: int) -> None:
    """Makes the whole image of a row one region to ignore."""
    height, width = batch["image_size"][place]
    for key in ("boxes", "labels", "valid", "ignore"):
        batch[key][place] = 0
    batch["boxes"][place, 0] = (0, 0, width, height)
    batch["ignore"][place, 0] = True


def _stack_targets(
    annotations: Sequence[Annotation], rule: ResizeRule, classes: Sequence[str], max_boxes: int
) -> dict[str, np.ndarray]:
    """Sizes and targets of all rows, [N, ...]."""
    rows, crowded = [], []
    for item in annotations:
        native = (item.height, item.width)
        try:
            network = rule.size(*native)
        except DataError as error:
            raise DataError(f"{item.frame.image or item.name}: {error}") from error
        row = kitti_targets.make_targets(item.objects, native, network, classes, max_boxes)
        if row.pop("left_out"):
            crowded.append(item.name)
        rows.append({"native_size": native, "image_size": network, **row})
    if crowded:
        _LOG.warning(
            "kitti: %d frames have more than %d objects and regions to ignore; the smallest "
            "regions, then objects are left out (first: %s); raise config.data.max_boxes",
            len(crowded), max_boxes, crowded[0],
        )  # fmt: skip
    stacked = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]}
    return {k: v.astype(np.float32) if k.endswith("_size") else v for k, v in stacked.items()}
