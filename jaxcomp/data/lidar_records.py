"""Batches of lidar sweeps with boxes, for the pipeline."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from jaxcomp.data import lidar_augment
from jaxcomp.data.kitti_files import KittiFrame
from jaxcomp.data.kitti_format import Calibration, KittiObject
from jaxcomp.data.kitti_scan import Annotation
from jaxcomp.data.lidar_augment import Database, LidarAugmentation
from jaxcomp.data.lidar_boxes import LidarObjects, lidar_objects
from jaxcomp.errors import DataError

_LOG = logging.getLogger(__name__)
_CACHE_LIMIT = 2 * 2**30  # bytes of sweeps that are kept in memory, for each split
Prepare = Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class LidarFrame:
    """One sweep with its labels.

    Attributes:
      name: that of its result file.
      read: gives the points, float32 [N, 4], already cut to the camera's view.
      calibration: of camera and lidar.
      objects: every object of the labels, DontCare included.
      height, width: of the image that the labels' boxes refer to, pixels.
      difficulty_rows: image height that KITTI's limits of difficulty are scaled with.
    """

    name: str
    read: Callable[[], np.ndarray]
    calibration: Calibration
    objects: tuple[KittiObject, ...]
    height: int
    width: int
    difficulty_rows: int = 375

    def annotation(self) -> Annotation:
        """The frame as the evaluation of images knows it."""
        return Annotation(KittiFrame(self.name), self.height, self.width, self.objects)


def pad_points(sweeps: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """{"points": float32 [B, N, 4] with zeros behind, "count": int32 [B]}; N a power of two."""
    most = max(len(points) for points in sweeps)
    length = max(1024, 1 << max(0, most - 1).bit_length())
    out = np.zeros((len(sweeps), length, 4), np.float32)
    for row, points in zip(out, sweeps, strict=True):
        row[: len(points)] = points
    return {"points": out, "count": np.array([len(points) for points in sweeps], np.int32)}


class LidarRecords:
    """Random access to the sweeps of a split; gathers batches for the pipeline.

    Args:
      frames: in the order of the rows.
      classes: names of labels 0, 1, ...
      max_boxes: padded number of boxes.
      prepare: makes entries of a batch from sweeps, as `functools.partial(voxelise.pillar_batch,
        grid=..., ...)` does; voxelising here costs less than a millisecond and gives the device
        static shapes. Without it the batch has the padded points.
      augment: how training batches are changed; None leaves them.
      cache: keep sweeps in memory, as many as fit.
      workers: threads that read and augment.
    """

    def __init__(
        self, frames: Sequence[LidarFrame], classes: Sequence[str], max_boxes: int, *,
        prepare: Prepare = pad_points, augment: LidarAugmentation | None = None, cache=True,
        workers=2,
    ):  # fmt: skip
        self.frames, self.classes, self.max_boxes = list(frames), tuple(classes), max_boxes
        self.prepare, self.augment, self.workers = prepare, augment, max(1, workers)
        if augment is not None and len(augment.fill) != len(self.classes):
            raise DataError(
                f"augmentation fills {len(augment.fill)} classes, there are {len(self.classes)}: "
                "give fill and fill_points one value for each"
            )
        self.objects = [
            lidar_objects(f.objects, f.calibration, classes, f.difficulty_rows) for f in frames
        ]
        self._sweeps: dict[int, np.ndarray] = {}
        self._room = _CACHE_LIMIT if cache else 0
        self._database: Database | None = None
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._crowded = False

    def __len__(self) -> int:
        return len(self.frames)

    def annotations(self) -> list[Annotation]:
        """Ground truth for KITTI's evaluation; the list is indexed by a batch's `image_id`."""
        return [frame.annotation() for frame in self.frames]

    def sweep(self, row: int) -> np.ndarray:
        """Points of a row, float32 [N, 4]; not to be written to.

        Raises:
          DataError: they cannot be read.
        """
        found = self._sweeps.get(row)
        if found is not None:
            return found
        points = np.ascontiguousarray(self.frames[row].read(), np.float32)
        with self._lock:
            if row not in self._sweeps and points.nbytes <= self._room:
                self._room -= points.nbytes
                self._sweeps[row] = points
        return points

    def database(self) -> Database:
        """Objects of all rows by class, cut out on first use."""
        with self._making:
            return self._made_database()

    def _made_database(self) -> Database:
        how = self.augment or LidarAugmentation()
        if self._database is None:
            rows = range(len(self))
            samples = ((self.sweep(row), self.objects[row]) for row in rows)
            made = lidar_augment.make_database(samples, len(self.classes), how.fill_points)
            counts = zip(self.classes, made, strict=True)
            _LOG.info(
                "lidar: objects to paste into training sweeps: %s",
                ", ".join(f"{name} {len(items)}" for name, items in counts),
            )
            self._database = made
        return self._database

    def gather(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """A batch of rows; `rng` is there for training batches only.

        Returns:
          What `prepare` makes, and boxes float32 [B, M, 7], labels int32 [B, M] (-1: an object of
          no class), valid bool [B, M], image_id int32 [B] (the row).
        """
        rows = [int(row) for row in indices]
        seeds: Sequence[int | None] = [None] * len(rows)
        if self.augment is not None and rng is not None:
            seeds = [int(seed) for seed in rng.integers(0, 2**63, len(rows))]
            self.database()
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            samples = list(pool.map(self._sample, rows, seeds))
        batch = dict(self.prepare([points for points, _ in samples]))
        targets = [self._targets(row, found) for row, (_, found) in zip(rows, samples, strict=True)]
        batch |= {key: np.stack([target[key] for target in targets]) for key in targets[0]}
        return {**batch, "image_id": np.array(rows, np.int32)}

    def _sample(self, row: int, seed: int | None) -> lidar_augment.Sample:
        points, objects = self.sweep(row), self.objects[row]
        if seed is None or self.augment is None:
            return points, objects
        finite = points[np.isfinite(points).all(1)]
        rng = np.random.default_rng(seed)
        return lidar_augment.augment(finite, objects, rng, self.augment, self.database())

    def targets(self, row: int) -> dict[str, np.ndarray]:
        """The row's own objects, padded: boxes [M, 7], labels [M], valid [M]."""
        return self._targets(row, self.objects[row])

    def _targets(self, row: int, objects: LidarObjects) -> dict[str, np.ndarray]:
        """Padded objects; those of a class go first."""
        order = np.argsort(objects.labels < 0, kind="stable")
        if len(order) > self.max_boxes and not self._crowded:
            self._crowded = True
            _LOG.warning(
                "lidar frame %s has %d objects, %d are kept (further frames are not reported); "
                "raise data.max_boxes", self.frames[row].name, len(order), self.max_boxes,
            )  # fmt: skip
        kept = objects.select(order[: self.max_boxes])
        count = len(kept.labels)
        boxes = np.zeros((self.max_boxes, 7), np.float32)
        labels = np.full(self.max_boxes, -1, np.int32)
        boxes[:count], labels[:count] = kept.boxes, kept.labels
        return {"boxes": boxes, "labels": labels, "valid": np.arange(self.max_boxes) < count}
