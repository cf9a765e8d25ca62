"""Layers shared by the networks."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxcomp.types import Array


class ConvNorm(nn.Module):
    """Convolution with explicit symmetric padding, then batch normalisation, no activation.

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
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name="conv",
        )(x)
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            name="norm",
        )(x)
