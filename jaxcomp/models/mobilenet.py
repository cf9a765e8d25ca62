"""MobileNetV1 (Howard et al., 2017, arXiv:1704.04861) at a quarter of its width."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxcomp.models.featherface_layers import ConvNorm, leaky
from jaxcomp.types import Array

STEM = 8
# (channels, step) of the blocks; the stages end at strides 8, 16 and 32.
STAGES = (
    ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)),
    ((128, 2), (128, 1), (128, 1), (128, 1), (128, 1), (128, 1)),
    ((256, 2), (256, 1)),
)
WIDTHS = tuple(stage[-1][0] for stage in STAGES)


class Separable(nn.Module):
    """3x3 depthwise and 1x1 convolution, each with normalisation and leaky ReLU."""

    features: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        deep = ConvNorm(
            x.shape[-1], 3, self.stride, groups=-1, dtype=self.dtype, name="depthwise"
        )  # fmt: skip
        x = leaky(deep(x, train))
        return leaky(ConvNorm(self.features, 1, dtype=self.dtype, name="pointwise")(x, train))


class MobileNetV1(nn.Module):
    """The body: 213,072 parameters."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> list[Array]:
        """Normalised images [B, H, W, 3] -> maps at strides 8, 16, 32 (64, 128, 256 channels)."""
        x = leaky(ConvNorm(STEM, 3, 2, dtype=self.dtype, name="stem")(x, train))
        outputs = []
        for i, blocks in enumerate(STAGES, 1):
            for j, (features, stride) in enumerate(blocks, 1):
                x = Separable(features, stride, self.dtype, name=f"stage{i}_block{j}")(x, train)
            outputs.append(x)
        return outputs


class MobileNetClassifier(nn.Module):
    """The body under ImageNet's classes, 470,072 parameters: how it is trained beforehand."""

    classes: int = 1000
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Builds body and classifier."""
        self.body = MobileNetV1(self.dtype)
        self.fc = nn.Dense(self.classes, dtype=self.dtype)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Normalised images [B, H, W, 3] -> logits [B, classes]."""
        return self.fc(self.body(x, train)[-1].mean((1, 2)))
