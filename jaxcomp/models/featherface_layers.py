"""The convolution of the light face detectors: plain, grouped, depthwise or deformable."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcomp.models.layers import convolve
from jaxcomp.ops.deformable import TAPS, deform_conv
from jaxcomp.ops.grouped import depthwise_conv, grouped_conv
from jaxcomp.types import Array

EPSILON, MOMENTUM = 1e-5, 0.9  # of the batch normalisation; PyTorch's momentum of 0.1
SLOPE = 0.1  # of the leaky ReLU
# What PyTorch draws kernels from.
KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def leaky(x: Array) -> Array:
    """LeakyReLU with a slope of 0.1."""
    return nn.leaky_relu(x, SLOPE)


def head_slope(features: int) -> float:
    """Slope of the activations in pyramid and context: 0.1 up to 64 channels, else 0."""
    return SLOPE if features <= 64 else 0.0


def bias_init(fan_in: int) -> nn.initializers.Initializer:
    """What PyTorch draws the biases of a layer with so many inputs from."""

    def draw(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def same_conv(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """Convolution with (K - 1) // 2 zeros on every side."""
    if groups == x.shape[-1] == kernel.shape[-1]:
        return depthwise_conv(x, kernel, stride)
    if groups > 1:
        return grouped_conv(x, kernel, groups, stride)
    pad = (kernel.shape[0] - 1) // 2
    return convolve(x, kernel, (stride, stride), ((pad, pad), (pad, pad)))


class Conv(nn.Module):
    """A convolution with bias and without normalisation.

    Attributes:
      features: output channels.
      kernel: side of the kernel.
      zero: start with zeros.
      dtype: compute type.
    """

    features: int
    kernel: int = 1
    zero: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        zeros = nn.initializers.zeros
        kernel = self.param("kernel", zeros if self.zero else KERNEL, shape)
        start = zeros if self.zero else bias_init(math.prod(shape[:3]))
        bias = self.param("bias", start, (self.features,))
        y = same_conv(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class ConvNorm(nn.Module):
    """Convolution, then batch normalisation, no activation.

    With stored statistics the normalisation goes into the kernel.

    Attributes:
      features: output channels.
      kernel: side of the kernel.
      stride: step.
      groups: of the channels; -1 for depthwise.
      bias: of the convolution, before the normalisation.
      deformable: let a convolution predict where each tap reads and how much it counts (3x3 only).
      loops: see `FaceDetector`.
      epsilon, momentum: of the normalisation.
      dtype: compute type; statistics and parameters stay float32.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    bias: bool = False
    deformable: bool = False
    loops: bool = False
    epsilon: float = EPSILON
    momentum: float = MOMENTUM
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        x = x.astype(self.dtype)
        groups = x.shape[-1] if self.groups < 0 else self.groups
        shape = (self.kernel, self.kernel, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", KERNEL, shape)
        bias = jnp.zeros((), jnp.float32)
        if self.bias:
            bias = self.param("bias", bias_init(math.prod(shape[:3])), (self.features,))
        apply = functools.partial(same_conv, x, stride=self.stride, groups=groups)
        if self.deformable:
            places = self._places(x)
            # Foreign loops are fast, but belong in no exported program.
            native = None if train or self.loops else True
            apply = functools.partial(_deformed, x, places, native=native)
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            name="norm",
        )
        if train or self.is_initializing():
            return norm(apply(kernel.astype(self.dtype)) + _row(bias.astype(self.dtype)))
        mean: Array = norm.get_variable("batch_stats", "mean")
        variance: Array = norm.get_variable("batch_stats", "var")
        gain = norm.get_variable("params", "scale") * lax.rsqrt(variance + self.epsilon)
        shift = norm.get_variable("params", "bias") + (bias - mean) * gain
        return apply((kernel * _row(gain)).astype(self.dtype)) + _row(shift.astype(self.dtype))

    def _places(self, x: Array) -> tuple[Array, Array]:
        """Offsets [B, H, W, 18] and factors 0 to 2 [B, H, W, 9] of the taps; start at 0 and 1."""
        offsets = Conv(2 * TAPS, 3, zero=True, dtype=self.dtype, name="offset")(x)
        modulation = Conv(TAPS, 3, zero=True, dtype=self.dtype, name="modulator")(x)
        return offsets, 2.0 * nn.sigmoid(modulation)


def _deformed(x: Array, places: tuple[Array, Array], kernel: Array, native: bool | None) -> Array:
    return deform_conv(x, *places, kernel, native=native)


def _row(x: Array) -> Array:
    return x.reshape(1, 1, 1, -1)


def shuffle_channels(x: Array, groups: int) -> Array:
    """Channel c of group g goes to place c * groups + g (Zhang et al., "ShuffleNet", 2018)."""
    *lead, channels = x.shape
    return x.reshape(*lead, groups, channels // groups).swapaxes(-1, -2).reshape(x.shape)


def unshuffle_channels(x: Array, groups: int) -> Array:
    """The inverse of `shuffle_channels`."""
    return shuffle_channels(x, x.shape[-1] // groups)
