"""KITTI object labels and calibrations as text: parse, check, format.

Columns follow the KITTI object development kit: type, truncation, occlusion, alpha, 2-D box (left,
top, right, bottom in pixels), height, width, length (metres), location x, y, z of the bottom centre
in the rectified reference camera (metres), rotation_y, and a score for detections.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxcomp.errors import DataError

_COLUMNS = (
    "type", "truncated", "occluded", "alpha", "left", "top", "right", "bottom",
    "height", "width", "length", "x", "y", "z", "rotation_y", "score",
)  # fmt: skip
_SHAPES = {
    "P0": (3, 4), "P1": (3, 4), "P2": (3, 4), "P3": (3, 4),
    "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4), "Tr_imu_to_velo": (3, 4),
}  # fmt: skip
_KEYS = ("frame", "track")
_NEEDED = ("P2", "R0_rect", "Tr_velo_to_cam")
# The tracking data name them so, and leave the colon out.
_TRACKING = {
    "R_rect": "R0_rect", "Tr_velo_cam": "Tr_velo_to_cam", "Tr_imu_velo": "Tr_imu_to_velo",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class KittiObject:
    """One line of a label file.

    Attributes:
      type: "Car", "Pedestrian", "DontCare", ...
      truncated: 0 (whole) to 1 (outside the image); -1 where unknown.
      occluded: 0 visible, 1 partly, 2 largely hidden, 3 unknown; -1 for DontCare.
      alpha: observation angle, radians.
      box: left, top, right, bottom, pixels.
      dimensions: height, width, length, metres.
      location: x, y, z of the bottom centre, camera frame, metres.
      rotation_y: heading about the camera's y axis, radians.
      score: confidence of a detection, None for ground truth.
    """

    type: str
    truncated: float
    occluded: int
    alpha: float
    box: tuple[float, float, float, float]
    dimensions: tuple[float, float, float]
    location: tuple[float, float, float]
    rotation_y: float
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Camera and lidar geometry of one frame, float64.

    Attributes:
      p2: [3, 4] projection of rectified reference-camera points to the left colour image.
      r0_rect: [3, 3] rectifying rotation.
      tr_velo_to_cam: [3, 4] lidar to (unrectified) reference camera.
    """

    p2: np.ndarray
    r0_rect: np.ndarray
    tr_velo_to_cam: np.ndarray

    def velo_to_rect(self) -> np.ndarray:
        """[3, 4] from lidar points to the rectified camera."""
        return self.r0_rect @ self.tr_velo_to_cam


def parse_labels(text: str, source: str = "labels") -> list[KittiObject]:
    """Reads the lines of a label file; `source` names the file in errors.

    Raises:
      DataError: a line has the wrong number of columns, a value that is not a finite number, or a
        box whose right/bottom lies before its left/top.
    """
    lines = enumerate(text.splitlines(), start=1)
    return [parse_line(line.split(), f"{source}:{row}") for row, line in lines if line.strip()]


def parse_line(fields: list[str], where: str) -> KittiObject:
    """Reads the words of one line; `where` names file and line in errors.

    Raises:
      DataError: as `parse_labels` does.
    """
    if len(fields) not in (15, 16):
        raise DataError(
            f"{where}: {len(fields)} columns, expected 15 (or 16 with a score); "
            "write one object a line in KITTI's order or delete the line"
        )
    v = [_number(field, name, where) for field, name in zip(fields[1:], _COLUMNS[1:], strict=False)]
    if not v[1].is_integer():
        raise DataError(f"{where}: occluded is {fields[2]}; use an integer from -1 to 3")
    if v[5] < v[3] or v[6] < v[4]:
        raise DataError(
            f"{where}: box {fields[4:8]} ends before it starts; order it left, top, right, bottom"
        )
    return KittiObject(
        fields[0], v[0], int(v[1]), v[2], tuple(v[3:7]), tuple(v[7:10]), tuple(v[10:13]), v[13],
        v[14] if len(v) > 14 else None,
    )  # fmt: skip


def _number(field: str, name: str, where: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} is {field!r}; write a finite number")
    return value


def format_labels(objects: list[KittiObject]) -> str:
    """Label lines with two decimals, as KITTI writes them (a score gets six)."""
    return "".join(_format_line(item) for item in objects)


