"""Layers shared by the networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxcomp.types import Array

EPSILON = 1e-5  # of the batch normalisation


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """`lax.conv_general_dilated`, but a matrix product for 1x1 kernels.

    XLA's CPU convolution takes up to five times as long as the product for the wide maps of a
    bottleneck; other backends make no difference.

    Args:
      x: [B, H, W, C].
      kernel: [K, K, C, M].
      strides: of the rows and columns.
      padding: (low, high) of the rows and columns.
      **options: passed on.

    Returns:
      [B, H', W', M].
    """
    plain = not any(low or high for low, high in padding) and options.get(
        "feature_group_count", 1
    ) == 1  # fmt: skip
    if kernel.shape[:2] != (1, 1) or not plain:
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    x = x[:, :: strides[0], :: strides[1]]
    dimensions = (((3,), (0,)), ((), ()))
    return lax.dot_general(x, kernel[0, 0], dimensions, precision=options.get("precision"))


class ConvNorm(nn.Module):
    """Convolution with explicit symmetric padding, then batch normalisation, no activation.

    With stored statistics the normalisation is an affine map and goes into the kernel, which spares
    a pass over the map.

    Attributes:
      features: output channels.
      kernel: side of the kernel; the padding is (kernel - 1) // 2 on every side, which for strided
        convolutions differs from "SAME" by one pixel.
      stride: step.
      dtype: compute type; statistics and parameters stay float32.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        pad = (self.kernel - 1) // 2
        strides, padding = (self.stride, self.stride), ((pad, pad), (pad, pad))
        conv = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides,
            padding=padding,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            conv_general_dilated=convolve,
            name="conv",
        )
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=EPSILON,
            dtype=self.dtype,
            name="norm",
        )
        if train or self.is_initializing():
            return norm(conv(x))
        mean, variance = (norm.get_variable("batch_stats", name) for name in ("mean", "var"))
        gain = norm.get_variable("params", "scale") * lax.rsqrt(variance + EPSILON)
        shift = norm.get_variable("params", "bias") - mean * gain
        kernel = conv.get_variable("params", "kernel") * gain.reshape(1, 1, 1, -1)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), strides, padding)
        return y + shift.astype(self.dtype).reshape(1, 1, 1, -1)
