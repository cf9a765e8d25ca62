"""Pictures of masks: what a network sees of an image and what it has to predict."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from jaxcomp.errors import ShapeError

HIDDEN = np.array([214, 72, 58], np.float32)  # predicted
UNSEEN = np.array([40, 40, 46], np.float32)  # neither seen nor predicted
GAP = 4


def _pixels(mask: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    rows = np.arange(size[0]) * grid[0] // size[0]
    columns = np.arange(size[1]) * grid[1] // size[1]
    return np.asarray(mask, bool).reshape(grid)[rows][:, columns]


def paint_masks(
    image: np.ndarray, hidden: np.ndarray, context: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """An image over which predicted patches are tinted red and unseen ones are dark.

    Args:
      image: uint8 [H, W, 3].
      hidden: bool [N], predicted patches in raster order.
      context: bool [N], seen ones.
      grid: (rows, columns) of the patches.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ShapeError: a mask does not fit the grid, or the image is something else.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"image is {image.dtype} {list(image.shape)}; give uint8 [H, W, 3]")
    for name, mask in (("hidden", hidden), ("context", context)):
        if np.shape(mask) != (grid[0] * grid[1],):
            raise ShapeError(
                f"{name} has shape {list(np.shape(mask))}, [{grid[0] * grid[1]}] is needed for a "
                f"grid of {grid}"
            )
    out = image.astype(np.float32)
    size = image.shape[:2]
    predicted, seen = (_pixels(m, grid, size) for m in (hidden, context))
    out = np.where(predicted[..., None], 0.35 * out + 0.65 * HIDDEN, out)
    out = np.where((~predicted & ~seen)[..., None], 0.15 * out + 0.85 * UNSEEN, out)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def mask_picture(
    images: np.ndarray,
    hidden: np.ndarray,
    context: np.ndarray,
    grid: tuple[int, int],
    side: int = 128,
) -> bytes:
    """A PNG with images above their masked versions, one column each.

    Args:
      images: uint8 [B, H, W, 3].
      hidden: bool [B, N].
      context: bool [B, N].
      grid: (rows, columns) of the patches.
      side: pixels that the longer side of an image gets.

    Raises:
      ShapeError: as `paint_masks`, or there is no image.
    """
    if not len(images):
        raise ShapeError("there is no image to draw")
    height, width = images.shape[1:3]
    scale = max(1, side // max(height, width))

    def tall(image: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(image, scale, 0), scale, 1)

    columns = []
    for image, gone, seen in zip(images, hidden, context, strict=True):
        pair = [tall(image), tall(paint_masks(image, gone, seen, grid))]
        gap = np.full((GAP, pair[0].shape[1], 3), 255, np.uint8)
        columns += [
            np.concatenate([pair[0], gap, pair[1]]),
            np.full((2 * pair[0].shape[0] + GAP, GAP, 3), 255, np.uint8),
        ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(columns[:-1], 1)).save(buffer, "PNG")
    return buffer.getvalue()
