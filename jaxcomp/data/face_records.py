"""Batches of images with faces, for the pipeline: procedural ones and WIDERFace."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data import face_augment, faces, pipeline, widerface, widerface_tfds
from jaxcomp.data.face_augment import FaceAugmentation
from jaxcomp.data.faces import FaceSettings
from jaxcomp.data.images import read_image
from jaxcomp.data.widerface import FaceLabels
from jaxcomp.errors import DataError
from jaxcomp.types import DataSplits

_LOG = logging.getLogger(__name__)
_CACHE_LIMIT = 2**30  # bytes of images that are kept in memory, for each split
HELD_OUT = 10_000_000  # number of the first procedural image of the validation split
SPLITS = ("train", "validation")
# Where the files of a WIDERFace folder may lie, by split: labels with landmarks, official labels.
_LANDMARKS = {"train": ("train/label.txt", "label.txt"), "validation": ("val/label.txt",)}
_OFFICIAL = {
    "train": (
        "wider_face_split/wider_face_train_bbx_gt.txt",
        "wider_face_train_bbx_gt.txt",
    ),
    "validation": ("wider_face_split/wider_face_val_bbx_gt.txt", "wider_face_val_bbx_gt.txt"),
}
_IMAGES = {
    "train": ("train/images", "WIDER_train/images"),
    "validation": ("val/images", "WIDER_val/images"),
}


Read = Callable[[int], tuple[np.ndarray, FaceLabels]]


@dataclasses.dataclass(frozen=True)
class FaceSource:
    """The images of a split.

    Attributes:
      names: of the images, "event/image" for the evaluation's files.
      read: gives image number i, uint8 RGB [H, W, 3], and its labels in pixels.
      fingerprint: tells these images from others.
    """

    names: tuple[str, ...]
    read: Read
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)


def procedural(settings: FaceSettings, first: int, count: int) -> FaceSource:
    """Procedural images number `first` and the `count` - 1 after it."""
    names = tuple(f"faces/{first + i:08}" for i in range(count))
    key = hashlib.sha256(repr((settings, first, count)).encode()).hexdigest()
    return FaceSource(names, lambda row: faces.face_image(settings, first + row), key)


def widerface_source(folder: str, split: str, most: int = 0) -> FaceSource:
    """The images of a WIDERFace folder that have a face, with their labels.

    Labels are RetinaFace's `label.txt` with landmarks where it is there (`train/label.txt`), else
    the official `wider_face_split/wider_face_*_bbx_gt.txt`, whose faces have none; of these, faces
    marked invalid are left out. Images lie in `train/images` or `WIDER_train/images`, and `val`
    likewise. Without such labels it is a `wider_face` that TFDS prepared, see `widerface_tfds`.

    Args:
      folder: with these.
      split: "train" or "validation".
      most: images at most; 0 for all.

    Raises:
      DataError: the folder, its labels or its images are missing, or no image has a face.
    """
    root = Path(folder or ".")
    if not folder or not root.is_dir():
        raise DataError(
            f"config.data.dir={folder!r} is no folder; give the one with WIDER_train and "
            "wider_face_split, with train/label.txt, or with TFDS's wider_face"
        )
    prepared = None if _has_labels(root) else widerface_tfds.find_prepared(root)
    if prepared is not None:
        return _prepared_source(prepared, split, most)
    labels = _read_labels(root, split)
    images = _first(root, _IMAGES[split], "images")
    kept = [one for one in map(_usable, labels) if len(one)][: most or None]
    return _source(root, split, kept, functools.partial(_read_wider, images, kept))


def _prepared_source(folder: Path, split: str, most: int) -> FaceSource:
    records = widerface_tfds.PreparedFaces(folder, split)
    usable = [(i, _usable(one)) for i, one in enumerate(records.scan())]
    rows = [(i, one) for i, one in usable if len(one)][: most or None]

    def read(row: int) -> tuple[np.ndarray, FaceLabels]:
        image, labels = records.read(rows[row][0])
        return image, _usable(labels)

    return _source(folder, split, [one for _, one in rows], read)


def _source(root: Path, split: str, kept: Sequence[FaceLabels], read: Read) -> FaceSource:
    """The images with usable faces."""
    if not kept:
        raise DataError(f"{root}: no image of the {split} split has a usable face")
    _LOG.info("widerface: %d %s images in %s", len(kept), split, root)
    key = hashlib.sha256()
    for one in kept:
        key.update(repr((one.image, one.boxes.tolist(), one.landmarks.tolist())).encode())
    return FaceSource(tuple(_event_name(one) for one in kept), read, key.hexdigest())


def _has_labels(root: Path) -> bool:
    names = (name for part in (_LANDMARKS, _OFFICIAL) for own in part.values() for name in own)
    return any((root / name).is_file() for name in names)


def _read_labels(root: Path, split: str) -> list[FaceLabels]:
    for name in _LANDMARKS[split]:
        if (root / name).is_file():
            return widerface.read_landmark_labels(root / name)
    return widerface.read_face_boxes(_first(root, _OFFICIAL[split], "labels"))


def _first(root: Path, names: Sequence[str], what: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise DataError(f"{root}: no {what}; one of {', '.join(names)} is needed")


def _usable(labels: FaceLabels) -> FaceLabels:
    """Without faces that are marked invalid or have no area."""
    invalid = labels.attributes[:, widerface.ATTRIBUTES.index("invalid")] == 1
    return face_augment.select(labels, ~invalid & (labels.boxes[:, 2:] > 0).all(1))


def _event_name(labels: FaceLabels) -> str:
    path = Path(labels.image)
    return f"{path.parent.name or 'images'}/{path.stem}"


def _read_wider(
    folder: Path, labels: Sequence[FaceLabels], row: int
) -> tuple[np.ndarray, FaceLabels]:
    image = read_image(folder / labels[row].image)
    return image, labels[row].inside(*image.shape[:2])


class FaceRecords:
    """Random access to the images of a split; gathers batches for the pipeline.

    Args:
      source: the images.
      size: (rows, columns) of the network's input.
      most: padded number of faces.
      how: changes of training batches; None leaves them.
      cache: keep images in memory, as many as fit.
      workers: threads that read and change images.
      on_junk: "report" gives an image that cannot be read the mask 0 and says so once, "fatal"
        stops.
    """

    def __init__(
        self, source: FaceSource, size: tuple[int, int], most: int, *,
        how: FaceAugmentation | None = None, cache: bool = True, workers: int = 2,
        on_junk: str = "report",
    ):  # fmt: skip
        self.source, self.size, self.most, self.how = source, size, most, how
        self.workers, self.on_junk = max(1, workers), on_junk
        self._kept: dict[int, tuple[np.ndarray, FaceLabels]] = {}
        self._room = _CACHE_LIMIT if cache else 0
        self._lock, self._told = threading.Lock(), False

    def __len__(self) -> int:
        return len(self.source)

    def image(self, row: int) -> tuple[np.ndarray, FaceLabels]:
        """An image as it is stored, and its labels.

        Raises:
          DataError: it cannot be read.
        """
        found = self._kept.get(row)
        if found is not None:
            return found
        found = self.source.read(row)
        with self._lock:
            if row not in self._kept and found[0].nbytes <= self._room:
                self._room -= found[0].nbytes
                self._kept[row] = found
        return found

    def gather(self, indices: np.ndarray, rng: Any) -> dict[str, np.ndarray]:
        """A batch of rows; with `rng` they are augmented, without shown whole.

        Returns:
          "image" uint8 [B, H, W, 3], what `face_augment.targets` gives, "image_id" int32 [B] (the
          row) and "mask" [B], 0 where an image could not be read.
        """
        rows = [int(row) for row in indices]
        seeds: Sequence[int | None] = [None] * len(rows)
        if rng is not None and self.how is not None:
            seeds = [int(seed) for seed in rng.integers(0, 2**63, len(rows))]
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            parts = list(pool.map(self._sample, rows, seeds))
        batch = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
        return {**batch, "image_id": np.array(rows, np.int32)}

    def _sample(self, row: int, seed: int | None) -> dict[str, np.ndarray]:
        try:
            image, labels = self.image(row)
        except DataError as error:
            if self.on_junk == "fatal":
                raise
            return self._blank(error)
        if seed is None or self.how is None:
            image, labels = face_augment.fit(image, labels, self.size)
        else:
            rng = np.random.default_rng(seed)
            image, labels = face_augment.augment(image, labels, self.size, self.how, rng)
        found = face_augment.targets(labels, self.size, self.most)
        return {"image": image, **found, "mask": np.ones((), np.float32)}

    def _blank(self, error: DataError) -> dict[str, np.ndarray]:
        if not self._told:
            self._told = True
            _LOG.warning("%s; it is left out (further images are not reported)", error)
        shapes: Mapping[str, Any] = {
            "image": np.zeros((*self.size, 3), np.uint8),
            "boxes": np.zeros((self.most, 4), np.float32),
            "landmarks": np.zeros((self.most, 10), np.float32),
            "labels": np.zeros(self.most, np.int32),
        }
        return {**shapes, "mask": np.float32(0)}


def face_sources(config: Any) -> dict[str, FaceSource]:
    """The images of both splits that `config.data` names.

    Raises:
      DataError: they are missing.
      ConfigError: a setting of the procedural images is out of range.
    """
    data = config.data
    sizes = dict(zip(SPLITS, (data.train_size, data.val_size), strict=True))
    if data.name == "widerface":
        return {split: widerface_source(data.dir, split, sizes[split]) for split in SPLITS}
    settings = FaceSettings(
        height=data.height,
        width=data.width,
        smallest=data.smallest,
        largest=min(data.largest, 1.5 * min(data.height, data.width)),
        seed=data.seed,
    )
    firsts = dict(zip(SPLITS, (0, HELD_OUT), strict=True))
    return {split: procedural(settings, firsts[split], sizes[split]) for split in SPLITS}


def face_records(config: Any) -> dict[str, FaceRecords]:
    """{"train", "validation"}: random access to both splits.

    Args:
      config: `data`, `augment` (if `data.augment`) and their keys.
    """
    data = config.data
    how = None
    if data.augment:
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in dict(config.augment).items()
        }
        how = FaceAugmentation(**values)
    return {
        split: FaceRecords(
            source,
            (data.height, data.width),
            data.max_boxes,
            how=how if split == "train" else None,
            cache=data.cache,
            workers=data.workers,
            on_junk=data.on_junk,
        )
        for split, source in face_sources(config).items()
    }


def splits_of(
    records: Mapping[str, FaceRecords], batch_size: int, seed: int, threads: int
) -> DataSplits:
    """Batches of both splits."""
    train, validation = (records[split] for split in SPLITS)
    splits = pipeline.make_data_splits(
        (train.gather, len(train)), (validation.gather, len(validation)), batch_size, seed, threads
    )
    both = "".join(records[split].source.fingerprint for split in SPLITS)
    return dataclasses.replace(splits, fingerprint=hashlib.sha256(both.encode()).hexdigest())


def face_splits(config: Any, batch_size: int) -> DataSplits:
    """As `splits_of`, of the data that a config names."""
    return splits_of(face_records(config), batch_size, config.seed, config.data.num_threads)
