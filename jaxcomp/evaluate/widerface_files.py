"""Detections in the layout of WIDERFace's evaluation: EVENT/IMAGE.txt.

0_Parade_marchingband_1_465        the image's name
2                                  how many detections
345 211 7 9 0.9981                 x y width height score, best first
16 81 5 5 0.031
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.errors import DataError


def write_predictions(
    folder: str | os.PathLike[str], found: Mapping[str, Any], *, whole_pixels: bool = True
) -> None:
    """Writes one file for each image; existing ones are replaced.

    Args:
      folder: where the folders of the events go.
      found: "event/image" to [M, 5] x, y, width, height, score; written best first.
      whole_pixels: cut the corners to whole pixels, as published results do.

    Raises:
      DataError: a name has no event, an array another shape, or a file cannot be written.
    """
    for name, detections in found.items():
        event, _, image = name.partition("/")
        if not event or not image or "/" in image or ".." in (event, image):
            raise DataError(f"image {name!r}: give a name of the form event/image")
        rows = np.asarray(detections, np.float64)
        rows = rows.reshape(0, 5) if rows.size == 0 else rows
        if rows.ndim != 2 or rows.shape[1] != 5 or not np.isfinite(rows).all():
            raise DataError(f"{name!r}: detections of shape {rows.shape}; give finite [M, 5]")
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        _write(Path(folder, event, f"{image}.txt"), _text(image, rows, whole_pixels))


def _text(image: str, rows: np.ndarray, whole_pixels: bool) -> str:
    lines = [image, str(len(rows))]
    for x, y, width, height, score in rows.tolist():
        box: tuple[float, ...] = (x, y, width, height)
        if whole_pixels:
            left, top = int(x), int(y)
            box = (left, top, int(x + width) - left, int(y + height) - top)
        lines.append(" ".join(f"{value:.10g}" for value in (*box, score)))
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """The whole file or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}); check the disk") from error


def read_predictions(
    folder: str | os.PathLike[str], images: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads the files of a folder.

    Args:
      folder: with one folder for each event.
      images: "event/image" of those to read; None for all that are there.

    Returns:
      "event/image" to float64 [M, 5] x, y, width, height, score, in the order of the file.

    Raises:
      DataError: the folder or the file of an image is missing, or a file is not of this layout.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the one that holds the events' folders")
    if images is None:
        files = sorted(root.glob("*/*.txt"))
        images = [f"{path.parent.name}/{path.stem}" for path in files]
    return {name: _read(root / f"{name}.txt", name.rpartition("/")[2]) for name in images}


def _read(path: Path, image: str) -> np.ndarray:
    try:
        lines = path.read_text().split("\n")
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; an image without detections needs a file too") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again") from error
    lines = [line.strip() for line in lines]
    if len(lines) < 2 or Path(lines[0]).name.removesuffix(".jpg") != image:
        raise DataError(
            f"{path}: line 1 is {lines[0][:60]!r}, the image's name {image!r} is needed"
        )
    rows = [line.split() for line in lines[2:] if line]
    try:
        count = int(lines[1])
        values = np.array(rows, np.float64).reshape(len(rows), 5)
    except ValueError as error:
        raise DataError(f"{path}: not x y width height score in every line ({error})") from error
    if count != len(values) or not np.isfinite(values).all():
        raise DataError(f"{path}: line 2 tells of {count} finite detections, {len(values)} follow")
    return values
