"""The KITTI data set for the detector and the codecs, from the folders people already have.

    config.data.name = "kitti", config.data.dir = FOLDER   (or KITTI_ROOT=FOLDER in the environment)

The embedded data are a TFDS builder because they are made here. KITTI is not: its folders lie on
disk already, and a builder would copy 12 GB into a second place before the first step, to gain an
order of rows that the pipeline draws by number anyway. So PNG and label files are read in place by
a random-access source with the interface of `detection.DetectionRecords`; who has TFDS's own copy
points at that. Layouts, split rules and reports are described in docs/data.md.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcomp.data import images, kitti_files, kitti_scan, kitti_split, pipeline
from jaxcomp.data.kitti_files import KittiFrame
from jaxcomp.data.kitti_junk import Junk
from jaxcomp.data.kitti_records import KittiRecords, Read
from jaxcomp.data.kitti_scan import Annotation
from jaxcomp.data.kitti_targets import make_targets
from jaxcomp.data.resize import ResizeRule, canvas_size
from jaxcomp.errors import DataError
from jaxcomp.types import DataSplits

_LOG = logging.getLogger(__name__)
CLASSES = ("Car", "Pedestrian")  # where the config has no `classes`
CANVAS_MULTIPLE = 32
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class KittiData:
    """The frames of both splits.

    Attributes:
      layout: "object", "tracking" or "tfds".
      splits: annotations of "train" and "validation"; a row's place is its `image_id`.
      read: decodes the image of a frame, uint8 [H, W, 3].
    """

    layout: str
    splits: Mapping[str, Sequence[Annotation]]
    read: Read

    def fingerprint(self) -> str:
        """SHA-256 (hex) of names, sizes and labels of all frames, wherever the folder lies."""
        content = [
            (split, a.name, a.height, a.width, [dataclasses.astuple(item) for item in a.objects])
            for split, annotations in self.splits.items()
            for a in annotations
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def canvas(self) -> tuple[int, int]:
        """(height, width) that hold every image of both splits, in multiples of 32."""
        every = [item for items in self.splits.values() for item in items]
        height, width = max(item.height for item in every), max(item.width for item in every)
        return canvas_size(height, width, CANVAS_MULTIPLE)


def load_kitti(config: Any, *, report: bool = True) -> KittiData:
    """Lists, splits and checks the frames; reads labels and image headers, no pixels.

    Args:
      config: `data.dir`, `data.train_size`, `data.val_size` (0: all), `data.val_share`,
        `data.seed`, `data.on_junk` and, if it has them, `classes`.
      report: log what was found and what was left out.

    Raises:
      DataError: no KITTI folder is found, a split is empty, no object of the classes is found, or
        something is broken and `data.on_junk` is "fatal".
    """
    data = config.data
    layout, folder = kitti_files.find_layout(kitti_files.find_root(data.dir))
    junk = Junk(data.on_junk)
    if layout == "tfds":
        splits, read, how = _load_prepared(folder, junk)
    else:
        splits, how = _load_files(layout, folder, data.val_share, data.seed, junk)
        read = read_frame
    if report:
        junk.log(_LOG)
    limits = (data.train_size, data.val_size)
    chosen = {
        name: kitti_split.capped(splits[name], limit, data.seed)
        for name, limit in zip(SPLITS, limits, strict=True)
    }
    loaded = KittiData(layout, chosen, read)
    for name, items in chosen.items():
        if not items:
            raise DataError(f"{folder}: the {name} split ({how}) has no usable frame; see the log")
    if report:
        _report(loaded, folder, how, classes_of(config))
    return loaded


def classes_of(config: Any) -> tuple[str, ...]:
    """The object types with labels 1, 2, ..."""
    return tuple(config.get("classes", CLASSES))


def read_frame(frame: KittiFrame) -> Any:
    """The image of a frame of the object or tracking layout, uint8 [H, W, 3].

    Raises:
      DataError: there is none, or it does not decode.
    """
    if frame.image is None:
        raise DataError(f"kitti frame {frame.name} has no image")
    return images.read_image(frame.image)


def list_frames(folder: str = "") -> list[KittiFrame]:
    """Every frame of an object or tracking folder, also those without an image (lidar only).

    Args:
      folder: as `config.data.dir`; empty for the environment variable KITTI_ROOT.

    Raises:
      DataError: it is no such folder.
    """
    layout, training = kitti_files.find_layout(kitti_files.find_root(folder))
    if layout == "tfds":
        raise DataError(f"{training}: TFDS's copy has no separate files; use the official folders")
    return _frames(layout, training)


def _frames(layout: str, training: Path) -> list[KittiFrame]:
    listing = {"object": kitti_files.object_frames, "tracking": kitti_files.tracking_frames}
    return listing[layout](training)


def _load_files(layout: str, training: Path, share: float, seed: int, junk: Junk):
    """Splits and annotations of the object or tracking layout."""
    kitti_files.require_folders(layout, training)
    frames = _frames(layout, training)
    with_image = [frame for frame in frames if frame.image is not None]
    if not with_image:
        raise DataError(f"{training}: no image in it; unpack the left colour images")
    if layout == "tracking":
        with_image, problems = kitti_scan.labelled_sequences(with_image)
        junk.extend(problems)
    split, how = kitti_split.split_frames(layout, training, with_image, share, seed, junk)
    if layout == "object":
        for frame in frames:
            if frame.image is None and frame.label is not None:
                message = f"{frame.label}: label without an image in image_2"
                junk.add("frame", message, frame.name)
    scan = kitti_scan.scan_object if layout == "object" else kitti_scan.scan_tracking
    return {name: _sound(scan(items), junk) for name, items in split.items()}, how


def _sound(found: Iterable, junk: Junk) -> list[Annotation]:
    kept = []
    for annotation, problems in found:
        junk.extend(problems)
        if annotation is not None:
            kept.append(annotation)
    return kept


def _load_prepared(folder: Path, junk: Junk):
    from jaxcomp.data.kitti_tfds import Prepared  # imports TFDS, which takes seconds

    prepared = Prepared(folder)
    splits = {name: prepared.scan(name, junk) for name in SPLITS}
    _LOG.warning(
        "kitti: TFDS's copy has no DontCare regions, so detections there count as wrong: "
        "accuracies are lower than with the official labels"
    )
    return splits, prepared.read, "drives, as TFDS splits them"


def _report(loaded: KittiData, folder: Path, how: str, classes: Sequence[str]) -> None:
    """Logs sizes and objects; raises if the training frames hold nothing to learn."""
    train, held_out = (loaded.splits[name] for name in SPLITS)
    counts: collections.Counter[str] = collections.Counter()
    types: collections.Counter[str] = collections.Counter()
    for item in train:
        native = (item.height, item.width)
        row = make_targets(item.objects, native, native, classes, max(1, len(item.objects)))
        counts.update(classes[label - 1] for label in row["labels"][row["valid"]])
        types.update(found.type for found in item.objects)
    _LOG.info(
        "kitti: %s layout in %s, %d training and %d validation frames (split by %s), "
        "canvas %d x %d, training objects that count: %s",
        loaded.layout, folder, len(train), len(held_out), how, *loaded.canvas(),
        ", ".join(f"{name} {counts[name]}" for name in classes),
    )  # fmt: skip
    converted = sum(not item.plain for items in (train, held_out) for item in items)
    if converted:
        _LOG.info("kitti: %d images are not 8-bit RGB and are converted when read", converted)
    absent = [name for name in classes if not counts[name]]
    seen = ", ".join(f"{name} {count}" for name, count in types.most_common()) or "none"
    if len(absent) == len(classes):
        raise DataError(
            f"{folder}: the training frames hold no object of config.classes={tuple(classes)!r} "
            f"that counts; types found: {seen}"
        )
    if absent:
        _LOG.warning("kitti: no training object of %s counts; types: %s", ", ".join(absent), seen)


def annotations(config: Any, split: str, *, report: bool = True) -> list[Annotation]:
    """The ground truth of "train" or "validation"; the list is indexed by a batch's `image_id`.

    It reads the labels again; `report` says whether to tell again what was found.

    Raises:
      DataError: the split has another name, or as `load_kitti` does.
    """
    if split not in SPLITS:
        raise DataError(f"kitti: split {split!r}; use one of: {', '.join(SPLITS)}")
    return list(load_kitti(config, report=report).splits[split])


def resize_rule(config: Any) -> ResizeRule:
    """The rule of `config.data`."""
    data = config.data
    return ResizeRule(data.resize, data.height, data.width, data.min_side, data.max_side)


def kitti_splits(config: Any, batch_size: int) -> DataSplits:
    """`DataSplits` of KITTI; `KittiRecords.gather` describes a batch.

    Raises:
      DataError: as `load_kitti` does, or an image does not fit the network's canvas.
    """
    return splits_of(load_kitti(config), config, batch_size)


def splits_of(loaded: KittiData, config: Any, batch_size: int) -> DataSplits:
    """`kitti_splits` of data that are loaded already."""
    data = config.data
    make = functools.partial(
        KittiRecords, read=loaded.read, canvas=loaded.canvas(), rule=resize_rule(config),
        classes=classes_of(config), max_boxes=data.max_boxes, cache=data.cache,
        workers=data.workers, fatal=data.on_junk == "fatal",
    )  # fmt: skip
    train = make(loaded.splits["train"], augment=data.augment)
    held_out = make(loaded.splits["validation"])
    splits = pipeline.make_data_splits(
        (train.gather, len(train)), (held_out.gather, len(held_out)), batch_size, config.seed,
        threads=data.num_threads,
    )  # fmt: skip
    return dataclasses.replace(splits, fingerprint=loaded.fingerprint())
