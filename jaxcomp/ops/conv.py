"""The 5x5 stride-2 convolution of feature codecs and its transpose, fast on every backend.

Three bilinear maps share the kernel `w` [5, 5, C, M] between a fine map `x` [B, H, W, C] and a
coarse map `y` [B, ceil(H/2), ceil(W/2), M], and each is the derivative of the others:

    downsample(x, w) -> y      y[i, j] = sum_kl  x[2i+k-2, 2j+l-2] w[k, l]     (zeros outside)
    upsample(y, w)   -> x      x[2i+k-2, 2j+l-2] += y[i, j] w[k, l]^T
    correlate(x, y)  -> w      w[k, l] = sum_ij  x[2i+k-2, 2j+l-2] y[i, j]^T

So `conv5s2` is `downsample` with (`upsample`, `correlate`) as its backward pass, and
`conv5s2_transpose` is `upsample` with (`downsample`, `correlate`). That is PyTorch's
`Conv2d(5, stride=2, padding=2)` and `ConvTranspose2d(5, stride=2, padding=2, output_padding=1)`.

Only `upsample` has a form that differs between backends. XLA's CPU backend does not exploit the
zeros of an lhs-dilated convolution (4 times the arithmetic), and worse, differentiates it into one
whose weight gradient is 20 times slower. There each of the four output phases (even or odd row,
even or odd column) is a dense stride-1 convolution with the taps that reach it (Shi et al., 2016,
arXiv:1609.07009). Small maps, whose kernels outweigh them, are multiplied with the kernel as a
plain [25 C, M] matrix instead, which spares turning the kernel over. GPU and TPU libraries know
transposed convolutions, and get the plain form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv5s2(x: Array, kernel: Array, *, polyphase: bool | None = None) -> Array:
    """Convolves with a 5x5 kernel at stride 2, two zeros around the map.

    Args:
      x: [B, H, W, C], any float dtype.
      kernel: [5, 5, C, M] (HWIO) of the same dtype.
      polyphase: the CPU forms (True), XLA's own (False), or by backend (None).

    Returns:
      [B, ceil(H/2), ceil(W/2), M] of the dtype of `x`.
    """
    return _conv_cpu(x, kernel) if _resolve(polyphase) else downsample(x, kernel)


def conv5s2_transpose(x: Array, kernel: Array, *, polyphase: bool | None = None) -> Array:
    """Transposed 5x5 convolution at stride 2, doubling the map exactly.

    Args:
      x: [B, H, W, C], any float dtype.
      kernel: [5, 5, C, M] of the same dtype; tap (k, l) adds to output (2i + k - 2, 2j + l - 2),
        so a PyTorch kernel (C, M, 5, 5) is transposed by (2, 3, 0, 1) and not flipped.
      polyphase: as in `conv5s2`.

    Returns:
      [B, 2H, 2W, M] of the dtype of `x`.
    """
    swapped = kernel.swapaxes(2, 3)
    if _resolve(polyphase):
        return _transpose_cpu(x, swapped)
    return upsample(x, swapped, polyphase=False)


def downsample(x: Array, w: Array) -> Array:
    """[B, H, W, C] and [5, 5, C, M] to [B, ceil(H/2), ceil(W/2), M], in XLA's form."""
    return lax.conv_general_dilated(x, w, (2, 2), ((2, 2), (2, 2)), dimension_numbers=_NHWC)


def upsample(y: Array, w: Array, *, polyphase: bool) -> Array:
    """[B, h, w, M] and [5, 5, C, M] to [B, 2h, 2w, C]; the adjoint of `downsample` in `x`."""
    flipped = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    if not polyphase:
        return lax.conv_general_dilated(
            y, flipped, (1, 1), ((2, 3), (2, 3)), lhs_dilation=(2, 2), dimension_numbers=_NHWC
        )
    batch, height, width, _ = y.shape
    pads = ((1, 1), (0, 1))  # an even output is reached by 3 taps, an odd one by 2
    phases = [
        lax.conv_general_dilated(
            y, flipped[i::2, j::2], (1, 1), (pads[i], pads[j]), dimension_numbers=_NHWC
        )
        for i in (0, 1)
        for j in (0, 1)
    ]
    rows = [jnp.stack(phases[2 * i : 2 * i + 2], 3) for i in (0, 1)]  # [B, h, w, 2, C]
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, w.shape[2])


def correlate(x: Array, y: Array) -> Array:
    """[B, H, W, C] and [B, ceil(H/2), ceil(W/2), M] to [5, 5, C, M]; adjoint in the kernel.

    Written as one convolution with the batch as its channels: on CPU up to twice as fast as what
    differentiating `downsample` gives.
    """
    pads = tuple(
        (2, 2 * small + 1 - large) for large, small in zip(x.shape[1:3], y.shape[1:3], strict=True)
    )
    return lax.conv_general_dilated(
        x, y, (1, 1), pads, rhs_dilation=(2, 2), dimension_numbers=("CHWN", "IHWO", "HWNC")
    )


