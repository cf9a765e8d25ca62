"""Grouped and depthwise convolutions, fast on every backend.

XLA's CPU backend runs them through a plain loop that is 10 to 80 times as slow as necessary for
the narrow maps of light networks, gradients likewise. There a depthwise convolution is a sum of
shifted maps, which XLA fuses into one pass, and a grouped one a dense one whose kernel is zero
between groups: the same numbers. Other backends get XLA's own form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def depthwise_conv(
    x: Array, kernel: Array, stride: int = 1, *, native: bool | None = None
) -> Array:
    """One kernel for each channel, (K - 1) // 2 zeros on every side.

    Args:
      x: [B, H, W, C].
      kernel: [K, K, 1, C] of the same dtype.
      stride: step.
      native: XLA's own form (True), the sum of shifted maps (False), or by backend (None).

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C].
    """
    side, channels = kernel.shape[0], x.shape[3]
    pad = (side - 1) // 2
    if _native(native):
        return _xla(x, kernel, stride, channels)
    height, width = (-(-n // stride) for n in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    total = jnp.zeros((), x.dtype)
    for row in range(side):
        for column in range(side):
            rows = slice(row, row + (height - 1) * stride + 1, stride)
            columns = slice(column, column + (width - 1) * stride + 1, stride)
            total = total + padded[:, rows, columns] * kernel[row, column].reshape(1, 1, 1, -1)
    return total


def grouped_conv(
    x: Array, kernel: Array, groups: int, stride: int = 1, *, native: bool | None = None
) -> Array:
    """A convolution within groups of channels, (K - 1) // 2 zeros on every side.

    Args:
      x: [B, H, W, C].
      kernel: [K, K, C / groups, M] of the same dtype.
      groups: of input and output channels.
      stride: step.
      native: XLA's own form (True), the dense one (False), or by backend (None).

    Returns:
      [B, ceil(H / stride), ceil(W / stride), M].
    """
    if _native(native):
        return _xla(x, kernel, stride, groups)
    return _xla(x, dense_kernel(kernel, groups), stride, 1)


def dense_kernel(kernel: Array, groups: int) -> Array:
    """[K, K, C / groups, M] -> [K, K, C, M], zeros between the groups."""
    height, width, inputs, outputs = kernel.shape
    same = jnp.eye(groups, dtype=kernel.dtype).reshape(1, 1, groups, 1, groups, 1)
    blocks = kernel.reshape(height, width, 1, inputs, groups, outputs // groups)
    full = jnp.broadcast_to(blocks, (height, width, groups, *blocks.shape[3:]))
    spread = jnp.broadcast_to(same, full.shape)
    return (full * spread).reshape(height, width, groups * inputs, outputs)


def _xla(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def _native(native: bool | None) -> bool:
    return jax.default_backend() != "cpu" if native is None else native
