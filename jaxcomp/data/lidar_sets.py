"""The lidar frames that a config names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from jaxcomp.data import kitti_split
from jaxcomp.data.lidar import kitti_frames, scenes_frames
from jaxcomp.data.lidar_records import LidarFrame
from jaxcomp.errors import ConfigError

Frames = dict[str, list[LidarFrame]]


def _scenes(config: Any) -> Frames:
    from jaxcomp.data import scenes  # imports TFDS, which takes seconds

    data = config.data
    settings = scenes.ScenesSettings(
        height=data.height, width=data.width, seed=data.seed, train_size=data.train_size,
        val_size=data.val_size, beams=data.beams, azimuths=data.azimuths,
    )  # fmt: skip
    builder = scenes.prepare_scenes(settings, data.dir or None, data.workers)
    return {split: scenes_frames(builder, split) for split in ("train", "validation")}


def _kitti(config: Any) -> Frames:
    data = config.data
    found = kitti_frames(data.dir, share=data.val_share, seed=data.seed, on_junk=data.on_junk)
    limits = {"train": data.train_size, "validation": data.val_size}
    return {
        split: kitti_split.capped(frames, limits[split], data.seed)
        for split, frames in found.items()
    }


LIDAR: Mapping[str, Callable[[Any], Frames]] = {"scenes": _scenes, "kitti": _kitti}


def lidar_frames(config: Any) -> Frames:
    """{"train": [...], "validation": [...]} of `config.data`.

    Args:
      config: `data.name`, `dir`, `train_size`, `val_size`, `seed` and what the data set needs:
        `height`, `width`, `beams`, `azimuths`, `workers` of scenes; `val_share`, `on_junk` of
        KITTI, where a size of 0 means all frames.

    Raises:
      ConfigError: the data set has no sweeps.
      DataError: the frames are missing or broken.
    """
    name = config.data.name
    if name not in LIDAR:
        known = ", ".join(sorted(LIDAR))
        raise ConfigError(f"config.data.name={name!r} has no lidar sweeps; use one of: {known}")
    return LIDAR[name](config)


def fingerprint(frames: Frames) -> str:
    """SHA-256 over names and labels of all frames: tells these data from others."""
    content = [
        (
            split,
            frame.name,
            frame.height,
            frame.width,
            [dataclasses.astuple(o) for o in frame.objects],
        )
        for split, items in sorted(frames.items())
        for frame in items
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