def _patches(x: Array, height: int, width: int) -> Array:
    """The 5x5 neighbourhoods that make each coarse position, [B * height * width, 25 C]."""
    pads = [(0, 0)] + [
        (2, 2 * n + 1 - m) for n, m in zip((height, width), x.shape[1:3], strict=True)
    ]
    padded = jnp.pad(x, [*pads, (0, 0)])
    taps = [
        padded[:, k : k + 2 * height - 1 : 2, m : m + 2 * width - 1 : 2]
        for k in range(5)
        for m in range(5)
    ]
    return jnp.stack(taps, 3).reshape(x.shape[0] * height * width, -1)


def _downsample_matrix(x: Array, w: Array) -> Array:
    """`downsample` as one matrix product."""
    batch, height, width = x.shape[0], -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    out = _patches(x, height, width) @ w.reshape(-1, w.shape[3])
    return out.reshape(batch, height, width, -1)


def _correlate_matrix(x: Array, y: Array) -> Array:
    """`correlate` as one matrix product."""
    flat = y.reshape(-1, y.shape[3])
    return (_patches(x, *y.shape[1:3]).T @ flat).reshape(5, 5, x.shape[3], -1)


def _upsample_matrix(y: Array, w: Array) -> Array:
    """`upsample` as one matrix product, whose 5x5 taps are then added where they belong."""
    batch, height, width, _ = y.shape
    taps = y.reshape(-1, y.shape[3]) @ w.reshape(-1, w.shape[3]).T
    taps = taps.reshape(batch, height, width, 5, 5, -1)
    rows = _fold(taps, axis=1, taps=3)  # [B, h, 2, w, 5, C]
    rows = rows.reshape(batch, 2 * height, width, 5, -1)
    return _fold(rows, axis=2, taps=3).reshape(batch, 2 * height, 2 * width, -1)


def _fold(t: Array, *, axis: int, taps: int) -> Array:
    """Adds the five taps of one axis: tap k at position i goes to 2i + k - 2.

    Takes the axis of taps away and puts one of even and odd positions behind `axis`.
    """

    def tap(k: int, shift: int) -> Array:
        part = lax.index_in_dim(t, k, taps, keepdims=False)
        pads = [(0, 0)] * part.ndim
        pads[axis] = (max(shift, 0), max(-shift, 0))
        start = max(-shift, 0)
        return lax.slice_in_dim(jnp.pad(part, pads), start, start + t.shape[axis], axis=axis)

    even = tap(0, -1) + tap(2, 0) + tap(4, 1)
    return jnp.stack([even, tap(1, -1) + tap(3, 0)], axis + 1)


# Measured on two cores: above these sizes the convolutions are faster.
_MATRIX_ROWS = 32  # coarse positions of a batch
_MATRIX_TAPS = 3_200_000  # coarse positions times 25 C


def _down_cpu(x: Array, w: Array) -> Array:
    rows = x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
    return _downsample_matrix(x, w) if rows <= _MATRIX_ROWS else downsample(x, w)


def _up_cpu(y: Array, w: Array) -> Array:
    taps = y.size // y.shape[3] * 25 * w.shape[2]
    return _upsample_matrix(y, w) if taps <= _MATRIX_TAPS else upsample(y, w, polyphase=True)


def _correlate_cpu(x: Array, y: Array) -> Array:
    rows = y.size // y.shape[3]
    return _correlate_matrix(x, y) if rows <= _MATRIX_ROWS else correlate(x, y)


@jax.custom_vjp
def _conv_cpu(x: Array, w: Array) -> Array:
    return _down_cpu(x, w)


def _conv_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _down_cpu(x, w), (x, w)


def _conv_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    dx = _up_cpu(dy, w)[:, : x.shape[1], : x.shape[2]]
    return dx, _correlate_cpu(x, dy)


_conv_cpu.defvjp(_conv_forward, _conv_backward)


@jax.custom_vjp
def _transpose_cpu(y: Array, w: Array) -> Array:
    return _up_cpu(y, w)


def _transpose_forward(y: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _up_cpu(y, w), (y, w)


def _transpose_backward(saved: tuple[Array, Array], dx: Array) -> tuple[Array, Array]:
    y, w = saved
    return _down_cpu(dx, w), _correlate_cpu(dx, y)


_transpose_cpu.defvjp(_transpose_forward, _transpose_backward)


def _resolve(polyphase: bool | None) -> bool:
    """The form that is fast where the program is traced; every form is correct everywhere."""
    return jax.default_backend() == "cpu" if polyphase is None else polyphase
