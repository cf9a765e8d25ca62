"""Lidar sweeps on disk: KITTI's `.bin` files, and the cut to what the camera sees."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jaxcomp.data.kitti_format import Calibration
from jaxcomp.errors import DataError

_POINT = 16  # bytes: four float32
MAX_POINTS = 4_000_000  # a spinning lidar gives some 120,000 a turn; more is no sweep
_NEAR, _FAR = 1e-3, 100.0  # metres before the camera


def read_sweep(path: str | os.PathLike[str]) -> np.ndarray:
    """float32 [N, 4] x, y, z (metres, lidar frame) and reflectance; an empty file has no points.

    Raises:
      DataError: the file cannot be read, or its size is that of no sweep.
    """
    try:
        check_sweep(path)
        return np.fromfile(path, "<f4").reshape(-1, 4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error


def check_sweep(path: str | os.PathLike[str]) -> None:
    """Looks at the size of a sweep only.

    Raises:
      DataError: the size is not a multiple of 16 bytes, or too large.
      OSError: there is no such file.
    """
    size = Path(path).stat().st_size
    if size % _POINT:
        raise DataError(
            f"{path}: {size} bytes, no multiple of {_POINT} (x, y, z, reflectance as float32); "
            "the file is truncated, copy it again"
        )
    if size > MAX_POINTS * _POINT:
        raise DataError(
            f"{path}: {size} bytes are {size // _POINT} points, more than the {MAX_POINTS} "
            "that a sweep may have; check the file"
        )


def in_view(
    points: np.ndarray, calibration: Calibration, size: tuple[int, int]
) -> np.ndarray:  # fmt: skip
    """Points that the left colour camera sees, bool [N].

    Args:
      points: [N, 3 or more].
      calibration: of the frame.
      size: (height, width) of the image, pixels.
    """
    lidar = calibration.velo_to_rect()
    camera = points[:, :3].astype(np.float64) @ lidar[:, :3].T + lidar[:, 3]
    u, v, depth = (camera @ calibration.p2[:, :3].T + calibration.p2[:, 3]).T
    inside = (u >= 0) & (u < size[1] * depth) & (v >= 0) & (v < size[0] * depth)
    return inside & (depth > _NEAR) & (depth < _FAR)
