"""Feature pyramids of three levels for the light face detectors.

BiFPN (Tan et al., 2020, arXiv:1911.09070), one cell:

    p3 ─────────────────► p3' ──┐
    p4 ──► p4u ──► (to p3')     ▼ pool
      └─────┴───────────► p4' ──┐
    p5 ──► (to p4u)             ▼ pool
      └─────────────────► p5'

Every sum is weighted by learned factors, its swish goes through a separable convolution.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxcomp.models.featherface_layers import EPSILON, KERNEL, ConvNorm, head_slope, same_conv
from jaxcomp.models.fpn import resize_nearest
from jaxcomp.types import Array

FUSION_EPSILON = 1e-4
BIFPN_EPSILON, BIFPN_MOMENTUM = 1e-3, 0.99


class FacePyramid(nn.Module):
    """Plain top-down pyramid (Lin et al., 2017) whose coarsest level is not smoothed."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> list[Array]:
        """Three maps to three with `features` channels."""
        slope = head_slope(self.features)

        def conv(kernel: int, name: str, x: Array) -> Array:
            layer = ConvNorm(self.features, kernel, dtype=self.dtype, name=name)
            return nn.leaky_relu(layer(x, train), slope)

        p3, p4, p5 = (conv(1, f"lateral{i}", x) for i, x in enumerate(maps))
        p4 = conv(3, "merge1", p4 + resize_nearest(p5, *p4.shape[1:3]))
        p3 = conv(3, "merge0", p3 + resize_nearest(p4, *p3.shape[1:3]))
        return [p3, p4, p5]


class BiFPN(nn.Module):
    """A chain of cells.

    Attributes:
      features: channels.
      cells: how many.
      light: the smaller form: one set of adapters instead of two, pooling that ignores the border,
        and p5' sees p4u too.
      dtype: compute type.
    """

    features: int
    cells: int
    light: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> list[Array]:
        """Three maps to three with `features` channels."""
        for i in range(self.cells):
            cell = BiFPNCell(self.features, i == 0, self.light, self.dtype, name=f"cell{i}")
            maps = cell(maps, train)
        return list(maps)


class BiFPNCell(nn.Module):
    """One cell; the first adapts the channels."""

    features: int
    first: bool
    light: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> list[Array]:
        """Three maps to three with `features` channels."""
        p3, p4, p5 = down = [self._adapt(f"adapt{i}", x, train) for i, x in enumerate(maps)]
        if self.first and not self.light:  # the way back up has adapters of its own
            down = [p3, *(self._adapt(f"adapt{i}_up", maps[i], train) for i in (1, 2))]
        coarse = self._join("p4_top", [p4, resize_nearest(p5, *p4.shape[1:3])], train)
        p3 = self._join("p3_out", [p3, resize_nearest(coarse, *p3.shape[1:3])], train)
        p4 = self._join("p4_out", [down[1], coarse, self._pool(p3)], train)
        last = [down[2], self._pool(p4)] + ([self._pool(coarse)] if self.light else [])
        return [p3, p4, self._join("p5_out", last, train, weights=3)]

    def _adapt(self, name: str, x: Array, train: bool) -> Array:
        if not self.first:
            return x
        return ConvNorm(
            self.features, 1, bias=not self.light, epsilon=BIFPN_EPSILON,
            momentum=BIFPN_MOMENTUM, dtype=self.dtype, name=name,
        )(x, train)  # fmt: skip

    def _join(self, name: str, maps: list[Array], train: bool, weights: int = 0) -> Array:
        """Weighted sum, swish, separable convolution.

        The weights are positive and add up to one; a weight without a map counts in that sum.
        """
        shape = (weights or len(maps),)
        factor = nn.relu(self.param(f"{name}_weights", nn.initializers.ones, shape))
        factor = (factor / (factor.sum() + FUSION_EPSILON)).astype(self.dtype)
        x = nn.swish(sum(factor[i] * x for i, x in enumerate(maps)))
        return SeparableNorm(self.light, self.dtype, name=name)(x, train)

    def _pool(self, x: Array) -> Array:
        if self.light:
            return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return pool_same(x)


def pool_same(x: Array) -> Array:
    """3x3 maximum with step 2, TensorFlow's "same" padding with zeros, which take part."""
    border = [(n % 2, 1) for n in x.shape[1:3]]
    return nn.max_pool(jnp.pad(x, ((0, 0), *border, (0, 0))), (3, 3), (2, 2))


class SeparableNorm(nn.Module):
    """3x3 depthwise and 1x1 convolution; the light form normalises and clips in between."""

    light: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        channels = x.shape[-1]
        epsilon = EPSILON if self.light else BIFPN_EPSILON
        conv = functools.partial(
            ConvNorm, channels, epsilon=epsilon, momentum=BIFPN_MOMENTUM, dtype=self.dtype
        )
        if self.light:
            x = nn.relu(conv(3, groups=-1, name="depthwise")(x, train))
        else:
            kernel = self.param("depthwise", KERNEL, (3, 3, 1, channels))
            x = same_conv(x, kernel.astype(x.dtype), groups=channels)
        return conv(1, bias=not self.light, name="pointwise")(x, train)
