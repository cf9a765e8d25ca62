"""The embedded data set `scenes`: a procedural KITTI with images, labels, calibration and lidar.

A TFDS builder (array_record files, no TensorFlow) for each setting. Command line:

    python -m jaxcomp.data.scenes --contact-sheet docs/images/scenes.png
    python -m jaxcomp.data.scenes --export-kitti FOLDER --split validation
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tqdm
from etils import epath
from google.protobuf import json_format

from jaxcomp.data import scenes_frame, scenes_tools, scenes_worker
from jaxcomp.data.waiting import one_at_a_time
from jaxcomp.errors import DataError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds

_OBJECT_FIELDS = {
    "type": lambda: tfds.features.Text(),
    "truncated": lambda: np.float32,
    "occluded": lambda: np.int32,
    "alpha": lambda: np.float32,
    "box": lambda: tfds.features.Tensor(shape=(4,), dtype=np.float32),
    "dimensions": lambda: tfds.features.Tensor(shape=(3,), dtype=np.float32),
    "location": lambda: tfds.features.Tensor(shape=(3,), dtype=np.float32),
    "rotation_y": lambda: np.float32,
    "visible": lambda: np.float32,
    "difficulty": lambda: np.int32,
}


@dataclasses.dataclass(frozen=True)
class ScenesSettings(scenes_frame.SceneSettings):
    """Settings of the data set: those of a frame, and how many frames each split has."""

    train_size: int = 600
    val_size: int = 150

    def name(self) -> str:
        """A builder-config name that no other setting shares."""
        return (
            f"t{self.train_size}_v{self.val_size}_{self.height}x{self.width}_s{self.seed}"
            f"_l{self.beams}x{self.azimuths}_r{scenes_frame.RENDERER_VERSION.replace('.', '')}"
        )

    def frame(self) -> scenes_frame.SceneSettings:
        """The part that defines a frame."""
        fields = dataclasses.fields(scenes_frame.SceneSettings)
        return scenes_frame.SceneSettings(**{f.name: getattr(self, f.name) for f in fields})


@dataclasses.dataclass
class ScenesConfig(tfds.core.BuilderConfig):
    """TFDS's view of `ScenesSettings`."""

    settings: ScenesSettings = ScenesSettings()
    workers: int = 1  # speed only: never part of the name


