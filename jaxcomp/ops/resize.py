"""Bilinear resizing: whole feature maps, and images of different sizes into one static canvas."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcomp.types import Array


def _axis_taps(count: int, size_in: Array, size_out: Array) -> tuple[Array, Array, Array]:
    """Lower and upper source index and the upper one's weight of each of `count` positions.

    Pixel centres at one half, source positions clamped at the first pixel, no smoothing where the
    image shrinks: torch's `interpolate(mode="bilinear", align_corners=False)`.
    """
    place = (jnp.arange(count, dtype=jnp.float32) + 0.5) * (size_in / size_out) - 0.5
    place = jnp.maximum(place, 0.0)
    last = size_in.astype(jnp.int32) - 1
    low = jnp.minimum(jnp.floor(place).astype(jnp.int32), last)
    return low, jnp.minimum(low + 1, last), place - low


def resize_bilinear(x: Array, height: int, width: int) -> Array:
    """Resizes maps with pixel centres at one half and without smoothing where they shrink.

    `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`; an axis that keeps its
    size is left alone.

    Args:
      x: float [B, H, W, C].
      height: rows of the result.
      width: its columns.

    Returns:
      [B, height, width, C].
    """
    for axis, count in ((1, height), (2, width)):
        if x.shape[axis] == count:
            continue
        taps = _axis_taps(count, jnp.float32(x.shape[axis]), jnp.float32(count))
        low, high = (jnp.take(x, index, axis) for index in taps[:2])
        weight = taps[2].reshape((1, count, 1, 1) if axis == 1 else (1, 1, count, 1))
        x = low * (1.0 - weight) + high * weight
    return x


def resize_into(image: Array, native_size: Array, size: Array, canvas: tuple[int, int]) -> Array:
    """Resizes the real part of every image and pads the rest of the canvas with zeros.

    Args:
      image: float [B, H, W, C], of which only the first `native_size` rows and columns are read.
      native_size: [B, 2] (rows, columns) of the real part.
      size: [B, 2] (rows, columns) to resize it to, at most `canvas`.
      canvas: (rows, columns) of the result.

    Returns:
      [B, *canvas, C].
    """

    def one(x: Array, native: Array, new: Array) -> Array:
        low, high, weight = _axis_taps(canvas[0], native[0], new[0])
        weight = weight[:, None, None]
        x = x[low] * (1.0 - weight) + x[high] * weight
        low, high, weight = _axis_taps(canvas[1], native[1], new[1])
        weight = weight[None, :, None]
        x = x[:, low] * (1.0 - weight) + x[:, high] * weight
        rows, columns = (jnp.arange(n) < m for n, m in zip(canvas, new, strict=True))
        return jnp.where((rows[:, None] & columns[None, :])[..., None], x, 0.0)

    return jax.vmap(one)(image, native_size.astype(jnp.float32), size.astype(jnp.float32))
