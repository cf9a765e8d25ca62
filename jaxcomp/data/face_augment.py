"""Random changes of training images with faces, on the host: crop, colours, padding, mirror, size.

    image ── square crop ── colours ── square (padded) ── mirror ── network's size

As RetinaFace trains (Deng et al., 2019, arXiv:1905.00641). Everything is a function of the image,
its labels and a generator.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from jaxcomp.data.widerface import MISSING, FaceLabels
from jaxcomp.errors import ConfigError, DataError

MIRRORED = (1, 0, 2, 4, 3)  # eyes and corners of the mouth change sides
MEAN_RGB = (123, 117, 104)  # what padding is filled with; the network sees it as zeros
RESAMPLING = (
    Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX,
    Image.Resampling.NEAREST, Image.Resampling.LANCZOS,
)  # fmt: skip
_HUES = 256 / 180  # the original turns hues by units of two degrees


@dataclasses.dataclass(frozen=True)
class FaceAugmentation:
    """Settings.

    Attributes:
      scales: side of a crop as a share of the image's shorter side, one is drawn; without any the
        image stays whole.
      tries: crops that are tried; one with a whole face in it is taken.
      colours: probability of each change of colour: brightness, contrast, saturation and hue.
      brightness: added at most, of 255.
      contrast: lowest and highest factor of contrast and saturation.
      hue: turn at most, in units of two degrees.
      mirror: probability.

    Raises:
      ConfigError: a setting is out of range.
    """

    scales: tuple[float, ...] = (0.3, 0.45, 0.6, 0.8, 1.0)
    tries: int = 250
    colours: float = 0.5
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    mirror: float = 0.5

    def __post_init__(self) -> None:
        if any(not 0 < scale <= 1 for scale in self.scales):
            raise ConfigError(f"scales={self.scales}: give shares of the shorter side, 0 to 1")
        for name in ("colours", "mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is no probability, 0 to 1")
        if self.tries < 1 or not 0 < self.contrast[0] <= self.contrast[1]:
            raise ConfigError(
                f"tries={self.tries}, contrast={self.contrast}: give at least 1, and two positive "
                "factors in order"
            )


def augment(
    image: np.ndarray,
    labels: FaceLabels,
    size: tuple[int, int],
    how: FaceAugmentation,
    rng: np.random.Generator,
) -> tuple[np.ndarray, FaceLabels]:
    """A training image of the network's size, with its labels in its pixels.

    Args:
      image: uint8 RGB [H, W, 3].
      labels: its faces.
      size: (rows, columns) of the result.
      how: settings.
      rng: what is random.

    Returns:
      (uint8 [rows, columns, 3], labels).
    """
    image, labels, cropped = crop(image, labels, how, rng)
    image = distort(image, how, rng)
    if not cropped:
        image = pad_square(image)
    if rng.random() < how.mirror:
        image, labels = mirror(image, labels)
    method = RESAMPLING[int(rng.integers(len(RESAMPLING)))]
    return resize(image, labels, size, method)


def crop(
    image: np.ndarray, labels: FaceLabels, how: FaceAugmentation, rng: np.random.Generator
) -> tuple[np.ndarray, FaceLabels, bool]:
    """A square with at least one whole face in it, and the faces whose middle lies in it.

    Returns:
      (image, labels, whether there is such a square); without one image and labels as they were.
    """
    labels = labels.inside(*image.shape[:2])
    height, width = image.shape[:2]
    low, high = labels.boxes[:, :2], labels.boxes[:, :2] + labels.boxes[:, 2:]
    for _ in range(how.tries if how.scales and len(labels) else 0):
        side = max(int(how.scales[int(rng.integers(len(how.scales)))] * min(height, width)), 1)
        left = int(rng.integers(width - side + 1))
        top = int(rng.integers(height - side + 1))
        corner = np.array([left, top])
        if not ((low >= corner) & (high <= corner + side)).all(1).any():
            continue
        middle = (low + high) / 2
        kept = select(labels, ((middle > corner) & (middle < corner + side)).all(1))
        moved = shift(kept, -left, -top).inside(side, side)
        return image[top : top + side, left : left + side], moved, True
    return image, labels, False


def distort(image: np.ndarray, how: FaceAugmentation, rng: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast, saturation and hue; the contrast first or last."""
    draws = rng.random(5) < how.colours
    add = rng.uniform(-how.brightness, how.brightness)
    gains = rng.uniform(*how.contrast, 2)
    turn = round(rng.uniform(-how.hue, how.hue) * _HUES)
    x = image.astype(np.float32)
    if draws[0]:
        x = np.clip(x + add, 0, 255)
    if draws[4] and draws[1]:
        x = np.clip(x * gains[0], 0, 255)
    if draws[2] or draws[3]:
        hsv = np.array(Image.fromarray(np.round(x).astype(np.uint8)).convert("HSV"))
        if draws[2]:
            hsv[..., 1] = np.clip(hsv[..., 1] * gains[1], 0, 255).astype(np.uint8)
        if draws[3]:
            hsv[..., 0] = (hsv[..., 0].astype(np.int64) + turn) % 256
        turned = Image.frombytes("HSV", (x.shape[1], x.shape[0]), hsv.tobytes())
        x = np.asarray(turned.convert("RGB"), np.float32)
    if draws[1] and not draws[4]:
        x = np.clip(x * gains[0], 0, 255)
    return np.round(x).astype(np.uint8)


