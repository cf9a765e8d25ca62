"""Context heads (Najibi et al., "SSH", 2017, arXiv:1708.03979), channel mixing, outputs.

x ─┬─ 3x3 ────────────────────────┬─ concat ── ReLU
   └─ 3x3 ── a ─┬─ 3x3 ───────────┤             widths: 1/2, 1/4, 1/4
                └─ 3x3 ── a ─ 3x3 ┘
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxcomp.models.featherface_layers import (
    Conv,
    ConvNorm,
    head_slope,
    shuffle_channels,
    unshuffle_channels,
)
from jaxcomp.types import Array

GROUPS = 4  # of the light forms
OUTPUTS = {"boxes": 4, "classes": 2, "landmarks": 10}  # numbers of each anchor


class Context(nn.Module):
    """A context head of 3x3 convolutions, perhaps deformable ones."""

    deformable: bool
    dtype: jnp.dtype = jnp.float32
    loops: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        features, slope = x.shape[-1], head_slope(x.shape[-1])

        def conv(name: str, x: Array, width: int) -> Array:
            kinds = {"deformable": self.deformable, "loops": self.loops}
            return ConvNorm(width, dtype=self.dtype, name=name, **kinds)(x, train)

        narrow = features // 4
        branch3 = conv("branch3", x, features // 2)
        stem = nn.leaky_relu(conv("branch5_stem", x, narrow), slope)
        branch5 = conv("branch5", stem, narrow)
        middle = nn.leaky_relu(conv("branch7_stem", stem, narrow), slope)
        branch7 = conv("branch7", middle, narrow)
        return nn.relu(jnp.concatenate([branch3, branch5, branch7], -1))


class GroupedContext(nn.Module):
    """The light form: 1x1 convolutions to the widths of the branches, grouped 3x3 ones after."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        features = x.shape[-1]

        def point(name: str, x: Array, width: int) -> Array:
            return nn.relu(ConvNorm(width, 1, dtype=self.dtype, name=name)(x, train))

        def grouped(name: str, x: Array) -> Array:
            layer = ConvNorm(x.shape[-1], 3, groups=GROUPS, dtype=self.dtype, name=name)
            return layer(x, train)

        narrow = features // 4
        branch3 = grouped("branch3", point("branch3_point", x, features // 2))
        stem = grouped("branch5_stem", point("branch5_point", x, narrow))
        branch5 = grouped("branch5", stem)
        branch7 = grouped("branch7", nn.relu(grouped("branch7_stem", stem)))
        return nn.relu(jnp.concatenate([branch3, branch5, branch7], -1))


class Mixer(nn.Module):
    """What follows a context head, see `FaceConfig.mixer`."""

    kind: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        if self.kind == "none":
            return x
        if self.kind == "shuffle":
            return shuffle_channels(x, 2)
        if self.kind == "unshuffle":
            return unshuffle_channels(x, 2)
        features = x.shape[-1]
        if self.kind == "unshuffle_conv":
            x = unshuffle_channels(x, 2)
            plan = [(features // 2, 1, 1), (features // 2, 3, -1), (features, 1, 1)]
        else:
            x = shuffle_channels(x, GROUPS)
            plan = [(features // 2, 1, GROUPS), (features, 1, GROUPS)]
        for i, (width, kernel, groups) in enumerate(plan):
            layer = ConvNorm(width, kernel, groups=groups, dtype=self.dtype, name=f"conv{i}")
            x = layer(x, train)
            # The first form clips only at its end.
            x = x if self.kind == "unshuffle_conv" and i < len(plan) - 1 else nn.relu(x)
        return x


class Outputs(nn.Module):
    """Boxes, class logits and landmarks of every anchor of one level."""

    anchors: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """[B, H, W, C] -> float32 {"boxes": [B, A, 4], "classes": [.., 2], "landmarks": [.., 10]}.

        The anchors are in (row, column, size) order.
        """
        out = {}
        for name, width in OUTPUTS.items():
            y = Conv(self.anchors * width, dtype=self.dtype, name=name)(x)
            out[name] = y.reshape(x.shape[0], -1, width).astype(jnp.float32)
        return out