class Scenes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Procedural street scenes in KITTI's form."""

    VERSION = tfds.core.Version(scenes_frame.RENDERER_VERSION)
    # TFDS 4.9.10 looks for its code with importlib_resources, which it does not require.
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        size = (self.builder_config.settings.height, self.builder_config.settings.width, 3)
        matrix = functools.partial(tfds.features.Tensor, dtype=np.float32)
        features = tfds.features.FeaturesDict(
            {
                "index": np.int64,
                "image": tfds.features.Image(shape=size, encoding_format="png"),
                "calib": {
                    "p2": matrix(shape=(3, 4)),
                    "r0_rect": matrix(shape=(3, 3)),
                    "tr_velo_to_cam": matrix(shape=(3, 4)),
                },
                "lidar": matrix(shape=(None, 4), encoding="bytes"),
                "objects": tfds.features.Sequence({k: v() for k, v in _OBJECT_FIELDS.items()}),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, description=__doc__, disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        settings = self.builder_config.settings
        return {
            "train": self._generate_examples("train", settings.train_size),
            "validation": self._generate_examples("validation", settings.val_size),
        }

    def _generate_examples(self, split: str, size: int):
        config = self.builder_config
        frames = scenes_worker.examples(config.settings.frame(), split, size, config.workers)
        # On a terminal a live bar; in a log file a line every ten seconds.
        quiet = not sys.stderr.isatty()
        yield from tqdm.tqdm(
            frames,
            f"scenes {split}",
            size,
            leave=quiet,
            unit="frame",
            mininterval=10 if quiet else 0.2,
        )


def scenes_builder(
    settings: ScenesSettings, data_dir: str | None = None, workers: int = 1
) -> Scenes:
    """The builder of one setting; nothing is generated yet."""
    config = ScenesConfig(name=settings.name(), settings=settings, workers=workers)
    return Scenes(data_dir=data_dir, config=config, file_format="array_record")


def prepare_scenes(
    settings: ScenesSettings, data_dir: str | None = None, workers: int = 1
) -> Scenes:
    """The builder of one setting, generated if its folder does not exist yet.

    TFDS writes into a folder of another name and renames it when all is written, so a generation
    that is killed leaves nothing that looks complete.

    Raises:
      DataError: the sizes make no data set, or the folder cannot be written or is damaged.
    """
    if settings.train_size < 1 or settings.val_size < 1:
        raise DataError(
            f"scenes: train_size={settings.train_size}, val_size={settings.val_size}: both splits "
            "need at least one frame; raise data.train_size and data.val_size"
        )
    try:
        with _quiet():
            builder = scenes_builder(settings, data_dir, workers)  # reads a folder that exists
            if not builder.is_prepared():
                with _sole_maker(settings, data_dir):
                    builder = scenes_builder(settings, data_dir, workers)
                    builder.download_and_prepare()
    except (json_format.ParseError, ValueError) as error:
        folder = _root(data_dir) / Scenes.name / settings.name() / str(Scenes.VERSION)
        if not folder.is_dir():
            raise  # nothing was read: no file is to blame
        raise DataError(
            f"{folder}: cannot read dataset_info.json ({_first_line(error)}); "
            "delete that folder to generate it again"
        ) from error
    except (OSError, RuntimeError) as error:  # array_record words failed writes as the latter
        # Another process may have finished the same data first: its frames are the same bytes.
        with _quiet(), contextlib.suppress(OSError, RuntimeError):
            builder = scenes_builder(settings, data_dir, workers)
            if builder.is_prepared():
                return builder
        raise DataError(
            f"scenes: cannot write below {_root(data_dir)} ({_first_line(error)}); set data.dir or "
            "TFDS_DATA_DIR to a folder with write permission and free space"
        ) from error
    return builder


def _sole_maker(
    settings: ScenesSettings, data_dir: str | None
) -> contextlib.AbstractContextManager[None]:
    """Other processes that need the same frames wait for them; see `one_at_a_time`."""
    folder = _root(data_dir) / Scenes.name
    if "://" in os.fspath(folder):
        return contextlib.nullcontext()  # no files of this machine
    words = f"scenes: another process makes these frames, waiting for {folder / settings.name()}"
    return one_at_a_time(
        Path(folder) / f".{settings.name()}.lock", lambda: tqdm.tqdm.write(words, sys.stderr)
    )


def _root(data_dir: str | None) -> epath.Path:
    """The folder of data sets, as TFDS finds it."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return epath.Path(root).expanduser()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _quiet():
    """Mutes TFDS's prints, log lines and nested bars; `_generate_examples` shows one bar itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.disable(before)


class Records(Sequence):
    """The records of a split by index; what cannot be read is a `DataError`, also later."""

    def __init__(self, builder: Scenes, split: str, decoders):
        self._folder, self._split = builder.data_dir, split
        with self._damage_named(), _quiet():
            self._source = builder.as_data_source(split, decoders=decoders)
            self._length = len(self._source)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        with self._damage_named():  # the files are opened when first read
            return self._source[index]

    @contextlib.contextmanager
    def _damage_named(self):
        # The reader raises RuntimeError, ValueError and others, as the damage happens to be.
        try:
            yield
        except Exception as error:
            raise DataError(
                f"{self._folder}: cannot read the split {self._split!r} ({_first_line(error)}); "
                "delete that folder to generate it again"
            ) from error


def detection_source(builder: Scenes, split: str) -> Records:
    """Records with labels and calibration; image and lidar stay undecoded bytes.

    Raises:
      DataError: the files of the builder cannot be read, here or when a record is taken.
    """
    # PartialDecoding would say it better, but data sources do not take it (TFDS 4.9.10).
    skip = tfds.decode.SkipDecoding()
    return Records(builder, split, {"image": skip, "lidar": skip})


def full_source(builder: Scenes, split: str) -> Records:
    """Complete records: image (PNG bytes), objects, calib, lidar float32 [P, 4].

    Raises:
      DataError: the files of the builder cannot be read, here or when a record is taken.
    """
    return Records(builder, split, {"image": tfds.decode.SkipDecoding()})


def export_kitti(builder: Scenes, split: str, folder: str | os.PathLike) -> int:
    """Writes a split in the official KITTI object layout, below `folder`/training.

    The folders are image_2 (PNG), label_2, calib and velodyne (float32 x, y, z, reflectance), the
    files are named 000000 upwards by record.

    Returns:
      The number of frames written.

    Raises:
      DataError: the split cannot be read.
    """
    return scenes_tools.write_kitti(full_source(builder, split), folder)


if __name__ == "__main__":
    scenes_tools.main(prepare_scenes, ScenesSettings, export_kitti)
