"""Deformable, grouped and depthwise convolutions against slow definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxcomp.ops.deformable import deform_conv
from jaxcomp.ops.grouped import depthwise_conv, grouped_conv


def draw(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def read(image, y, x):
    """Bilinear value at a place, zero outside, one image [H, W, C]."""
    height, width, channels = image.shape
    total = np.zeros(channels)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    return total


def slow(x, offsets, mask, kernel):
    batch, height, width, _ = x.shape
    out = np.zeros((batch, height, width, kernel.shape[3]))
    for b, i, j, tap in np.ndindex(batch, height, width, 9):
        dy, dx = offsets[b, i, j, 2 * tap : 2 * tap + 2]
        value = read(x[b], i + tap // 3 - 1 + dy, j + tap % 3 - 1 + dx)
        out[b, i, j] += mask[b, i, j, tap] * (value @ kernel[tap // 3, tap % 3])
    return out


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_deformable_convolution_is_its_definition(scale):
    """Small offsets, and ones that reach far outside the map."""
    x, kernel = draw(0, 2, 5, 4, 3), draw(1, 3, 3, 3, 2)
    offsets, mask = draw(2, 2, 5, 4, 18, scale=scale), draw(3, 2, 5, 4, 9)
    ours = jax.jit(deform_conv)(x, offsets, mask, kernel)
    np.testing.assert_allclose(ours, slow(x, offsets, mask, kernel), atol=1e-5)


def test_without_offsets_it_is_a_convolution():
    x, kernel = draw(4, 1, 6, 7, 3), draw(5, 3, 3, 3, 4)
    zeros, ones = np.zeros((1, 6, 7, 18), np.float32), np.ones((1, 6, 7, 9), np.float32)
    plain = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(deform_conv(x, zeros, ones, kernel), plain, atol=1e-5)


def test_offsets_far_away_and_infinite_read_nothing():
    x, kernel = draw(6, 1, 4, 4, 2), draw(7, 3, 3, 2, 2)
    mask = np.ones((1, 4, 4, 9), np.float32)
    for far in (1e9, -1e9, np.inf):
        offsets = np.full((1, 4, 4, 18), far, np.float32)
        np.testing.assert_array_equal(deform_conv(x, offsets, mask, kernel), 0)


def test_gradients_of_offsets_are_slopes():
    x, kernel = draw(8, 1, 4, 4, 2), draw(9, 3, 3, 2, 2)
    offsets = draw(10, 1, 4, 4, 18, scale=0.2) + 0.4  # away from the kinks at whole pixels
    mask = np.ones((1, 4, 4, 9), np.float32)

    def total(o):
        return (deform_conv(x, o, mask, kernel) ** 2).sum()

    direction, step = draw(11, *offsets.shape), 1e-3
    slope = (total(offsets + step * direction) - total(offsets - step * direction)) / (2 * step)
    exact = (jax.grad(total)(jnp.asarray(offsets)) * direction).sum()
    np.testing.assert_allclose(exact, slope, rtol=2e-2)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2]), st.sampled_from([1, 3, 7]),
    st.integers(0, 99),
)  # fmt: skip
def test_depthwise_forms_agree(height, width, stride, side, seed):
    x, kernel = draw(seed, 2, height, width, 4), draw(seed + 1, side, side, 1, 4)
    forms = [depthwise_conv(x, kernel, stride, native=native) for native in (True, False)]
    np.testing.assert_allclose(*forms, atol=1e-4)


@pytest.mark.parametrize(("side", "stride", "groups"), [(3, 1, 4), (1, 1, 2), (3, 2, 2)])
def test_grouped_forms_agree(side, stride, groups):
    x, kernel = draw(0, 1, 7, 6, 8), draw(1, side, side, 8 // groups, 12)
    forms = [grouped_conv(x, kernel, groups, stride, native=native) for native in (True, False)]
    np.testing.assert_allclose(*forms, atol=1e-5)
