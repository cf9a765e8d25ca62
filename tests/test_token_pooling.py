import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.models.token_pooling import (
    first_tokens,
    interpolation,
    onto_grid,
    pool,
    pool_mask,
    upsample,
    upsampling,
)
from jaxcomp.models.transformer import rotary
from jaxcomp.models.vit import places, sincos


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("low", "high"), [(24, 49), (49, 98), (3, 7), (1, 2), (5, 5)])
def test_stretched_interpolation_is_that_of_torch(low, high):
    torch = pytest.importorskip("torch")
    x = tokens(1, low, 3)
    wanted = torch.nn.functional.interpolate(
        torch.tensor(x).double().transpose(1, 2),  # in single, its positions are rough
        size=high,
        mode="linear",
        align_corners=False,
    )
    ours = interpolation(low, high, high / low) @ x[0]
    np.testing.assert_allclose(ours, wanted[0].numpy().T, atol=1e-6)


def test_grids_are_interpolated_on_both_axes():
    torch = pytest.importorskip("torch")
    x = tokens(1, 3 * 4, 2)
    wanted = torch.nn.functional.interpolate(
        torch.tensor(x).reshape(1, 3, 4, 2).permute(0, 3, 1, 2), size=(6, 8), mode="bilinear"
    )
    weights = upsampling(12, 48, ((3, 4), (6, 8)), False)
    ours = upsample(jnp.asarray(x), None, weights)
    np.testing.assert_allclose(
        ours[0], wanted[0].permute(1, 2, 0).reshape(48, 2).numpy(), atol=1e-5
    )


def test_pooling_drops_the_remainder_and_squares_are_neighbours_in_the_image():
    x = tokens(2, 25, 3)
    np.testing.assert_allclose(pool(jnp.asarray(x), None, None, 4)[:, 5], x[:, 20:24].mean(1),
                               atol=1e-6)  # fmt: skip
    assert pool(jnp.asarray(x), None, None, 4).shape == (2, 6, 3)
    plane = pool(jnp.asarray(x), None, (5, 5), 2)
    corner = x.reshape(2, 5, 5, 3)[:, 2:4, 0:2].mean((1, 2))
    assert plane.shape == (2, 4, 3)
    np.testing.assert_allclose(plane[:, 2], corner, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(None, 2), (None, 4), ((4, 4), 2)]))
def test_what_is_not_valid_does_not_count(seed, how):
    grid, factor = how
    x, rng = tokens(1, 16, 2, seed=seed), np.random.default_rng(seed)
    valid = rng.random((1, 16)) < 0.5
    junk = np.where(valid[..., None], x, 1e3 * tokens(1, 16, 2, seed=seed + 1))
    a, b = (pool(jnp.asarray(y), jnp.asarray(valid), grid, factor) for y in (x, junk))
    np.testing.assert_array_equal(a, b)
    share = pool(jnp.asarray(valid, jnp.float32)[..., None], None, grid, factor)[..., 0]
    np.testing.assert_array_equal(pool_mask(jnp.asarray(valid), grid, factor), share > 0.5)
    weights = upsampling(16, 32, (None, None), False)
    a, b = (upsample(jnp.asarray(y), jnp.asarray(valid), weights) for y in (x, junk))
    np.testing.assert_array_equal(a, b)
    near = weights @ valid[0] > 1e-6
    assert not np.asarray(a)[0][~near].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_lists_hold_the_first_tokens_and_go_back_in_place(seed, room):
    wanted = np.random.default_rng(seed).random((2, 12)) < 0.4
    index, valid = first_tokens(jnp.asarray(wanted), room)
    for row in range(2):
        here = np.flatnonzero(wanted[row])[:room]
        assert np.asarray(index)[row][np.asarray(valid)[row]].tolist() == here.tolist()
        assert not np.asarray(index)[row][~np.asarray(valid)[row]].any()
    x = tokens(2, 12, 3)
    listed = np.take_along_axis(x, np.asarray(index)[..., None], 1)
    back, there = onto_grid(jnp.asarray(listed), jnp.asarray(wanted))
    np.testing.assert_array_equal(back, np.where(np.asarray(there)[..., None], x, 0))
    assert np.asarray(there).sum(1).tolist() == np.asarray(valid).sum(1).tolist()


def test_rotary_products_depend_on_differences_of_places():
    q, k = (jnp.asarray(tokens(1, 6, 2, 8, seed=s)) for s in (1, 2))
    spots = places((2, 3))[None]
    products = [
        np.einsum("bnhd,bmhd->bhnm", rotary(q, moved), rotary(k, moved))
        for moved in (spots, spots + np.array([3.0, -5.0], np.float32).reshape(1, 1, 2))
    ]
    np.testing.assert_allclose(*products, atol=1e-4)
    np.testing.assert_allclose(rotary(q, jnp.zeros((1, 6, 2))), q)
    plain = np.einsum("bnhd,bmhd->bhnm", q, k)
    assert np.abs(products[0] - plain).max() > 0.1


def test_fixed_positions_are_all_different():
    table = sincos((7, 5), 16)
    assert table.shape == (35, 16) and np.abs(table).max() <= 1
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1) + 9 * np.eye(35)
    assert distances.min() > 0.1
