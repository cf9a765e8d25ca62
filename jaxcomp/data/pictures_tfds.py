"""Labelled pictures that TensorFlow Datasets prepared: CIFAR-10, STL-10, ImageNet and the like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data.tfds_folder import TfdsFolder, version_folder
from jaxcomp.errors import DataError

TRAIN = ("train",)
HELD = ("validation", "test")


class RecordLabels:
    """Labels of records, read when they are asked for: ImageNet's take hours otherwise.

    It is indexed as an array is, by a number, a slice or an array of numbers.
    """

    def __init__(self, folder: TfdsFolder, split: str, rows: np.ndarray):
        """Labels of `rows` of a split."""
        self._folder, self._split, self._rows = folder, split, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """int32, -1 where a record has no label."""
        rows = self._rows[index]
        found = [
            int(self._folder.record(self._split, int(row)).get("label", -1))
            for row in np.atleast_1d(rows)
        ]
        labels = np.array(found, np.int32)
        return labels if np.ndim(rows) else labels[0]


def open_pictures(path: str) -> TfdsFolder:
    """A prepared data set with images.

    Raises:
      DataError: there is none, it cannot be read, or its records hold no image.
    """
    if not path:
        raise DataError(
            "data.dir is empty; give the folder that TensorFlow Datasets prepared, as "
            "~/tensorflow_datasets/cifar10"
        )
    folder = TfdsFolder(version_folder(Path(path).expanduser()))
    if "image" not in folder.features:
        raise DataError(
            f"{folder.folder}: its records hold {', '.join(folder.features)}, but no 'image'"
        )
    return folder


def chosen_split(folder: TfdsFolder, wanted: Sequence[str], given: str) -> str:
    """The split that is asked for, or the first known one that is there.

    Raises:
      DataError: it is not there.
    """
    names = (given,) if given else wanted
    found = [name for name in names if name in folder.sources]
    if not found:
        raise DataError(
            f"{folder.folder}: has no split {' or '.join(names)}, but {', '.join(folder.sources)}; "
            "set data.train_split and data.val_split"
        )
    return found[0]


def class_names(folder: TfdsFolder) -> tuple[str, ...]:
    """Names of the labels; empty without any."""
    feature = folder.features["label"] if "label" in folder.features else None
    return tuple(getattr(feature, "names", None) or ())


def fingerprint(folder: TfdsFolder, split: str, count: int) -> str:
    """Of a split: where its records lie is not part of it, what TFDS says of them is."""
    text = (folder.folder / "dataset_info.json").read_bytes()
    return hashlib.sha256(text + f"{split} {count}".encode()).hexdigest()