def _format_line(item: KittiObject) -> str:
    numbers = (*item.box, *item.dimensions, *item.location, item.rotation_y)
    tail = "" if item.score is None else f" {item.score:.6f}"
    body = " ".join(f"{value:.2f}" for value in numbers)
    return f"{item.type} {item.truncated:.2f} {item.occluded} {item.alpha:.2f} {body}{tail}\n"


def parse_tracking_line(fields: list[str], where: str) -> tuple[int, int, KittiObject]:
    """Reads the words of one line of the tracking labels: frame, track, then an object's columns.

    The tracking data give truncation as a level: 0 stays 0, 1 (partly) becomes 0.5 and 2 (largely)
    becomes 1. Their type "Person" is the "Person_sitting" of the object data.

    Returns:
      Frame number, track number (-1 for DontCare), object.

    Raises:
      DataError: as `parse_labels` does, or frame or track are not integers.
    """
    if len(fields) not in (17, 18):
        raise DataError(
            f"{where}: {len(fields)} columns, expected 17 (or 18 with a score); "
            "write frame, track and KITTI's columns or delete the line"
        )
    numbers = [_number(field, name, where) for field, name in zip(fields, _KEYS, strict=False)]
    for number, name in zip(numbers, _KEYS, strict=True):
        if not number.is_integer():
            raise DataError(f"{where}: {name} is {number}; write an integer")
    item = parse_line(fields[2:], where)
    level = {1.0: 0.5, 2.0: 1.0}.get(item.truncated, item.truncated)
    kind = "Person_sitting" if item.type == "Person" else item.type
    item = dataclasses.replace(item, type=kind, truncated=level)
    return int(numbers[0]), int(numbers[1]), item


def parse_calibration(text: str, source: str = "calibration") -> Calibration:
    """Reads a calibration file of the object or the tracking data; unknown names are left out.

    Args:
      text: the file.
      source: names the file in errors.

    Raises:
      DataError: a matrix is missing, has the wrong number of values, or a value is not a number.
    """
    found: dict[str, np.ndarray] = {}
    for row, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        key, colon, rest = line.partition(":")
        first, _, others = line.strip().partition(" ")
        if not colon and first in _TRACKING:
            key, colon, rest = _TRACKING[first], ":", others
        key = key.strip()
        if not colon:
            raise DataError(f"{source}:{row}: no 'name:' before the values; write e.g. 'P2: ...'")
        if key in _SHAPES:  # raw recordings add others, as in "calib_time: 09-Jan-2012 13:57:47"
            found[key] = _matrix(rest.split(), key, f"{source}:{row}")
    missing = [key for key in _NEEDED if key not in found]
    if missing:
        raise DataError(f"{source}: {', '.join(missing)} missing; copy the frame's own calib file")
    return Calibration(*(found[key] for key in _NEEDED))


def _matrix(fields: list[str], key: str, where: str) -> np.ndarray:
    values = [_number(field, key, where) for field in fields]
    rows, columns = _SHAPES[key]
    if len(values) != rows * columns:
        raise DataError(f"{where}: {key} has {len(values)} values; it needs {rows * columns}")
    return np.array(values, np.float64).reshape(rows, columns)


def format_calibration(calibration: Calibration) -> str:
    """A complete KITTI calibration file; cameras that do not exist get P2, the IMU the identity."""
    rows = {key: calibration.p2 for key in ("P0", "P1", "P2", "P3")}
    rows["R0_rect"], rows["Tr_velo_to_cam"] = calibration.r0_rect, calibration.tr_velo_to_cam
    rows["Tr_imu_to_velo"] = np.eye(3, 4)
    lines = (
        f"{key}: " + " ".join(f"{value:.12e}" for value in np.asarray(matrix).ravel()) + "\n"
        for key, matrix in rows.items()
    )
    return "".join(lines)


def difficulty(box_height: float, occluded: int, truncated: float, image_height: int = 375) -> int:
    """KITTI's difficulty: 0 easy, 1 moderate, 2 hard, -1 none of them.

    Minimum box heights of 40, 25 and 25 pixels hold for 375 rows and scale with the image.
    """
    scale = image_height / 375
    limits = ((40, 0, 0.15), (25, 1, 0.30), (25, 2, 0.50))
    for level, (height, occlusion, truncation) in enumerate(limits):
        fits = box_height >= height * scale and occluded <= occlusion and truncated <= truncation
        if fits and occluded >= 0:
            return level
    return -1