def pad_square(image: np.ndarray) -> np.ndarray:
    """Rows below or columns to the right of the mean colour until the image is square."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    full = np.empty((side, side, 3), np.uint8)
    full[:] = np.array(MEAN_RGB, np.uint8)
    full[:height, :width] = image
    return full


def mirror(image: np.ndarray, labels: FaceLabels) -> tuple[np.ndarray, FaceLabels]:
    """Left and right exchanged, landmarks renamed."""
    width = image.shape[1]
    boxes = labels.boxes.copy()
    boxes[:, 0] = width - boxes[:, 0] - boxes[:, 2]
    points = labels.landmarks[:, MIRRORED].copy()
    marked = labels.has_landmarks
    points[marked, :, 0] = width - points[marked, :, 0]
    return image[:, ::-1], dataclasses.replace(labels, boxes=boxes, landmarks=points)


def resize(
    image: np.ndarray,
    labels: FaceLabels,
    size: tuple[int, int],
    method: Image.Resampling = Image.Resampling.BILINEAR,
) -> tuple[np.ndarray, FaceLabels]:
    """Stretched to (rows, columns)."""
    scale = np.array([size[1] / image.shape[1], size[0] / image.shape[0]], np.float32)
    if image.shape[:2] != size:
        picture = Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], method)
        image = np.asarray(picture)
    points = np.where(labels.has_landmarks[:, None, None], labels.landmarks * scale, MISSING)
    boxes = labels.boxes * np.tile(scale, 2)
    changed = dataclasses.replace(
        labels, boxes=boxes.astype(np.float32), landmarks=points.astype(np.float32)
    )
    return np.ascontiguousarray(image), changed


def fit(
    image: np.ndarray, labels: FaceLabels, size: tuple[int, int]
) -> tuple[np.ndarray, FaceLabels]:
    """The whole image as large as fits, the rest of the mean colour; for validation."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = (
        min(max(round(height * scale), 1), size[0]),
        min(max(round(width * scale), 1), size[1]),
    )
    image, labels = resize(image, labels.inside(height, width), inner)
    full = np.empty((*size, 3), np.uint8)
    full[:] = np.array(MEAN_RGB, np.uint8)
    full[: inner[0], : inner[1]] = image
    return full, labels


def select(labels: FaceLabels, keep: np.ndarray) -> FaceLabels:
    """Some of the faces."""
    names = ("boxes", "landmarks", "has_landmarks", "attributes")
    return dataclasses.replace(labels, **{name: getattr(labels, name)[keep] for name in names})


def shift(labels: FaceLabels, x: float, y: float) -> FaceLabels:
    """The faces moved; landmarks that are not there stay so."""
    boxes = labels.boxes + np.array([x, y, 0, 0], np.float32)
    moved = labels.landmarks + np.array([x, y], np.float32)
    points = np.where(labels.has_landmarks[:, None, None], moved, MISSING)
    return dataclasses.replace(labels, boxes=boxes, landmarks=points)


def targets(labels: FaceLabels, size: tuple[int, int], most: int) -> dict[str, np.ndarray]:
    """Padded targets of an image of (rows, columns), as `tasks.face.FaceTask` takes them.

    Of more than `most` faces the largest are kept.

    Returns:
      {"boxes": float32 [most, 4] corners and "landmarks": [most, 10], fractions of the image,
      "labels": int32 [most] 1, -1 (no landmarks) or 0 (padding)}.

    Raises:
      DataError: a number is not finite.
    """
    if not (np.isfinite(labels.boxes).all() and np.isfinite(labels.landmarks).all()):
        raise DataError(f"{labels.image}: a box or landmark is not finite; correct its labels")
    order = np.argsort(-labels.boxes[:, 2] * labels.boxes[:, 3], kind="stable")[:most]
    kept = select(labels, order)
    count = len(kept)
    scale = np.array([size[1], size[0]], np.float32)
    boxes, points = np.zeros((most, 4), np.float32), np.zeros((most, 10), np.float32)
    corners = np.concatenate([kept.boxes[:, :2], kept.boxes[:, :2] + kept.boxes[:, 2:]], 1)
    boxes[:count] = corners / np.tile(scale, 2)
    marked = kept.has_landmarks[:, None]
    points[:count] = np.where(marked, (kept.landmarks / scale).reshape(count, 10), 0.0)
    kinds = np.zeros(most, np.int32)
    kinds[:count] = np.where(kept.has_landmarks, 1, -1)
    return {"boxes": boxes, "landmarks": points, "labels": kinds}
