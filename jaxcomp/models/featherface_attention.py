"""Convolutional block attention (Woo et al., 2018, arXiv:1807.06521) on the maps of three levels.

    x ── channels: sigmoid(mlp(mean) + mlp(max)) ── places: sigmoid(7x7 of max, mean) ──► gated
    output: ReLU(gated + x)

"cbam" has a gate of its own for each level; "shared" has one spatial gate for the three, no biases
in the MLPs, and gives the spatial gate mean and maximum in the other order.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxcomp.models.featherface_layers import KERNEL, ConvNorm, bias_init
from jaxcomp.types import Array

GATE_MOMENTUM = 0.99


class ChannelGate(nn.Module):
    """Scales the channels.

    Attributes:
      hidden: width of the MLP.
      bias: of its two layers.
    """

    hidden: int
    bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        channels = x.shape[-1]

        def dense(width: int, inputs: int, name: str) -> nn.Dense:
            start = bias_init(inputs)
            return nn.Dense(
                width, use_bias=self.bias, dtype=x.dtype, kernel_init=KERNEL, bias_init=start,
                name=name,
            )  # fmt: skip

        squeeze = dense(self.hidden, channels, "squeeze")
        expand = dense(channels, self.hidden, "expand")
        pooled = (x.mean((1, 2)), x.max((1, 2)))
        total = sum(expand(nn.relu(squeeze(p))) for p in pooled)
        return x * nn.sigmoid(total)[:, None, None]


class SpatialGate(nn.Module):
    """Scales the places.

    Attributes:
      mean_first: order of the two maps that the convolution sees.
      dtype: compute type.
    """

    mean_first: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        maps = [x.max(-1, keepdims=True), x.mean(-1, keepdims=True)]
        both = jnp.concatenate(maps[::-1] if self.mean_first else maps, -1)
        conv = ConvNorm(1, 7, momentum=GATE_MOMENTUM, dtype=self.dtype, name="conv")
        return x * jnp.broadcast_to(nn.sigmoid(conv(both, train)), x.shape)


class Gates(nn.Module):
    """Attention for three maps.

    Attributes:
      kind: "cbam" or "shared".
      dtype: compute type.
    """

    kind: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> list[Array]:
        """Three maps to three of the same shapes."""
        shared = self.kind == "shared"
        names = ["spatial"] if shared else [f"spatial{i}" for i in range(3)]
        spatial = [SpatialGate(shared, self.dtype, name=name) for name in names]
        outputs = []
        for i, x in enumerate(maps):
            channels = x.shape[-1]
            hidden = max(channels // 32, 4) if shared else channels // 16
            gated = ChannelGate(hidden, not shared, name=f"channel{i}")(x)
            gated = spatial[0 if shared else i](gated, train)
            outputs.append(nn.relu(gated + x))
        return outputs
