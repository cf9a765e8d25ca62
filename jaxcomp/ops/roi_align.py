"""RoIAlign over a feature pyramid (He et al., Mask R-CNN, 2017), unaligned form of torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import jax
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


def _axis_samples(start: Array, length: Array, count: int, ratio: int, limit: Array):
    """Bilinear taps along one axis: [R] starts -> lower, upper index and weights, [R, count*ratio].

    Samples further than one pixel outside the map count as zero, nearer ones are clamped to it.
    """
    offsets = (np.arange(count * ratio, dtype=np.float32) + 0.5) / ratio
    position = start[:, None] + jnp.asarray(offsets)[None, :] * (length / count)[:, None]
    last = (limit - 1)[:, None]
    inside = (position >= -1.0) & (position <= limit[:, None])
    position = jnp.clip(position, 0.0, last.astype(position.dtype))
    low = jnp.floor(position).astype(jnp.int32)
    high = jnp.minimum(low + 1, last)
    fraction = position - low
    weight = inside.astype(position.dtype)
    return low, high, (1.0 - fraction) * weight, fraction * weight


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
    taps_y = _axis_samples(scaled[:, 1], size[:, 1], output_size, sampling_ratio, heights[level])
    taps_x = _axis_samples(scaled[:, 0], size[:, 0], output_size, sampling_ratio, widths[level])
    base, width = starts[level], widths[level]

    def pool(args):
        y0, y1, wy0, wy1, x0, x1, wx0, wx1, first, columns = args
        total = 0.0
        for row, row_weight in ((y0, wy0), (y1, wy1)):
            for column, column_weight in ((x0, wx0), (x1, wx1)):
                values = table[first + row[:, None] * columns + column[None, :]]
                total += values * (row_weight[:, None] * column_weight[None, :])[..., None]
        shape = (output_size, sampling_ratio, output_size, sampling_ratio, channels)
        return total.reshape(shape).mean((1, 3))

    return jax.vmap(pool)((*taps_y, *taps_x, base, width))
