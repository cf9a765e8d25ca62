"""Modulated deformable convolution, "DCNv2" (Zhu et al., 2018, arXiv:1811.11168, equation 1).

    y(p) = sum_t  w_t . x(p + t + offset_t(p)) mask_t(p)          t: the taps of a 3x3 kernel

with x read bilinearly between pixels, zero outside the map. Reading is linear, so `w_t . x` can
come first: one matrix product gives the map's contribution to every tap, and what is then gathered
has the channels of the *output*, of which the layers of a context head have half or a quarter as
many.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxcomp.ops.gather_sum import gather_sum
from jaxcomp.types import Array

TAPS = 9
_BORDER = ((0, 0), (1, 2), (1, 2), (0, 0))  # zeros that positions outside the map read


def deform_conv(
    x: Array, offsets: Array, mask: Array, kernel: Array, *, native: bool | None = True
) -> Array:
    """A 3x3 deformable convolution with step 1 and padding 1.

    Args:
      x: [B, H, W, C].
      offsets: [B, H, W, 18] pixels, (dy, dx) of each tap, taps in row-major order.
      mask: [B, H, W, 9] factors of the taps.
      kernel: [3, 3, C, M].
      native: as of `gather_sum`; XLA's own form by default, which every backend can export.

    Returns:
      [B, H, W, M]. With zero offsets and a mask of ones, the plain convolution.
    """
    batch, height, width, channels = x.shape
    low, fraction = _positions(offsets)
    contributions = jnp.pad(x, _BORDER).reshape(-1, channels) @ _by_tap(kernel)
    table = contributions.reshape(batch, -1, kernel.shape[3])
    columns = width + 3
    tap = np.arange(TAPS, dtype=np.int32).reshape(1, 1, 1, -1)
    first = (low[..., 0] * columns + low[..., 1]) * TAPS + tap
    corners = [(i, j) for i in (0, 1) for j in (0, 1)]
    index = jnp.stack([first + (i * columns + j) * TAPS for i, j in corners], -2)
    weights = jnp.stack(
        [_weight(fraction[..., 0], i) * _weight(fraction[..., 1], j) * mask for i, j in corners],
        axis=-2,
    )
    index, weights = (a.reshape(batch, height * width, -1) for a in (index, weights))
    total = gather_sum(table, index, weights.astype(x.dtype), native=native)
    return total.reshape(batch, height, width, -1)


def _positions(offsets: Array) -> tuple[Array, Array]:
    """Upper left neighbour in the padded map, int32, and the fraction; both [B, H, W, 9, 2].

    Positions are clamped to the ring of zeros: one pixel or more outside reads nothing.
    """
    batch, height, width, _ = offsets.shape
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    taps = np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1), indexing="ij"), -1).reshape(TAPS, 2)
    plain = (grid[:, :, None] + taps)[None].astype(np.float32)
    place = offsets.reshape(batch, height, width, TAPS, 2).astype(jnp.float32) + plain
    end = np.array([height, width], np.float32).reshape(1, 1, 1, 1, 2)
    place = jnp.clip(place, -1.0, end)
    low = jnp.floor(place)
    return low.astype(jnp.int32) + 1, place - low


def _by_tap(kernel: Array) -> Array:
    """[3, 3, C, M] -> [C, 9 M]."""
    channels, features = kernel.shape[2:]
    return kernel.reshape(TAPS, channels, features).transpose(1, 0, 2).reshape(channels, -1)


def _weight(fraction: Array, upper: int) -> Array:
    return fraction if upper else 1.0 - fraction
