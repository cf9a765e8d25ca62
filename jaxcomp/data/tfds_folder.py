"""Data that TensorFlow Datasets prepared, read record by record without TensorFlow."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data import images
from jaxcomp.errors import DataError


class TfdsFolder:
    """A prepared data set; the folder is that of its version, which holds `dataset_info.json`.

    Attributes:
      folder: it.
      features: of a record, as TFDS describes them.
      sources: by split, in its order.

    Raises:
      DataError: the files are damaged, lack a split, or have no random access (TFRecord).
    """

    def __init__(self, folder: Path, splits: Sequence[str] = ()):
        """Opens the given splits, all without any; images stay encoded until they are read."""
        self.folder = folder
        kind = file_format(folder)
        if kind != "array_record":
            raise DataError(
                f"{folder}: prepared as {kind!r} files, which have no random access; prepare it as "
                f"tfds.builder({folder.parent.name!r}, file_format='array_record')"
                ".download_and_prepare()"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow_datasets as tfds
        try:
            builder = tfds.builder_from_directory(folder)
            self.features = builder.info.features
            known = list(builder.info.splits)
            missing = [s for s in splits if s not in known]
            if missing:
                raise DataError(
                    f"{folder}: has no split {' or '.join(missing)}, but {', '.join(known)}"
                )
            self.sources = {
                split: builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
                for split in (splits or known)
            }
        except DataError:
            raise
        except Exception as error:  # the reader raises what the damage happens to cause
            raise DataError(
                f"{folder}: cannot be read ({_first_line(error)}); prepare the data again"
            ) from error

    def size(self, split: str) -> int:
        """Records of a split."""
        return len(self.sources[split])

    def record(self, split: str, index: int) -> dict[str, Any]:
        """One record; its image is still encoded."""
        try:
            return self.sources[split][index]
        except Exception as error:
            raise DataError(
                f"{self.folder}: record {index} of {split} cannot be read ({_first_line(error)}); "
                "prepare the data again"
            ) from error

    def image(self, split: str, index: int, name: str = "") -> np.ndarray:
        """uint8 [H, W, 3] of a record; `name` is how errors call it."""
        where = f"{self.folder}: {name or f'record {index} of {split}'}"
        data = self.record(split, index)["image"]
        return images.decode_image(data, where, "prepare the data again")


def file_format(folder: Path) -> str:
    """How TFDS stored a folder, "tfrecord" or "array_record"."""
    path = folder / "dataset_info.json"
    try:
        return json.loads(path.read_text()).get("fileFormat", "tfrecord")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prepare the data again") from error


def version_folder(folder: Path) -> Path:
    """The folder with `dataset_info.json`: the given one, or the latest of its versions below it.

    Raises:
      DataError: there is none, or there are several data sets (or configs of one) to choose from.
    """
    if (folder / "dataset_info.json").exists():
        return folder
    found = [p.parent for depth in ("*", "*/*") for p in folder.glob(f"{depth}/dataset_info.json")]
    homes = sorted({str(path.parent) for path in found})
    if len(homes) != 1:
        what = "no data set" if not homes else f"{len(homes)} data sets ({', '.join(homes[:3])})"
        raise DataError(
            f"{str(folder)!r} holds {what} of TensorFlow Datasets (dataset_info.json); give the "
            "folder that download_and_prepare() made, as ~/tensorflow_datasets/cifar10"
        )
    return max(found, key=lambda p: [(int(n) if n.isdigit() else -1) for n in p.name.split(".")])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
