"""What normalised targets no longer hold, and which rows count for it."""

import hjepa_toy as toy
import jax
import numpy as np
import pytest

from jaxcomp.errors import ConfigError
from jaxcomp.models.hjepa import HJEPA, init_variables
from jaxcomp.models.target_norm import TARGET_NORMS, normalised_targets


def tokens(rows=64, positions=9, width=6, seed=0):
    """Correlated channels of unlike sizes, plus a mean of its own for each position."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(width) + 0.3 * rng.normal(size=(width, width))
    mixed = rng.normal(size=(rows, positions, width)) @ mixing * np.linspace(1, 2, width)
    return (mixed + 5 * rng.normal(size=(1, positions, width))).astype(np.float32)


def covariance(x):
    flat = np.asarray(x).reshape(-1, x.shape[-1])
    return flat.T @ flat / len(flat)


def test_token_is_a_layer_normalisation():
    out = np.asarray(normalised_targets(tokens(), "token"))
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(-1), 1, atol=1e-3)


@pytest.mark.parametrize("how", ["centred", "whitened"])
def test_nothing_is_left_of_the_position(how):
    out = np.asarray(normalised_targets(tokens(), how))
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.diag(covariance(out)), 1, atol=0.1)
    shifted = tokens() + np.arange(9, dtype=np.float32)[None, :, None]
    np.testing.assert_allclose(normalised_targets(shifted, how), out, atol=2e-3)


def test_whitening_decorrelates_and_turns_as_little_as_possible():
    out = np.asarray(normalised_targets(tokens(), "whitened"))
    off = covariance(out) - np.diag(np.diag(covariance(out)))
    assert np.abs(off).max() < 0.06 < np.abs(covariance(normalised_targets(tokens(), "centred"))
                                            - np.eye(6)).max()  # fmt: skip
    x = tokens() - tokens().mean(0)
    assert all(np.corrcoef(x[..., i].ravel(), out[..., i].ravel())[0, 1] > 0.3 for i in range(6))


@pytest.mark.parametrize("how", TARGET_NORMS)
def test_padded_rows_do_not_count(how):
    x = tokens(24)
    junk = np.concatenate([x, 100 * tokens(8, seed=1)])
    real = (np.arange(32) < 24).astype(np.float32)
    out = np.asarray(normalised_targets(junk, how, real))
    np.testing.assert_allclose(out[:24], normalised_targets(x, how), atol=1e-3)


@pytest.mark.parametrize("how", TARGET_NORMS)
def test_no_row_and_equal_rows_give_no_nan(how):
    x = np.ones((3, 4, 5), np.float32)
    assert np.isfinite(normalised_targets(x, how)).all()
    assert np.isfinite(normalised_targets(x, how, np.zeros(3))).all()


def test_the_network_predicts_them():
    whole, plain = (toy.config(target_norm=h, use_fpn=True) for h in ("whitened", "none"))
    hidden = toy.mask([0, 1, 2, 3], [4, 5, 8, 9])
    outs = [
        jax.jit(toy.network(cfg)[0].apply)(toy.network(plain)[1], toy.images(), hidden)
        for cfg in (whole, plain)
    ]
    for key in ("predictor_output", "target_features", "context_features"):
        np.testing.assert_allclose(outs[0][key], outs[1][key], atol=1e-6)
    assert not np.allclose(outs[0]["targets"][0], outs[1]["targets"][0], atol=0.05)


def test_compat_has_none_and_unknown_ones_are_refused():
    with pytest.raises(ConfigError, match="target_norm='none'"):
        toy.config(compat=True, target_norm="token")
    with pytest.raises(ConfigError, match="target_norm='white' is none of"):
        toy.config(target_norm="white")


def test_wide_kernels_are_the_small_ones_made_larger():
    wide, small = (
        init_variables(HJEPA(toy.config(init=init)), jax.random.key(0))
        for init in ("glorot", "small")
    )
    ours, theirs = (x["params"]["encoder"]["blocks_0"] for x in (wide, small))
    ratio = np.asarray(ours["mlp"]["up"]["kernel"]) / np.asarray(theirs["mlp"]["up"]["kernel"])
    np.testing.assert_allclose(ratio, np.sqrt(2 / (16 + 64)) / 0.02, rtol=1e-5)
    np.testing.assert_array_equal(ours["norm1"]["scale"], theirs["norm1"]["scale"])
    np.testing.assert_array_equal(
        wide["target"]["blocks_0"]["mlp"]["up"]["kernel"], ours["mlp"]["up"]["kernel"]
    )
