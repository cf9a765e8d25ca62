"""PointPillars at a small size: the cut, the encoder against its dense form, a training step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.errors import ConfigError
from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig
from jaxcomp.models.pointpillars_layers import EPSILON, MOMENTUM, PillarEncoder, point_features
from jaxcomp.ops import voxelise
from jaxcomp.tasks.pointpillars_loss import (
    PointPillarsLossConfig,
    pointpillars_losses,
)

CFG = PointPillarsConfig(
    low=(0.0, -5.12, -3.0), high=(10.24, 5.12, 1.0), cell=(0.32, 0.32, 4.0), max_points=5,
    max_pillars=64, encoder_features=8, block_features=(8, 16), block_convs=(1, 1),
    block_strides=(2, 2), neck_features=(8, 8), candidates=50, max_detections=20,
)  # fmt: skip
MODEL = PointPillars(CFG)
LOSS = PointPillarsLossConfig()


def sweep(seed, count=300):
    rng = np.random.default_rng(seed)
    # Crowded around a few places, so that pillars hold from one point to more than they may.
    centre = rng.uniform((0, -5, -2, 0), (10, 5, 0, 1), (40, 4))[rng.integers(0, 40, count)]
    return (centre + rng.normal(0, 0.15, (count, 4))).astype(np.float32)


def pillars_of(*sweeps, **sizes):
    sizes = {"max_pillars": 64, "pad_points": 512, "pad_pillars": 64, **sizes}
    return voxelise.voxelise_batch(sweeps, CFG.grid, max_points=CFG.max_points, **sizes)[0]


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(MODEL.init, train=True), jax.random.key(0),
                            pillars_of(sweep(0)))  # fmt: skip
    draw = lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype)  # noqa: E731
    positive = lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype)  # noqa: E731
    return {
        "params": jax.tree.map(draw, shapes["params"]),
        "batch_stats": jax.tree.map(positive, shapes["batch_stats"]),
    }


@functools.cache
def method(name):
    return jax.jit(functools.partial(MODEL.apply, method=name))


forward = jax.jit(MODEL.apply)


def equal(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# --- the cut --------------------------------------------------------------------------------------


def test_tail_of_head_is_the_model(variables):
    pillars = pillars_of(sweep(0), sweep(1))
    canvas = method("head")(variables, pillars)
    assert canvas.shape == (2, 32, 32, 8)
    whole = forward(variables, pillars)
    equal(method("tail")(variables, canvas), whole, atol=1e-5, rtol=1e-5)
    equal(method("detect")(variables, canvas), method("decode")(variables, whole), atol=1e-4)


def test_canvas_holds_the_pillars_at_row_y_column_x(variables):
    pillars = pillars_of(sweep(3))
    features, canvas = (method(name)(variables, pillars)[0] for name in ("encode", "head"))
    real = np.flatnonzero(pillars.counts[0])
    cells = pillars.cells[0, real]
    np.testing.assert_array_equal(canvas[cells // 32, cells % 32], features[real])
    empty = np.ones((32, 32), bool)
    empty[cells // 32, cells % 32] = False
    assert not np.asarray(canvas)[empty].any() and not np.asarray(features)[len(real) :].any()


def test_padding_and_neighbours_in_the_batch_change_nothing(variables):
    alone = method("head")(variables, pillars_of(sweep(0)))[0]
    wide = pillars_of(sweep(0), sweep(1, 500), pad_points=1024, pad_pillars=100)
    equal(alone, method("head")(variables, wide)[0], atol=1e-6)


def test_a_sweep_without_points_gives_an_empty_canvas_and_finite_outputs(variables):
    pillars = pillars_of(np.zeros((0, 4)), np.full((9, 4), np.nan))
    assert not np.asarray(method("head")(variables, pillars)).any()
    for leaf in jax.tree.leaves(forward(variables, pillars)):
        assert np.isfinite(leaf).all()


def test_more_points_in_a_full_pillar_change_nothing(variables):
    points = np.tile(np.float32([[1.0, 1.0, 0.0, 0.3]]), (CFG.max_points, 1))
    more = np.concatenate([points, np.float32([[1.01, 1.0, -1.0, 0.9]])])
    equal(*(method("head")(variables, pillars_of(p)) for p in (points, more)), atol=0)


# --- the encoder against the dense form ----------------------------------------------------------


def dense_features(pillars, row):
    """[P, slots, 9] of the real pillars, written from the description."""
    counts = pillars.counts[row][pillars.counts[row] > 0]
    one = voxelise.Pillars(*(c[row] for c in pillars))
    points = voxelise.dense(one, CFG.max_points)[: len(counts)].astype(np.float64)
    cells = one.cells[: len(counts)]
    middle = np.stack([cells % 32, cells // 32], 1) * 0.32 + 0.16 + np.array([0, -5.12])
    mean = points[..., :3].sum(1) / counts[:, None]
    offset = points[..., :2] - middle[:, None]
    nine = np.concatenate([offset, points[..., 2:], points[..., :3] - mean[:, None], offset], -1)
    return nine * (np.arange(CFG.max_points) < counts[:, None])[..., None]


def dense_encoder(x, p, mean, var):
    p = {name: np.asarray(value, np.float64) for name, value in p.items()}
    y = (x @ p["kernel"] - mean) / np.sqrt(var + EPSILON)
    return np.maximum(y * p["scale"] + p["bias"], 0).max(1)


def test_encoder_equals_its_dense_form(variables):
    pillars = pillars_of(sweep(5))
    x = dense_features(pillars, 0)
    p, s = variables["params"]["encoder"], variables["batch_stats"]["encoder"]
    wanted = dense_encoder(x, p, np.asarray(s["mean"]), np.asarray(s["var"]))
    got = method("encode")(variables, pillars)[0, : len(wanted)]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_batch_statistics_are_those_of_all_slots_of_real_pillars(variables):
    pillars = pillars_of(sweep(5), sweep(6, 40), np.zeros((0, 4)))
    x = np.concatenate([dense_features(pillars, row) for row in range(3)])
    p, s = variables["params"]["encoder"], variables["batch_stats"]["encoder"]
    y = x @ np.asarray(p["kernel"], np.float64)
    mean, var = y.mean((0, 1)), y.var((0, 1))
    encoder = PillarEncoder(8, CFG.grid, CFG.max_points)

    @jax.jit
    def run(pillars):
        own = {"params": p, "batch_stats": s}
        return encoder.apply(own, pillars, True, mutable=["batch_stats"])

    got, new = run(pillars)
    wanted = dense_encoder(x, p, mean, var)
    real = np.asarray(pillars.counts) > 0
    np.testing.assert_allclose(np.asarray(got)[real], wanted, atol=1e-4)
    for name, value in (("mean", mean), ("var", var)):
        moved = MOMENTUM * np.asarray(s[name]) + (1 - MOMENTUM) * value
        np.testing.assert_allclose(new["batch_stats"][name], moved, atol=1e-5)
    more = pillars_of(sweep(5), sweep(6, 40), np.zeros((0, 4)), pad_points=600, pad_pillars=90)
    equal(new, run(more)[1], atol=1e-6)
    empty = pillars_of(np.zeros((0, 4)))
    equal(run(empty)[1]["batch_stats"], s, atol=0)


def test_encoder_gradient_equals_that_of_the_dense_form(variables):
    pillars = pillars_of(sweep(7))
    x = jnp.asarray(dense_features(pillars, 0), jnp.float32)
    p = variables["params"]["encoder"]
    weight = np.random.default_rng(0).standard_normal((len(x), 8)).astype(np.float32)
    encoder = PillarEncoder(8, CFG.grid, CFG.max_points)
    stats = variables["batch_stats"]["encoder"]

    def sparse(p):
        out, _ = encoder.apply(
            {"params": p, "batch_stats": stats}, pillars, True, mutable=["batch_stats"]
        )
        return (out[0, : len(x)] * weight).sum()

    def dense(p):
        y = x @ p["kernel"]
        y = (y - y.mean((0, 1), keepdims=True)) / jnp.sqrt(y.var((0, 1), keepdims=True) + EPSILON)
        y = jax.nn.relu(y * p["scale"].reshape(1, 1, -1) + p["bias"].reshape(1, 1, -1))
        return (y.max(1) * weight).sum()

    # Compiled, the dense form may compute a value twice, round it differently and miss its own
    # maximum; operation by operation it cannot.
    equal(jax.jit(jax.grad(sparse))(p), jax.grad(dense)(p), rtol=2e-3, atol=2e-3)


def test_features_of_padding_are_zero():
    features = point_features(pillars_of(sweep(0, 20)), CFG.grid, CFG.max_points)
    assert not np.asarray(features[0, 20:]).any()


# --- sizes ----------------------------------------------------------------------------------------


def test_the_default_has_the_known_number_of_parameters():
    shapes = jax.eval_shape(
        functools.partial(PointPillars(PointPillarsConfig()).init, train=True),
        jax.random.key(0), pillars_of(sweep(0)),
    )  # fmt: skip
    count = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in shapes["params"].items()}
    assert count == {"encoder": 704, "backbone": 4207616, "neck": 598784, "outputs": 27720}
    assert sum(count.values()) == 4834824
    assert sum(x.size for x in jax.tree.leaves(shapes["batch_stats"])) + 20 == 6036


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"block_convs": (1,)}, "give each block one value"),
        ({"positive_iou": (0.5,)}, "positive_iou has 1 values for 3 classes"),
        ({"cell": (0.512, 0.512, 4.0), "block_strides": (2, 4)}, "the backbone divides by 8"),
        ({"cell": (0.32, 0.32, 1.0)}, "4 layers"),
    ],
)
def test_impossible_sizes_are_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        dataclasses.replace(CFG, **change)


# --- training ---------------------------------------------------------------------------------


def random_boxes(rng, count):
    low, high = [0.5, -4.5, -2, 0.4, 0.6, 1, -3.1], [9.5, 4.5, 0, 2, 4.5, 2, 3.1]
    return rng.uniform(low, high, (count, 7)).astype(np.float32)


def one_row(boxes, labels, room=12):
    extra = room - len(boxes)
    return {
        "boxes": np.pad(boxes, ((0, extra), (0, 0)))[None],
        "labels": np.pad(labels, (0, extra)).astype(np.int32)[None],
        "valid": (np.arange(room) < len(boxes))[None],
    }


def test_training_step_moves_statistics_and_gives_finite_gradients(variables):
    batch = one_row(random_boxes(np.random.default_rng(4), 4), np.array([0, 1, 2, -1]))
    batch = {k: np.repeat(v, 2, 0) for k, v in batch.items()}

    @jax.jit
    def run(variables, pillars):
        def loss(params):
            maps, new = MODEL.apply(
                {**variables, "params": params}, pillars, True, mutable=["batch_stats"]
            )
            return pointpillars_losses(maps, batch, CFG, LOSS)["total"], new["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (total, stats), gradient = run(variables, pillars_of(sweep(0), sweep(1)))
    assert np.isfinite(total)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.asarray(leaf).any(), path
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    (total, _), gradient = run(variables, pillars_of(np.zeros((0, 4)), np.zeros((0, 4))))
    assert np.isfinite(total) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_momentum_of_the_statistics_is_that_of_the_config(variables):
    pillars = pillars_of(sweep(0))
    moved = {}
    for momentum in (0.99, 0.5):
        model = PointPillars(dataclasses.replace(CFG, norm_momentum=momentum))
        run = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
        moved[momentum] = run(variables, pillars)[1]["batch_stats"]
    before = variables["batch_stats"]
    step = jax.tree.map(lambda new, old: (new - old) / 0.5, moved[0.5], before)
    wanted = jax.tree.map(lambda old, s: old + 0.01 * s, before, step)
    equal(moved[0.99], wanted, rtol=1e-3, atol=1e-3)
