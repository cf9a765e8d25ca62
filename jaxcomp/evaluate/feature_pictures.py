"""Pictures of features: where a network looks, and which images it finds alike."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxcomp.errors import ShapeError
from jaxcomp.evaluate.probe import unit

GAP = 4
SIDE = 96  # pixels that the longer side of a picture is enlarged to
SAME, OTHER = (46, 139, 87), (196, 64, 48)  # frames of neighbours with the same label or another


def enlarged(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [h, w, 3] with each pixel repeated so that the longer side is at most `side`."""
    scale = max(1, side // max(image.shape[:2]))
    return np.repeat(np.repeat(image, scale, 0), scale, 1)


def heat(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """An image that is bright where shares [rows, columns] are large and dark elsewhere."""
    shares = np.asarray(shares, np.float32)
    if shares.ndim != 2 or any(a < b for a, b in zip(image.shape, shares.shape, strict=False)):
        raise ShapeError(f"shares {list(shares.shape)} do not fit an image {list(image.shape)}")
    low, high = float(shares.min()), float(shares.max())
    shares = (shares - low) / max(high - low, 1e-12)
    rows, columns = (np.arange(n) * g // n for n, g in zip(image.shape, shares.shape, strict=False))
    light = 0.15 + 0.85 * shares[rows][:, columns, None]
    warm = np.array([255, 214, 120], np.float32) * shares[rows][:, columns, None] * 0.25
    return np.clip(np.rint(image * light + warm), 0, 255).astype(np.uint8)


def tiled(rows: Sequence[Sequence[np.ndarray]]) -> bytes:
    """A PNG of rows of pictures of one size, on white."""
    if not rows or not rows[0]:
        raise ShapeError("there is no image to draw")
    height, width = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    shape = (len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            sheet[top : top + height, left : left + width] = picture
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    return buffer.getvalue()


def attention_picture(images: np.ndarray, shares: np.ndarray) -> bytes:
    """A PNG: each row an image, the mean over heads, then head by head.

    Args:
      images: uint8 [B, H, W, 3].
      shares: float [B, heads, rows, columns].
    """
    rows = []
    for image, heads in zip(images, shares, strict=True):
        maps = [heads.mean(0), *heads]
        rows.append([enlarged(image), *(enlarged(heat(image, m)) for m in maps)])
    return tiled(rows)


def nearest(queries: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """Int [Q, count]: rows of keys [K, D] with the largest cosine to each of queries [Q, D]."""
    similarity = unit(np.asarray(queries, np.float64)) @ unit(np.asarray(keys, np.float64)).T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def _framed(image: np.ndarray, colour: tuple[int, int, int] | None) -> np.ndarray:
    out = enlarged(image).copy()
    if colour is not None:
        for edge in (out[:3], out[-3:], out[:, :3], out[:, -3:]):
            edge[:] = colour
    return out


def neighbour_picture(
    images: np.ndarray,
    found: Sequence[np.ndarray],
    labels: np.ndarray,
    found_labels: Sequence[np.ndarray],
) -> bytes:
    """A PNG: each row an image, then those found for it, nearest first.

    Args:
      images: uint8 [B, H, W, 3].
      found: for each image uint8 [k, H, W, 3].
      labels: int [B], -1 where there is none; then no frame is drawn.
      found_labels: for each image int [k]; a frame is green for the same label, red for another.
    """
    rows = []
    for image, others, label, theirs in zip(images, found, labels, found_labels, strict=True):
        colours = [None if label < 0 else SAME if t == label else OTHER for t in theirs]
        rows.append(
            [_framed(image, None), *(_framed(o, c) for o, c in zip(others, colours, strict=True))]
        )
    return tiled(rows)
