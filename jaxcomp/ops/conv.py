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
arXiv:1609.07009). GPU and TPU libraries know transposed convolutions, and get the plain form.
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
      polyphase: the CPU form of the backward pass (True), XLA's own (False), or by backend (None).

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
    """[B, H, W, C] and [5, 5, C, M] to [B, ceil(H/2), ceil(W/2), M]."""
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


@jax.custom_vjp
def _conv_cpu(x: Array, w: Array) -> Array:
    return downsample(x, w)


def _conv_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return downsample(x, w), (x, w)


def _conv_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    dx = upsample(dy, w, polyphase=True)[:, : x.shape[1], : x.shape[2]]
    return dx, correlate(x, dy)


_conv_cpu.defvjp(_conv_forward, _conv_backward)


@jax.custom_vjp
def _transpose_cpu(y: Array, w: Array) -> Array:
    return upsample(y, w, polyphase=True)


def _transpose_forward(y: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return upsample(y, w, polyphase=True), (y, w)


def _transpose_backward(saved: tuple[Array, Array], dx: Array) -> tuple[Array, Array]:
    y, w = saved
    return downsample(dx, w), correlate(dx, y)


_transpose_cpu.defvjp(_transpose_forward, _transpose_backward)


def _resolve(polyphase: bool | None) -> bool:
    """The form that is fast where the program is traced; every form is correct everywhere."""
    return jax.default_backend() == "cpu" if polyphase is None else polyphase
