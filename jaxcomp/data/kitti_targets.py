"""Detection targets and augmentation of KITTI frames; numpy and Pillow only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxcomp.data.kitti_format import KittiObject

# A detection on one of these is neither right nor wrong for the class, as in KITTI's evaluation.
NEIGHBOURS = {"Car": ("Van",), "Pedestrian": ("Person_sitting",)}
MIN_HEIGHT = 10.0  # native pixels inside the image; KITTI's benchmark counts from 25
MAX_OCCLUDED = 2  # 3 is "unknown"
MAX_TRUNCATED = 0.8  # KITTI's benchmark counts to 0.5
JITTER = 0.2  # of brightness, contrast and saturation


def make_targets(
    objects: Sequence[KittiObject],
    native: tuple[int, int],
    network: tuple[int, int],
    classes: Sequence[str],
    max_boxes: int,
) -> dict[str, np.ndarray]:
    """Padded targets of one frame.

    An object of a class counts unless its height inside the image is less than `MIN_HEIGHT`, its
    occlusion more than `MAX_OCCLUDED` or its truncation more than `MAX_TRUNCATED`. Those that do
    not count, DontCare, and the neighbours of the classes are regions to ignore; every other type
    is background and takes no row.

    Args:
      objects: of the frame, boxes in native pixels; each has a pixel inside the image.
      native: (height, width) of the image.
      network: (height, width) of the image in network pixels, to which boxes are scaled.
      classes: names of the labels 1, 2, ...
      max_boxes: padded length N; objects that count go first, then the largest.

    Returns:
      boxes float32 [N, 4] xyxy in network pixels, clipped to the image; labels int32 [N] (0 for
      other types); valid bool [N] (counts), ignore bool [N]; "left_out" int, how many
      objects and regions found no row.
    """
    names = {*classes, "DontCare", *(n for c in classes for n in NEIGHBOURS.get(c, ()))}
    objects = [item for item in objects if item.type in names]
    limit = np.array([native[1], native[0]] * 2, np.float64)
    boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    boxes = np.clip(boxes, 0, limit)
    labels = np.array(
        [classes.index(item.type) + 1 if item.type in classes else 0 for item in objects], np.int32
    )
    counts = (
        (labels > 0)
        & (boxes[:, 3] - boxes[:, 1] >= MIN_HEIGHT)
        & np.array([item.occluded <= MAX_OCCLUDED for item in objects], bool)
        & np.array([item.truncated <= MAX_TRUNCATED for item in objects], bool)
    )
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.lexsort((-area, ~counts))[:max_boxes]
    scale = np.array([network[1], network[0]] * 2, np.float64) / limit
    rows, used = np.zeros((max_boxes, 4), np.float32), len(order)
    rows[:used] = boxes[order] * scale
    flags = np.zeros((2, max_boxes), bool)
    flags[:, :used] = counts[order], ~counts[order]
    padded = np.zeros(max_boxes, np.int32)
    padded[:used] = labels[order]
    left_out = len(boxes) - used
    return {
        "boxes": rows, "labels": padded, "valid": flags[0], "ignore": flags[1], "left_out": left_out
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Changes:
    """What augmentation does to each image of a batch.

    Attributes:
      flip: bool [B].
      factors: float64 [B, 3] of brightness, contrast and saturation; 1 changes nothing.
      order: int [B, 3], in which the three are applied.
    """

    flip: np.ndarray
    factors: np.ndarray
    order: np.ndarray


def draw_changes(rng: np.random.Generator, count: int) -> Changes:
    """Random changes of `count` images; they do not depend on which thread applies them."""
    return Changes(
        rng.random(count) < 0.5,
        rng.uniform(1 - JITTER, 1 + JITTER, (count, 3)),
        rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1),
    )


def change_image(image: np.ndarray, changes: Changes, row: int) -> np.ndarray:
    """A uint8 [H, W, 3] image after the changes of a row, in the meaning of torchvision's jitter.

    Brightness blends with black, contrast with the mean grey, saturation with the image in grey.
    The first two are one table of 256 values for all channels, which waits until it is needed.
    """
    picture, table = Image.fromarray(image), np.arange(256)
    for place in changes.order[row]:
        factor = float(changes.factors[row, place])
        if place == 0:
            table = _blend(table, 0, factor)
        elif place == 1:
            table = _blend(table, _mean_grey(picture, table), factor)
        else:
            picture, table = picture.point(table.tolist() * 3), np.arange(256)
            grey = picture.convert("L").convert("RGB")
            picture = Image.blend(grey, picture, factor)
    changed = np.asarray(picture.point(table.tolist() * 3))
    return changed[:, ::-1] if changes.flip[row] else changed


def _blend(table: np.ndarray, other: float, factor: float) -> np.ndarray:
    """`other` and the table in the ratio (1 - factor) : factor, clipped and cut to integers."""
    return np.clip(factor * table + (1 - factor) * other, 0, 255).astype(np.int64)


def _mean_grey(picture: Image.Image, table: np.ndarray) -> int:
    """Mean of the grey (ITU-R 601) of an RGB picture whose values would go through a table."""
    counts = np.array(picture.histogram()).reshape(3, 256)
    weights = np.array([0.299, 0.587, 0.114])
    return round(float(weights @ (counts @ table)) / counts[0].sum())


def flip_boxes(
    boxes: np.ndarray, real: np.ndarray, widths: np.ndarray, flip: np.ndarray
) -> np.ndarray:
    """Boxes [B, N, 4] after flipping images of `widths` [B] left to right where `flip` [B].

    Rows where `real` [B, N] is False stay zero.
    """
    x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
    turned = np.stack([widths[:, None] - x1, y0, widths[:, None] - x0, y1], axis=-1)
    return np.where((flip[:, None] & real)[..., None], turned, boxes)
