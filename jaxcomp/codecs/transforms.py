"""The nonlinear transforms of the codec: stacks of 5x5 stride-2 convolutions with GDN between.

    Analysis    x [B,H,W,C] -> conv -> GDN -> ... -> conv -> y [B, H/2^s, W/2^s, M]
    Synthesis   y -> conv^T -> IGDN -> ... -> conv^T -> x_hat [B,H,W,C]

`s` stages halve the map s times; hidden layers have `n_hidden` channels. With s = 4, 128 hidden and
192 latent channels this is the transform of Balle et al. 2018 (arXiv:1802.01436, figure 4).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcomp.codecs.gdn import GDN
from jaxcomp.ops.conv import conv5s2, conv5s2_transpose

Array = jax.Array


class Conv(nn.Module):
    """A 5x5 stride-2 convolution (or its transpose) with a bias.

    Attributes:
      features: output channels.
      transpose: double the map instead of halving it.
      dtype: of the arithmetic; parameters are float32.
    """

    features: int
    transpose: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] to [B, ceil(H/2), ceil(W/2), features], or [B, 2H, 2W, features]."""
        # A transposed output receives a quarter of the taps, so its fan-in is that much smaller.
        gain = 4.0 if self.transpose else 1.0
        init = nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (5, 5, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        apply = conv5s2_transpose if self.transpose else conv5s2
        y = apply(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class Transform(nn.Module):
    """`stages` convolutions with GDN between them; with `transpose` the decoder's mirror image.

    Attributes:
      hidden: channels between the layers.
      features: channels of the output.
      stages: number of stride-2 layers, at least 1.
      transpose: synthesis (upwards, inverse GDN) instead of analysis.
      dtype: of the convolutions; GDN computes in float32.
    """

    hidden: int
    features: int
    stages: int
    transpose: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] to [B, H', W', features] with H' = ceil(H / 2^stages) or 2^stages H."""
        for i in range(self.stages):
            last = i == self.stages - 1
            width = self.features if last else self.hidden
            x = Conv(width, self.transpose, self.dtype, name=f"conv_{i}")(x)
            if not last:
                x = GDN(self.transpose, name=f"gdn_{i}")(x)
        return x
