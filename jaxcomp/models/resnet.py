"""ResNet bodies (He et al., 2015; v1.5: the stride of a bottleneck sits on its 3x3)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxcomp.models.layers import ConvNorm
from jaxcomp.types import Array


class ResidualBlock(nn.Module):
    """A basic (two 3x3) or bottleneck (1x1, 3x3, 1x1 with four times the width) block."""

    features: int
    stride: int = 1
    bottleneck: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        if self.bottleneck:
            width = self.features // 4
            plan = ((width, 1, 1), (width, 3, self.stride), (self.features, 1, 1))
        else:
            plan = ((self.features, 3, self.stride), (self.features, 3, 1))
        y = x
        for i, (width, kernel, stride) in enumerate(plan):
            y = ConvNorm(width, kernel, stride, self.dtype, name=f"conv{i + 1}")(y, train)
            if i < len(plan) - 1:
                y = nn.relu(y)
        if x.shape[-1] != self.features or self.stride != 1:
            x = ConvNorm(self.features, 1, self.stride, self.dtype, name="downsample")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem and four stages at strides 4, 8, 16 and 32.

    Attributes:
      stem_features: channels of the 7x7 stem.
      stage_blocks: residual blocks in each stage.
      stage_features: output channels of each stage.
      bottleneck: kind of block.
      dtype: compute type.
    """

    stem_features: int
    stage_blocks: tuple[int, ...]
    stage_features: tuple[int, ...]
    bottleneck: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> list[Array]:
        """Maps a normalised image [B, H, W, 3] to the outputs of the four stages."""
        x = nn.relu(ConvNorm(self.stem_features, 7, 2, self.dtype, name="stem")(x, train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for i, (blocks, features) in enumerate(
            zip(self.stage_blocks, self.stage_features, strict=True)
        ):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                x = ResidualBlock(
                    features, stride, self.bottleneck, self.dtype, name=f"stage{i + 1}_block{j + 1}"
                )(x, train)
            outputs.append(x)
        return outputs
