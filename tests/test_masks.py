import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcomp.data.masks import (
    KINDS,
    MaskConfig,
    MaskSampler,
    block_shape,
    hierarchical,
    thinned,
)
from jaxcomp.errors import ConfigError, ShapeError
from jaxcomp.evaluate.mask_pictures import mask_picture, paint_masks

GRIDS = st.tuples(st.integers(1, 16), st.integers(1, 16)).filter(lambda g: g[0] * g[1] > 1)
SHARES = st.floats(0.02, 1.0)


@settings(max_examples=150, deadline=None)
@given(GRIDS, st.sampled_from(KINDS), SHARES, SHARES, st.integers(0, 2**31))
def test_masks_are_disjoint_bounded_and_never_empty(grid, kind, masked, context, seed):
    sampler = MaskSampler(grid, MaskConfig(kind=kind, max_masked=masked, max_context=context))
    out = sampler(np.random.default_rng(seed), 3)
    for name, most in (("hidden", sampler.max_masked), ("context", sampler.max_context)):
        assert out[name].shape == (3, grid[0] * grid[1]) and out[name].dtype == bool
        counts = out[name].sum(1)
        assert (counts >= 1).all() and (counts <= most).all()
    assert not (out["hidden"] & out["context"]).any()


@settings(max_examples=100, deadline=None)
@given(GRIDS, st.integers(0, 2**31))
def test_blocks_fit_and_are_near_the_asked_size(grid, seed):
    rows, columns = block_shape(np.random.default_rng(seed), grid, (0.15, 0.2), (0.75, 1.5))
    assert 1 <= rows <= grid[0] and 1 <= columns <= grid[1]
    if min(grid) >= 12 and max(grid) < 2 * min(grid):
        assert 0.1 < rows * columns / (grid[0] * grid[1]) < 0.27


@given(st.integers(0, 2**31), st.integers(1, 30))
def test_thinning_keeps_a_subset_of_the_right_size(seed, most):
    rng = np.random.default_rng(seed)
    mask = rng.random((5, 6)) < 0.6
    out = thinned(rng, mask, most)
    assert not (out & ~mask).any() and out.sum() == min(most, mask.sum())


def test_hierarchical_blocks_mostly_avoid_each_other():
    cfg = MaskConfig(kind="hierarchical")
    shares = [hierarchical(np.random.default_rng(i), (14, 14), cfg).mean() for i in range(200)]
    # Four blocks of 15 to 20 % that do not overlap would cover 60 to 80 %; the fallbacks overlap.
    assert 0.5 < np.mean(shares) < 0.8


def test_masks_are_a_function_of_the_generator_or_the_row():
    sampler = MaskSampler((8, 8), MaskConfig())
    a, b = (sampler(np.random.default_rng(3), 4) for _ in range(2))
    np.testing.assert_array_equal(a["hidden"], b["hidden"])
    rows = np.array([5, 2, 9])
    whole, part = sampler.of_rows(1, rows), sampler.of_rows(1, rows[1:])
    np.testing.assert_array_equal(whole["hidden"][1:], part["hidden"])
    assert (whole["hidden"] != sampler.of_rows(2, rows)["hidden"]).any()
    assert len({m.tobytes() for m in sampler.of_rows(1, np.arange(20))["hidden"]}) == 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "blocks"}, "multiblock, hierarchical, random"),
        ({"targets": 0}, "targets"),
        ({"target_scale": (0.3, 0.2)}, "two rising numbers"),
        ({"target_scale": (0.3, 1.2)}, "at most 1"),
        ({"context_scale": (0.0, 1.0)}, "above 0"),
        ({"max_masked": 0.0}, "max_masked"),
        ({"max_context": 1.5}, "max_context"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        MaskConfig(**change)


def test_a_grid_of_one_patch_is_refused():
    with pytest.raises(ConfigError, match="leaves none to see"):
        MaskSampler((1, 1), MaskConfig())


def test_pictures_show_what_is_seen_and_what_is_predicted():
    image = np.full((8, 8, 3), 200, np.uint8)
    hidden, context = np.array([1, 0, 0, 0], bool), np.array([0, 1, 0, 0], bool)
    out = paint_masks(image, hidden, context, (2, 2))
    assert (out[:4, 4:] == 200).all()  # seen: as it is
    red = out[0, 0].astype(int)
    assert red[0] > red[1] + 40 and (out[4:] < 80).all()
    png = mask_picture(np.stack([image] * 3), *(np.stack([m] * 3) for m in (hidden, context)),
                       (2, 2), side=32)  # fmt: skip
    assert Image.open(io.BytesIO(png)).size == (3 * 32 + 2 * 4, 2 * 32 + 4)
    with pytest.raises(ShapeError, match="hidden has shape"):
        paint_masks(image, hidden[:3], context, (2, 2))
    with pytest.raises(ShapeError, match="give uint8"):
        paint_masks(image / 2, hidden, context, (2, 2))
    with pytest.raises(ShapeError, match="no image"):
        mask_picture(image[None][:0], hidden[None][:0], context[None][:0], (2, 2))
