"""The rate-distortion task: loss convention, statistics, masks, and the frozen head."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.errors import NonFiniteError, ShapeError
from jaxcomp.tasks.feature_codec import FeatureCodecTask, level_statistics

CODEC = FactorisedCodec(in_channels=6, n_hidden=8, n_channels=5, stages=2)


def features(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return (3 + 2 * rng.standard_normal((count, 7, 10, 6))).astype("f4")


def batch(count=3, seed=0):
    return {"features": features(count, seed), "mask": np.ones(count, "f4")}


def make(rate_weight=0.02, **options):
    task = FeatureCodecTask(CODEC, rate_weight, level_statistics(iter([features()])), **options)
    params, stats, frozen = task.init(jax.random.key(0), batch())
    return task, params, stats, frozen


def test_statistics_are_a_channel_mean_and_one_scale():
    x = features(20)
    got = level_statistics(iter([x[:5], x[5:]]))
    np.testing.assert_allclose(got["mean"], x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(got["scale"], (x - x.mean((0, 1, 2))).std(), rtol=1e-3)


def test_statistics_of_many_frames_take_little_memory():
    x = np.random.default_rng(0).standard_normal((256, 16, 16, 4)).astype("f4")
    parts = level_statistics(x[i : i + 16] for i in range(0, 256, 16))
    tracemalloc.start()
    try:
        whole = level_statistics(iter([x]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(np.array_equal(whole[key], parts[key]) for key in parts)
    assert peak < x.nbytes // 2, peak


def test_robust_statistics_do_not_move_with_a_few_extreme_frames():
    x = features(20)
    plain, wild = level_statistics([x]), x.copy()
    wild[:3, :, 4] *= 500
    robust = [level_statistics(iter([f[:5], f[5:]]), True) for f in (x, wild)]
    for name in ("mean", "scale"):
        np.testing.assert_allclose(robust[0][name], plain[name], rtol=0.1)
        np.testing.assert_allclose(robust[1][name], robust[0][name], rtol=0.1)
    assert level_statistics([wild])["scale"] > 10 * plain["scale"]


def test_no_loss_is_of_what_the_limit_cuts():
    x = features()
    wild = np.where(x > 6, 300, x).astype("f4")
    statistics = level_statistics([x], True)
    most = statistics["mean"] + 1.0 * statistics["scale"]
    least = statistics["mean"] - 1.0 * statistics["scale"]
    tasks = [FeatureCodecTask(CODEC.clone(limit=n), 0.1, statistics) for n in (1.0, 0.0)]
    params, stats, frozen = tasks[0].init(jax.random.key(0), batch())
    given = [wild, np.clip(x, least, most)]
    found = [
        jax.jit(task.eval_loss)(params, stats, frozen, {"features": f, "mask": np.ones(3, "f4")})
        for task, f in zip(tasks, given, strict=True)
    ]
    for name in ("loss", "mse", "bpp"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4)


def test_constant_features_keep_scale_one_and_nan_is_refused():
    assert level_statistics(iter([np.full((1, 2, 2, 3), 7.0)]))["scale"] == 1.0
    with pytest.raises(NonFiniteError, match="NaN"):
        level_statistics(iter([np.full((1, 2, 2, 3), np.nan)]))


def test_loss_is_relative_mse_plus_weighted_bits_per_position():
    task, params, stats, _ = make(rate_weight=0.5)
    variables = {"params": params, **stats}
    x = jnp.asarray(features())
    out = CODEC.apply(variables, x)
    scale = float(stats["stats"]["scale"])
    expected = ((x - out["x_hat"]) ** 2).mean((1, 2, 3)) / scale**2
    expected += 0.5 * out["bits"].sum((1, 2, 3)) / 70
    terms = task.terms(variables, x, None, train=False)
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-5)


def test_the_weight_means_the_same_for_scaled_features():
    small, large = features(), 100 * features() - 5
    losses = []
    for x in (small, large):
        task = FeatureCodecTask(CODEC, 0.1, level_statistics(iter([x])))
        data = {"features": x, "mask": np.ones(3, "f4")}
        params, stats, _ = task.init(jax.random.key(0), data)
        value, _ = task.loss(params, stats, {}, data, jax.random.key(1), 0)
        losses.append(float(value))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_validation_sums_leave_padding_out():
    task, params, stats, _ = make()
    whole = task.eval_loss(params, stats, {}, batch())
    padded = batch(4)
    padded["features"][:3] = features()
    padded["mask"] = np.array([1, 1, 1, 0], "f4")
    np.testing.assert_allclose(task.eval_loss(params, stats, {}, padded)["loss"], whole["loss"])
    assert whole["count"] == 3


def test_head_is_used_without_features_and_gets_no_gradient():
    def head(frozen, batch):
        return batch["image"].astype(jnp.float32) * frozen["gain"]

    frozen = {"gain": jnp.ones((1, 1, 1, 6))}
    images = {"image": features(), "mask": np.ones(3, "f4")}
    task = FeatureCodecTask(
        CODEC, 0.02, level_statistics(iter([features()])), head=head, frozen=frozen
    )
    params, stats, kept = task.init(jax.random.key(0), images)
    direct, _ = task.loss(params, stats, kept, batch(), jax.random.key(1), 0)
    through, _ = task.loss(params, stats, kept, images, jax.random.key(1), 0)
    np.testing.assert_allclose(direct, through, rtol=1e-6)
    grads = jax.grad(lambda f: task.loss(params, stats, f, images, jax.random.key(1), 0)[0])(kept)
    assert not grads["gain"].any()


def test_other_channels_are_named():
    task = FeatureCodecTask(CODEC, 0.02, {"mean": np.zeros(6), "scale": 1.0})
    wrong = {"features": np.zeros((1, 4, 4, 9), "f4"), "mask": np.ones(1, "f4")}
    with pytest.raises(ShapeError, match="9 channels"):
        task.init(jax.random.key(0), wrong)
