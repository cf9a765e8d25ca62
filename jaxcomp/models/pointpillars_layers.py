"""Layers of PointPillars: pillar encoder, scatter, convolution with normalisation, neck."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxcomp.models.layers import convolve
from jaxcomp.ops.voxelise import PillarGrid, Pillars
from jaxcomp.types import Array

EPSILON = 1e-3  # of the batch normalisation
MOMENTUM = 0.99
POINT_FEATURES = 9


def point_features(pillars: Pillars, grid: PillarGrid, max_points: int) -> Array:
    """The nine inputs of the encoder, [B, N, 9]; zeros in the padding.

    Offset in x and y from the middle of the pillar, z, intensity, offset in x, y, z from the mean
    of the pillar's points, and the first two again: the absolute x and y of the paper are
    overwritten by the offsets in the implementation whose weights people have.

    Args:
      pillars: with a batch axis.
      grid: the cells.
      max_points: of a pillar.
    """
    points, pillar = pillars.points, pillars.pillar
    place = points[..., :3]
    total = gather_rows(segment_sum(place, pillar, max_points), starts(pillars))
    mean = total / jnp.maximum(pillars.counts, 1)[..., None].astype(points.dtype)
    columns = grid.shape[1]
    cells = jnp.stack([pillars.cells % columns, pillars.cells // columns], -1)
    low, size = (jnp.array(v[:2], points.dtype).reshape(1, 1, 2) for v in (grid.low, grid.size))
    middle = cells.astype(points.dtype) * size + (0.5 * size + low)
    own = gather_rows(jnp.concatenate([mean, middle], -1), pillar)
    offset = points[..., :2] - own[..., 3:]
    features = jnp.concatenate([offset, points[..., 2:], place - own[..., :3], offset], -1)
    return jnp.where(_real(pillars)[..., None], features, 0.0)


def starts(pillars: Pillars) -> Array:
    """Index of the first point of each pillar, int32 [B, P]."""
    return jnp.cumsum(pillars.counts, 1) - pillars.counts


def _real(pillars: Pillars) -> Array:
    return pillars.pillar < pillars.counts.shape[1]


def gather_rows(values: Array, rows: Array) -> Array:
    """`values[b, rows[b]]`, [B, N, C] and [B, M] -> [B, M, C]; rows beyond the end give the last.

    The indices are in bounds after the clip, which spares the check that JAX adds.
    """
    rows = jnp.clip(rows, 0, values.shape[1] - 1)
    return jnp.take_along_axis(values, rows[..., None], 1, mode="promise_in_bounds")


def segment_sum(values: Array, owner: Array, longest: int) -> Array:
    """Sums runs of equal owners; the result stands in the first row of each run.

    By doubling: after k rounds a row holds the sum of the next 2^k rows of its run. The order of
    the additions is fixed, unlike that of a scatter on a GPU.

    Args:
      values: [B, N, C].
      owner: int [B, N], equal ones adjacent.
      longest: upper bound on the length of a run.

    Returns:
      [B, N, C].
    """
    step = 1
    while step < min(longest, values.shape[1]):
        same = (owner[:, step:] == owner[:, :-step])[..., None]
        merged = values[:, :-step] + jnp.where(same, values[:, step:], 0.0)
        values = jnp.concatenate([merged, values[:, -step:]], 1)
        step *= 2
    return values


def segment_max(values: Array, owner: Array, count: int) -> Array:
    """Maximum by owner, [B, N, C] and int [B, N] -> [B, count, C]; a huge negative number for none.

    A scatter, which for a maximum gives the same in any order; owners beyond the end are dropped.
    """
    batch, _, channels = values.shape
    lowest = jnp.full((batch, count, channels), jnp.finfo(values.dtype).min, values.dtype)
    return lowest.at[jnp.arange(batch)[:, None], owner].max(values, mode="drop")


def _product(x: Array, kernel: Array) -> Array:
    """[B, N, K] and [K, C] -> [B, N, C]."""
    return lax.dot_general(x, kernel, (((2,), (0,)), ((), ())))


class PillarEncoder(nn.Module):
    """Points to one vector per pillar (PointNet; Lang et al., 2019, section 2.1).

    A linear layer, batch normalisation, ReLU and the maximum over the slots of a pillar. The
    original's pillars have `max_points` slots, and empty ones take part: in the maximum with the
    value that zeros get, and in the batch statistics as zeros. Here only real points are computed
    and the empty slots are accounted for, so padding and a large maximum of pillars cost nothing.

    Attributes:
      features: output channels.
      grid: the cells.
      max_points: slots of a pillar.
      momentum: of the running statistics.
    """

    features: int
    grid: PillarGrid
    max_points: int
    momentum: float = MOMENTUM

    @nn.compact
    def __call__(self, pillars: Pillars, train: bool) -> Array:
        """[B, N] points in [B, P] pillars -> float32 [B, P, features], zeros in the padding."""
        x = point_features(pillars, self.grid, self.max_points)
        # PyTorch's default of a convolution.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", init, (POINT_FEATURES, self.features))
        gain, shift = self._normalisation(x, kernel, pillars, train)
        # The gain goes into the kernel; shift and ReLU keep the order, so they can follow the
        # maximum, where there are fewer rows.
        x = _product(x, kernel * gain.reshape(1, -1))
        counts = pillars.counts[..., None]
        best = segment_max(x, pillars.pillar, counts.shape[1])
        out = nn.relu(best + shift.reshape(1, 1, -1))
        empty = nn.relu(shift).reshape(1, 1, -1)
        out = jnp.where(counts < self.max_points, jnp.maximum(out, empty), out)
        return jnp.where(counts > 0, out, 0.0)

    def _normalisation(
        self, x: Array, kernel: Array, pillars: Pillars, train: bool
    ) -> tuple[Array, Array]:
        """Gain and shift [C]; in training from the slots of real pillars, which it also records."""
        shape = (self.features,)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        stored = self.variable("batch_stats", "mean", jnp.zeros, shape)
        spread = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, variance = stored.value, spread.value
        if train:
            x = _product(x, kernel)
            real = _real(pillars)[..., None]
            slots = (pillars.counts > 0).sum().astype(x.dtype) * self.max_points
            count = jnp.maximum(slots, 1.0)
            # Points of the padding are zeros, and so are empty slots.
            mean = x.sum((0, 1)) / count
            square = jnp.where(real, (x - mean.reshape(1, 1, -1)) ** 2, 0.0).sum((0, 1))
            variance = (square + (slots - real.sum()) * mean**2) / count
            if not self.is_initializing():
                keep = jnp.where(slots > 0, self.momentum, 1.0)
                stored.value = keep * stored.value + (1 - keep) * mean
                spread.value = keep * spread.value + (1 - keep) * variance
        gain = scale * lax.rsqrt(variance + EPSILON)
        return gain, bias - mean * gain


def scatter(features: Array, cells: Array, grid: PillarGrid) -> Array:
    """Pillars to the canvas: [B, P, C] and [B, P] -> [B, rows (y), columns (x), C], else zeros."""
    batch, _, channels = features.shape
    canvas = jnp.zeros((batch, grid.cells, channels), features.dtype)
    rows = jnp.arange(batch)[:, None]
    # Cells of the padding lie outside and are dropped; others occur once.
    canvas = canvas.at[rows, cells].set(features, mode="drop")
    return canvas.reshape(batch, *grid.shape, channels)


class ConvNormRelu(nn.Module):
    """A convolution without bias, batch normalisation, ReLU.

    With stored statistics the normalisation goes into the kernel.

    Attributes:
      features: output channels.
      kernel: side of the kernel.
      stride: step; of an upsampling layer the factor, which is also its kernel's side.
      up: upsample by a transposed convolution whose taps do not overlap: a matrix product.
      momentum: of the running statistics.
      dtype: compute type; statistics and parameters stay float32.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    up: bool = False
    momentum: float = MOMENTUM
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features], or H * stride if `up`."""
        side = self.stride if self.up else self.kernel
        # He et al. by outputs, as PyTorch counts them: those of a transposed kernel are its inputs.
        mode = "fan_in" if self.up else "fan_out"
        init = nn.initializers.variance_scaling(2.0, mode, "normal")
        kernel = self.param("kernel", init, (side, side, x.shape[-1], self.features))
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=EPSILON,
            dtype=self.dtype,
            name="norm",
        )
        x = x.astype(self.dtype)
        if train or self.is_initializing():
            return nn.relu(norm(self._apply(x, kernel.astype(self.dtype))))
        mean, variance = (norm.get_variable("batch_stats", name) for name in ("mean", "var"))
        gain = norm.get_variable("params", "scale") * lax.rsqrt(variance + EPSILON)
        shift = norm.get_variable("params", "bias") - mean * gain
        folded = (kernel * gain.reshape(1, 1, 1, -1)).astype(self.dtype)
        return nn.relu(self._apply(x, folded) + shift.astype(self.dtype).reshape(1, 1, 1, -1))

    def _apply(self, x: Array, kernel: Array) -> Array:
        if not self.up:
            pad = (self.kernel - 1) // 2
            return convolve(x, kernel, (self.stride,) * 2, ((pad, pad),) * 2)
        return upsample(x, kernel)


def upsample(x: Array, kernel: Array) -> Array:
    """Transposed convolution with stride K: [B, H, W, C], [K, K, C, M] -> [B, K H, K W, M]."""
    batch, height, width, _ = x.shape
    side, _, inputs, outputs = kernel.shape
    if side == 1:
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    flat = kernel.transpose(2, 0, 1, 3).reshape(inputs, side * side * outputs)
    y = lax.dot_general(x, flat, (((3,), (0,)), ((), ())))
    y = y.reshape(batch, height, width, side, side, outputs).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, height * side, width * side, outputs)
