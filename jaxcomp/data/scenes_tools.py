"""Tools around `scenes`: the KITTI export, the contact sheet and their command line."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jaxcomp.data import kitti_format, scenes_frame, scenes_mesh
from jaxcomp.data.kitti_format import Calibration, KittiObject
from jaxcomp.data.scenes_frame import Frame, SceneSettings
from jaxcomp.errors import DataError, JaxcompError

_COLOURS = {"Car": (235, 40, 40), "Pedestrian": (60, 230, 60), "Cyclist": (40, 220, 240)}
_GAP = 6  # pixels between the pictures of the sheet


def record_objects(record: dict) -> list[KittiObject]:
    """The labels of a decoded record."""
    o = record["objects"]
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in o["type"]]
    return [
        KittiObject(
            name, float(o["truncated"][i]), int(o["occluded"][i]), float(o["alpha"][i]),
            tuple(map(float, o["box"][i])), tuple(map(float, o["dimensions"][i])),
            tuple(map(float, o["location"][i])), float(o["rotation_y"][i]),
        )
        for i, name in enumerate(names)
    ]  # fmt: skip


def record_calibration(record: dict) -> Calibration:
    """The calibration of a decoded record."""
    calib = record["calib"]
    keys = ("p2", "r0_rect", "tr_velo_to_cam")
    return Calibration(*(np.asarray(calib[key], np.float64) for key in keys))


def write_kitti(records: Iterable[dict], folder: str | os.PathLike) -> int:
    """Writes records (images as PNG bytes) below `folder`/training; returns how many."""
    root = pathlib.Path(folder) / "training"
    for name in ("image_2", "label_2", "calib", "velodyne"):
        (root / name).mkdir(parents=True, exist_ok=True)
    count = 0
    for count, record in enumerate(records, start=1):
        name = f"{count - 1:06d}"
        labels = kitti_format.format_labels(record_objects(record))
        calibration = kitti_format.format_calibration(record_calibration(record))
        points = np.ascontiguousarray(record["lidar"], dtype="<f4")
        _write(root / "image_2" / f"{name}.png", record["image"])
        _write(root / "label_2" / f"{name}.txt", labels.encode())
        _write(root / "calib" / f"{name}.txt", calibration.encode())
        _write(root / "velodyne" / f"{name}.bin", points.tobytes())
    return count


def _write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file at once: a reader sees all of it or none."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def draw_boxes(image: np.ndarray, objects: list[KittiObject]) -> np.ndarray:
    """A copy of the image with the 2-D boxes, a colour for each class."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for item in objects:
        draw.rectangle(item.box, outline=_COLOURS[item.type])
    return np.asarray(picture)


def birds_eye_view(frame: Frame, width: int, height: int, reach: float = 45.0) -> np.ndarray:
    """The lidar from above, uint8 [height, width, 3]: ahead is right, left is up, boxes outlined.

    Args:
      frame: whose points and boxes are drawn.
      width: pixels for `reach` metres ahead.
      height: pixels, at the same scale, centred on the sensor.
      reach: metres.
    """
    scale = width / reach
    picture = Image.new("RGB", (width, height), (14, 14, 18))
    draw = ImageDraw.Draw(picture)
    matrix = frame.calibration.velo_to_rect()
    for item in frame.objects:
        tall, wide, long = item.dimensions
        corners = scenes_mesh.box_corners(long, tall, wide)[[0, 1, 5, 4]]
        corners = corners @ scenes_mesh.rotation(item.rotation_y).T + item.location
        corners = (corners - matrix[:, 3]) @ np.linalg.inv(matrix[:, :3]).T
        outline = np.stack([corners[:, 0] * scale, height / 2 - corners[:, 1] * scale], 1)
        draw.polygon(outline.ravel().tolist(), outline=_COLOURS[item.type])
    canvas = np.array(picture)
    x, y, z, reflectance = frame.points[np.argsort(frame.points[:, 2])].T  # higher ones on top
    column, row = (x * scale).astype(int), (height / 2 - y * scale).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    rise = np.clip((z + 1.7) / 1.7, 0, 1)
    tone = np.stack([70 + 185 * rise, 90 + 120 * rise, 190 - 150 * rise], 1)
    tone *= (0.6 + 0.4 * np.clip(reflectance, 0, 1))[:, None]
    canvas[row[inside], column[inside]] = tone[inside].astype(np.uint8)
    return canvas


def contact_sheet(settings: SceneSettings, columns: int = 3, rows: int = 3) -> np.ndarray:
    """Plain frames, the same frames with boxes, and one sweep from above, uint8 [H, W, 3]."""
    settings = dataclasses.replace(settings, beams=64, azimuths=900)
    frames = [scenes_frame.render_frame(settings, "validation", i) for i in range(columns * rows)]
    plain = _grid([f.image for f in frames], columns)
    boxed = _grid([draw_boxes(f.image, f.objects) for f in frames], columns)
    richest = max(frames, key=lambda f: len(f.objects))
    above = birds_eye_view(richest, plain.shape[1], plain.shape[1] // 3)
    line = np.full((2 * _GAP, plain.shape[1], 3), 255, np.uint8)
    return np.concatenate([plain, line, boxed, line, above])


def _grid(images: list[np.ndarray], columns: int) -> np.ndarray:
    rows = [_line_up(images[i : i + columns], 1) for i in range(0, len(images), columns)]
    return _line_up(rows, 0)


def _line_up(images: list[np.ndarray], axis: int) -> np.ndarray:
    shape = list(images[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for image in images for part in (gap, image)][1:], axis=axis)


def main(prepare: Any, settings_type: Any, export: Any) -> None:
    """The command line of `python -m jaxcomp.data.scenes`."""
    parser = argparse.ArgumentParser(prog="python -m jaxcomp.data.scenes", description=__doc__)
    parser.add_argument("--contact-sheet", metavar="PATH", help="write a picture of sample frames")
    parser.add_argument("--export-kitti", metavar="FOLDER", help="write a split as KITTI files")
    parser.add_argument("--split", default="validation", choices=scenes_frame.SPLITS)
    parser.add_argument("--data-dir", help="TFDS folder (default: TFDS's own)")
    parser.add_argument("--workers", type=int, default=2)
    for name, value in settings_type().__dict__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    flags = parser.parse_args()
    names = settings_type().__dict__
    settings = settings_type(**{name: getattr(flags, name) for name in names})
    if not (flags.contact_sheet or flags.export_kitti):
        parser.error("give --contact-sheet PATH or --export-kitti FOLDER")
    try:
        _run(flags, settings, prepare, export)
    except (JaxcompError, OSError) as error:
        sys.exit(f"error: {error}")


def _run(flags: argparse.Namespace, settings: Any, prepare: Any, export: Any) -> None:
    if flags.contact_sheet:
        path = pathlib.Path(flags.contact_sheet)
        if not path.parent.is_dir():
            raise DataError(f"{path.parent}: no such folder; create it first")
        Image.fromarray(contact_sheet(settings.frame())).save(path)
        print(f"wrote {path}")
    if flags.export_kitti:
        builder = prepare(settings, flags.data_dir, flags.workers)
        count = export(builder, flags.split, flags.export_kitti)
        print(f"wrote {count} frames below {flags.export_kitti}")
