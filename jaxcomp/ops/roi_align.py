"""RoIAlign over a feature pyramid (He et al., Mask R-CNN, 2017), unaligned form of torchvision."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxcomp.types import Array


def assign_level(
    boxes: Array, levels: int, *, canonical_size: float = 224.0, canonical_level: int = 4
) -> Array:
    """Pyramid level of each box, [..., 4] -> [...] int in [0, levels), 0 being P2 (FPN, eq. 1)."""
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    root_area = jnp.sqrt(size[..., 0] * size[..., 1])
    level = jnp.floor(canonical_level + jnp.log2(root_area / canonical_size + 1e-12) + 1e-6)
    return jnp.clip(level, 2, levels + 1).astype(jnp.int32) - 2


def _axis_taps(start: Array, length: Array, bins: int, ratio: int, limit: Array):
    """What an axis of a bin is averaged from: [R] starts -> index and weight [R, bins, 2 ratio].

    `ratio` samples a bin, each between two neighbours. Samples further than one pixel outside the
    map count as zero, nearer ones are clamped to it.
    """
    offsets = (np.arange(bins * ratio, dtype=np.float32) + 0.5) / ratio
    position = start[:, None] + jnp.asarray(offsets)[None, :] * (length / bins)[:, None]
    last = (limit - 1)[:, None]
    inside = (position >= -1.0) & (position <= limit[:, None])
    position = jnp.clip(position, 0.0, last.astype(position.dtype))
    low = jnp.floor(position).astype(jnp.int32)
    fraction = position - low
    weight = inside.astype(position.dtype) / ratio
    index = jnp.stack([low, jnp.minimum(low + 1, last)], -1)
    weights = jnp.stack([(1.0 - fraction) * weight, fraction * weight], -1)
    shape = (start.shape[0], bins, 2 * ratio)
    return index.reshape(shape), weights.reshape(shape)


def roi_align(
    features: Sequence[Array],
    boxes: Array,
    level: Array,
    *,
    strides: Sequence[int],
    output_size: int = 7,
    sampling_ratio: int = 2,
) -> Array:
    """Pools every box from its own level.

    Args:
      features: maps of one image, each [H_l, W_l, C].
      boxes: [R, 4] in image pixels.
      level: [R] int, index into `features`.
      strides: image pixels per feature pixel of each level.
      output_size: P, bins along each side.
      sampling_ratio: samples along each side of a bin, averaged.

    Returns:
      [R, P, P, C].
    """
    channels = features[0].shape[-1]
    table = jnp.concatenate([f.reshape(-1, channels) for f in features], 0)
    heights = jnp.asarray([f.shape[0] for f in features])
    widths = jnp.asarray([f.shape[1] for f in features])
    starts = jnp.asarray(np.cumsum([0] + [f.shape[0] * f.shape[1] for f in features[:-1]]))
    scaled = boxes / jnp.asarray(strides, boxes.dtype)[level][:, None]
    size = jnp.maximum(scaled[:, 2:] - scaled[:, :2], 1.0)
    rows, row_weights = _axis_taps(
        scaled[:, 1], size[:, 1], output_size, sampling_ratio, heights[level]
    )
    columns, column_weights = _axis_taps(
        scaled[:, 0], size[:, 0], output_size, sampling_ratio, widths[level]
    )
    rows = starts[level][:, None, None] + rows * widths[level][:, None, None]
    pooled = jnp.zeros((), table.dtype)
    # Every tap is one gather. The indices are in bounds by construction; saying so spares XLA their
    # checks, which take six times as long as the reading.
    for i, j in itertools.product(range(2 * sampling_ratio), repeat=2):
        index = rows[:, :, None, i] + columns[:, None, :, j]
        weight = row_weights[:, :, None, i] * column_weights[:, None, :, j]
        taken = table.at[index].get(mode="promise_in_bounds")
        pooled = pooled + taken * weight[..., None].astype(table.dtype)
    return pooled
