"""Lidar frames of KITTI folders and of the embedded scenes, behind one interface."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.data import kitti, kitti_files, kitti_scan, kitti_split, pipeline
from jaxcomp.data.kitti_files import KittiFrame
from jaxcomp.data.kitti_format import Calibration, KittiObject
from jaxcomp.data.kitti_junk import Junk
from jaxcomp.data.lidar_files import check_sweep, in_view, read_sweep
from jaxcomp.data.lidar_records import LidarFrame, LidarRecords
from jaxcomp.errors import DataError
from jaxcomp.types import DataSplits

_LOG = logging.getLogger(__name__)
IMAGE_SIZE = (375, 1242)  # of most KITTI frames; taken where the image is not there


def kitti_frames(
    folder: str = "", *, share: float = 0.2, seed: int = 0, on_junk: str = "report"
) -> dict[str, list[LidarFrame]]:
    """Frames with a sweep, labels and calibration of an object or tracking folder.

    Sweeps of `velodyne_reduced` are taken as they are; where there is only `velodyne`, points
    outside the camera's view are cut off when a sweep is read. No points are read here.

    Args:
      folder: as `config.data.dir`; empty for the environment variable KITTI_ROOT.
      share: of the frames that validates, where no list says which do.
      seed: of that choice.
      on_junk: "report" leaves broken frames out and says so, "fatal" stops at the first.

    Returns:
      {"train": [...], "validation": [...]}, by name.

    Raises:
      DataError: no KITTI folder, a split without a usable frame, or `on_junk` is "fatal" and
        something is broken.
    """
    layout, training = kitti_files.find_layout(kitti_files.find_root(folder))
    swept = [f for f in kitti.list_frames(folder) if f.velodyne_reduced or f.velodyne]
    if not swept:
        raise DataError(
            f"{training}: no sweep in it; unpack data_object_velodyne.zip (velodyne/*.bin) there"
        )
    junk = Junk(on_junk)
    # Frames of the lists that have no sweep are counted by us: the split would blame the image.
    unlisted = Junk("report")
    split, how = kitti_split.split_frames(layout, training, swept, share, seed, unlisted)
    out = {
        name: [one for frame in frames if (one := _kitti_frame(frame, junk)) is not None]
        for name, frames in split.items()
    }
    junk.log(_LOG)
    if unlisted.counts["frame"]:
        _LOG.info("kitti: %d frames of the lists have no sweep", unlisted.counts["frame"])
    for name, frames in out.items():
        if not frames:
            raise DataError(f"{training}: the {name} split ({how}) has no usable sweep")
    _LOG.info(
        "kitti: %d training and %d validation sweeps in %s (split by %s)",
        len(out["train"]), len(out["validation"]), training, how,
    )  # fmt: skip
    return out


def _kitti_frame(frame: KittiFrame, junk: Junk) -> LidarFrame | None:
    """The frame, or None (noted as junk) if labels, calibration or sweep are broken."""
    try:
        path = frame.velodyne_reduced or frame.velodyne
        assert path is not None
        check_sweep(path)
        if frame.label is None:
            raise DataError(f"{path}: no label file {frame.name}.txt; an empty one means no object")
        objects, problems = _labels(frame)
        calibration = frame.calibration()
        height, width = IMAGE_SIZE
        if frame.image is not None:
            header = kitti_scan.read_header(frame.image)
            height, width = header.height, header.width
    except (DataError, OSError) as error:
        junk.add("frame", str(error), frame.name)
        return None
    junk.extend(problems)
    reduced = frame.velodyne_reduced is not None
    read = functools.partial(_read, path, None if reduced else calibration, (height, width))
    return LidarFrame(frame.name, read, calibration, objects, height, width)


def _labels(frame: KittiFrame) -> tuple[tuple[KittiObject, ...], kitti_scan.Problems]:
    assert frame.label is not None
    if frame.sequence:
        by_number, problems = _tracking_labels(frame.label)
        placed = by_number.get(frame.number, [])
        return tuple(item for _, item in placed), problems if frame.number == 0 else []
    placed, problems = kitti_scan.read_object_labels(frame.label)
    return tuple(item for _, item in placed), problems


@functools.lru_cache(maxsize=4)
def _tracking_labels(path: Path) -> tuple[dict[int, kitti_scan.Placed], kitti_scan.Problems]:
    return kitti_scan.read_tracking_labels(path)


def _read(path: Path, calibration: Calibration | None, size: tuple[int, int]) -> np.ndarray:
    points = read_sweep(path)
    if calibration is None:
        return points
    return points[in_view(points, calibration, size)]


def scenes_frames(builder: Any, split: str) -> list[LidarFrame]:
    """The sweeps of embedded scenes.

    Args:
      builder: as `scenes.prepare_scenes` gives it.
      split: "train" or "validation".

    Raises:
      DataError: the records cannot be read.
    """
    from jaxcomp.data import scenes  # imports TFDS, which takes seconds

    labels, sweeps = scenes.detection_source(builder, split), scenes.full_source(builder, split)
    settings = builder.builder_config.settings
    frames = []
    for row in range(len(labels)):
        record = labels[row]
        calibration = Calibration(
            *(np.asarray(record["calib"][k], np.float64)
              for k in ("p2", "r0_rect", "tr_velo_to_cam"))
        )  # fmt: skip
        read = functools.partial(_scene_points, sweeps, row)
        frames.append(
            LidarFrame(
                f"{int(record['index']):06d}", read, calibration, scene_objects(record["objects"]),
                settings.height, settings.width, settings.height,
            )
        )  # fmt: skip
    return frames


def _scene_points(sweeps: Sequence[Mapping[str, Any]], row: int) -> np.ndarray:
    return np.asarray(sweeps[row]["lidar"], np.float32)


def scene_objects(found: Mapping[str, Any]) -> tuple[KittiObject, ...]:
    """The objects of a scene's record."""
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in found["type"]]
    column = {k: np.asarray(v).tolist() for k, v in found.items() if k != "type"}
    return tuple(
        KittiObject(
            name, column["truncated"][i], int(column["occluded"][i]), column["alpha"][i],
            tuple(column["box"][i]), tuple(column["dimensions"][i]), tuple(column["location"][i]),
            column["rotation_y"][i],
        )
        for i, name in enumerate(names)
    )  # fmt: skip


def lidar_splits(
    train: LidarRecords, validation: LidarRecords, batch_size: int, seed: int, threads: int = 1
) -> DataSplits:
    """`DataSplits` of two record sets; see `pipeline.make_data_splits`."""
    return pipeline.make_data_splits(
        (train.gather, len(train)), (validation.gather, len(validation)), batch_size, seed,
        threads=threads,
    )  # fmt: skip
