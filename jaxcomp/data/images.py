"""Reads image files and fits them into the size a model was built for."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcomp.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class FitMeta:
    """How `fit_image` moved an image, so that boxes can be moved back.

    Attributes:
      scale: output pixels for each input pixel, both axes.
      height: of the original image, pixels.
      width: of the original image, pixels.
    """

    scale: float
    height: int
    width: int

    def boxes_to_original(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] xyxy of the fitted image in pixels of the original, clipped to it."""
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        return np.clip(np.asarray(boxes, np.float32) / np.float32(self.scale), 0, limit)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file as uint8 [H, W, 3] RGB.

    Grey images are repeated over the channels, 16-bit ones keep their high byte, transparency is
    dropped, and the EXIF orientation is ignored (labels refer to the stored pixels).

    Raises:
      DataError: the file does not exist or is not an image that decodes.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot decode the image ({error}); replace or remove it"
        ) from error


def decode_image(data: bytes, where: str, fix: str) -> np.ndarray:
    """An encoded image as uint8 [H, W, 3].

    Raises:
      DataError: it does not decode; says `where` it is and how to `fix` it.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} does not decode ({error}); {fix}") from error


def image_files(root: Path) -> list[Path]:
    """The pictures at and below a folder (`SUFFIXES`), in the order of their paths."""
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def relit(image: np.ndarray, gain: float, shift: float) -> np.ndarray:
    """A uint8 image, contrast times 1 + gain, brightness moved by shift of half the range."""
    centred = (image.astype(np.float32) - 127.5) * (1 + gain) + 127.5 * (1 + shift)
    return np.clip(np.rint(centred), 0, 255).astype(np.uint8)


def to_rgb(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 [H, W, 3]."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        deep = image.mode != "I" or wide.max(initial=0) > 255
        grey = np.clip(wide >> 8 if deep else wide, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def check_image(image: np.ndarray) -> np.ndarray:
    """The image, if it is uint8 [H, W, 3] with at least one pixel.

    Raises:
      DataError: it is something else.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DataError(
            f"image of shape {image.shape} and type {image.dtype}: give uint8 [H, W, 3] RGB"
        )
    return image


def fit_image(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, FitMeta]:
    """Resizes (bilinear, aspect kept) to fit and pads with zeros at the bottom and right.

    Args:
      image: uint8 [H, W, 3].
      height: output rows.
      width: output columns.

    Returns:
      uint8 [height, width, 3] and the `FitMeta` that maps boxes back.

    Raises:
      DataError: the image is not uint8 [H, W, 3] with at least one pixel.
    """
    image = check_image(image)
    rows, columns = image.shape[:2]
    scale = min(height / rows, width / columns)
    inner = (max(1, min(height, round(rows * scale))), max(1, min(width, round(columns * scale))))
    if inner != (rows, columns):
        resized = Image.fromarray(image).resize(inner[::-1], Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    fitted = np.zeros((height, width, 3), np.uint8)
    fitted[: inner[0], : inner[1]] = image
    return fitted, FitMeta(scale, rows, columns)
