"""Data sets and the input pipeline: name a data set in `config.data.name`, get `DataSplits`.

Each entry of `DATASETS` is a function `(config, batch_size) -> DataSplits`. The functions import
what they need when called, so importing this package stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxcomp.errors import ConfigError


def _scenes(config: Any, batch_size: int) -> Any:
    from jaxcomp.data.detection import scenes_splits

    return scenes_splits(config, batch_size)


def _kitti(config: Any, batch_size: int) -> Any:
    from jaxcomp.data.kitti import kitti_splits

    return kitti_splits(config, batch_size)


def _faces(config: Any, batch_size: int) -> Any:
    from jaxcomp.data.face_records import face_splits

    return face_splits(config, batch_size)


def _photos(config: Any, batch_size: int) -> Any:
    from jaxcomp.data.photos import photo_splits

    return photo_splits(config, batch_size)


def _pictures(config: Any, batch_size: int) -> Any:
    from jaxcomp.data.pictures import picture_splits

    return picture_splits(config, batch_size)


DATASETS: dict[str, Callable[[Any, int], Any]] = {
    "scenes": _scenes,
    "kitti": _kitti,
    "faces": _faces,
    "widerface": _faces,
    "textures": _pictures,
    "digits": _pictures,
    "pictures": _pictures,
    "tfds": _pictures,
    "photos": _photos,
}


def make_splits(config: Any, batch_size: int | None = None) -> Any:
    """The training and validation data that `config.data` names.

    Args:
      config: the whole configuration; `data`, `seed` and `training.batch_size` are read.
      batch_size: overrides `config.training.batch_size`.

    Returns:
      `jaxcomp.types.DataSplits`.

    Raises:
      ConfigError: the name is unknown.
      DataError: the data are missing, empty or broken.
    """
    name = config.data.name
    if name not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise ConfigError(f"data.name={name!r} is unknown; use one of: {known}")
    return DATASETS[name](config, batch_size or config.training.batch_size)
