"""Anchors of single-shot face detectors and what is predicted relative to them.

Boxes and landmarks are fractions of the image: x by its width, y by its height. An anchor (or
"prior box") is cx, cy, w, h; a box x1, y1, x2, y2 (Liu et al., "SSD", 2016; Deng et al.,
"RetinaFace", 2019, arXiv:1905.00641).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxcomp.types import Array

STEPS = (8, 16, 32)
MIN_SIZES = ((16, 32), (64, 128), (256, 512))
VARIANCES = (0.1, 0.2)  # of centres and landmarks, of log sizes
POINTS = 5


def make_priors(
    height: int,
    width: int,
    steps: Sequence[int] = STEPS,
    min_sizes: Sequence[Sequence[float]] = MIN_SIZES,
) -> np.ndarray:
    """The anchors of an image of any size.

    A level has ceil(size / step) places along each side, which is what strided convolutions with a
    padding of one make of odd sizes too.

    Args:
      height: rows of the network's input.
      width: its columns.
      steps: pixels between the places of each level.
      min_sizes: sides of the square anchors of each level, pixels.

    Returns:
      float32 [A, 4] in (level, row, column, size) order; not clipped to the image.
    """
    levels = []
    for step, sizes in zip(steps, min_sizes, strict=True):
        shape = (-(-height // step), -(-width // step), len(sizes))
        rows, columns, index = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
        side = np.asarray(sizes, np.float64)[index]
        centre = ((columns + 0.5) * step / width, (rows + 0.5) * step / height)
        levels.append(np.stack([*centre, side / width, side / height], -1).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def decode_boxes(deltas: Array, priors: Array, variances: Sequence[float] = VARIANCES) -> Array:
    """Boxes of predictions: [..., A, 4] and anchors [A, 4] -> [..., A, 4] corners."""
    priors = _like(priors, deltas)
    centre = priors[..., :2] + deltas[..., :2] * variances[0] * priors[..., 2:]
    size = priors[..., 2:] * jnp.exp(deltas[..., 2:] * variances[1])
    return jnp.concatenate([centre - size / 2, centre + size / 2], -1)


def encode_boxes(boxes: Array, priors: Array, variances: Sequence[float] = VARIANCES) -> Array:
    """Inverse of `decode_boxes`; sides are taken as 1e-6 of the image at least."""
    priors = _like(priors, boxes)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)
    shift = (centre - priors[..., :2]) / (variances[0] * priors[..., 2:])
    return jnp.concatenate([shift, jnp.log(size / priors[..., 2:]) / variances[1]], -1)


def decode_landmarks(deltas: Array, priors: Array, variances: Sequence[float] = VARIANCES) -> Array:
    """Five points of predictions: [..., A, 10] and anchors [A, 4] -> [..., A, 10] of x, y pairs."""
    priors = _like(priors, deltas)
    centre, size = (jnp.tile(part, POINTS) for part in (priors[..., :2], priors[..., 2:]))
    return centre + deltas * variances[0] * size


def encode_landmarks(points: Array, priors: Array, variances: Sequence[float] = VARIANCES) -> Array:
    """Inverse of `decode_landmarks`."""
    priors = _like(priors, points)
    centre, size = (jnp.tile(part, POINTS) for part in (priors[..., :2], priors[..., 2:]))
    return (points - centre) / (variances[0] * size)


def _like(priors: Array, x: Array) -> Array:
    """The anchors with as many leading axes as the predictions."""
    return jnp.asarray(priors).reshape((1,) * (x.ndim - 2) + priors.shape)
