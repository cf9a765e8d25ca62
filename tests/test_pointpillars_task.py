"""Training PointPillars: schedule, voxelised batches and their warnings, losses stay finite."""

import logging

import jax
import jax.numpy as jnp
import lidar_toy as toy
import numpy as np
import optax
import pytest

from jaxcomp import optim
from jaxcomp.config import base_config
from jaxcomp.errors import ConfigError
from jaxcomp.models.pointpillars import PointPillars
from jaxcomp.tasks.lidar_input import Voxeliser
from jaxcomp.tasks.pointpillars import PointPillarsTask, pointpillars_config
from jaxcomp.tasks.pointpillars_loss import PointPillarsLossConfig
from jaxcomp.types import Task

CAR = [[4.0, 0.4, -1.7, 1.6, 3.9, 1.5, 0.1]]


@pytest.fixture(scope="module")
def task():
    return PointPillarsTask(PointPillars(toy.CFG), PointPillarsLossConfig())


@pytest.fixture(scope="module")
def state(task):
    return task.init(jax.random.key(0), {})


@pytest.fixture(scope="module")
def step(task):
    """Loss, metrics and gradients of a batch."""

    def loss(params, stats, batch):
        value, aux = task.loss(params, stats, {}, batch, jax.random.key(0), 0)
        return value, aux

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def batch_of(sweeps, **objects):
    prepare = Voxeliser(toy.CFG, train=True, pad_points=1024, pad_pillars=64)
    return prepare(sweeps) | toy.objects(rows=len(sweeps), **objects)


def one_cycle_config(**training):
    config = base_config()
    config.training.lr_schedule.name = "one_cycle"
    config.training.update(optimiser="adamw", learning_rate=2.5e-3, weight_decay=0.01)
    config.training.update(epochs=4, clip_norm=0.0, **training)
    return config


# --- schedule -------------------------------------------------------------------------------------


def test_one_cycle_follows_torch():
    torch = pytest.importorskip("torch")
    start, total = np.array([1.0, -2.0], np.float32), 20
    weight = torch.nn.Parameter(torch.tensor(start.copy()))
    rule = torch.optim.AdamW([weight], 2.5e-4, betas=(0.95, 0.99), weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        rule, 2.5e-3, total_steps=total, pct_start=0.4, div_factor=10,
        base_momentum=0.85025, max_momentum=0.95,
    )  # fmt: skip
    tx = optim.make_optimiser(one_cycle_config().training, 5)
    params, opt = jnp.asarray(start), tx.init(jnp.asarray(start))
    for i in range(total):
        grad = np.cos([i, 2.0 * i]).astype(np.float32)
        wanted = rule.param_groups[0]["lr"], rule.param_groups[0]["betas"][0]
        weight.grad = torch.tensor(grad)
        rule.step()
        if i + 1 < total:
            cycle.step()
        updates, opt = tx.update(jnp.asarray(grad), opt, params)
        params = optax.apply_updates(params, updates)
        found = float(opt.hyperparams["learning_rate"]), float(opt.hyperparams["b1"])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(params, weight.detach().numpy(), rtol=1e-6)


def test_one_cycle_takes_its_shape_from_the_config_and_needs_adam():
    config = base_config(training={"one_cycle": {"peak_at": 0.5, "start_div": 5.0}})
    config.training.lr_schedule.name = "one_cycle"
    config.training.update(learning_rate=1.0, epochs=10)
    rate = optim.learning_rate(config.training, 2)
    assert float(rate(0)) == pytest.approx(0.2) and float(rate(9)) == pytest.approx(1.0)
    config = one_cycle_config()
    config.training.optimiser = "sgd"
    with pytest.raises(ConfigError, match="no one-cycle schedule"):
        optim.make_optimiser(config.training, 5)


# --- sweeps to batches ----------------------------------------------------------------------------


def test_overflow_is_counted_and_told_at_every_doubling(caplog):
    prepare = Voxeliser(toy.CFG, train=True)  # 64 pillars for 256 cells
    with caplog.at_level(logging.WARNING):
        batches = [prepare([toy.sweep(900, seed)]) for seed in range(5)]
    lost = [int(b["overflow"][0]) for b in batches]
    assert min(lost) > 0
    counts = prepare.counts()
    assert counts["sweeps"] == counts["overflowing_sweeps"] == 5
    assert counts["dropped_pillars"] == sum(lost)
    told = [r.getMessage() for r in caplog.records]
    assert [w.split(" in ")[1].split(" ")[0] for w in told] == ["1", "2", "4"]
    assert f"no room for {lost[0]} pillars" in told[0] and "max_pillars" in told[0]


def test_points_that_are_not_finite_and_empty_sweeps_are_told(caplog):
    bad = toy.sweep(50)
    bad[:3, 1] = np.nan, np.inf, -np.inf
    far = toy.sweep(50) + np.float32(500)
    prepare = Voxeliser(toy.CFG)
    with caplog.at_level(logging.WARNING):
        batch = prepare([bad, far, np.zeros((0, 4), np.float32)])
    assert np.isfinite(batch["points"]).all() and batch["bad"].tolist() == [3, 0, 0]
    counts = prepare.counts()
    assert (counts["bad_points"], counts["bad_sweeps"], counts["empty_sweeps"]) == (3, 1, 2)
    words = " ".join(r.getMessage() for r in caplog.records)
    assert "3 points are not finite" in words and "no point in range in 2 of 3" in words


def test_sweeps_that_fit_are_silent(caplog):
    prepare = Voxeliser(toy.CFG)
    prepare([toy.sweep(60)])
    assert not caplog.records and prepare.counts()["dropped_pillars"] == 0


# --- losses ---------------------------------------------------------------------------------------


def test_the_task_is_one(task, state):
    assert isinstance(task, Task)
    params, stats, frozen = state
    assert set(stats) == {"batch_stats"} and frozen == {}
    assert task.update_mask(params, 0) is None and task.after_update(params, stats, 1) is stats


NAN_POINT = toy.sweep(80)
NAN_POINT[5] = np.nan


@pytest.mark.parametrize(
    ("sweeps", "boxes", "labels", "boxes_count"),
    [
        pytest.param([toy.sweep(), toy.sweep(seed=1)], CAR, [2], True, id="objects"),
        pytest.param([toy.sweep()] * 2, [], [], False, id="no-ground-truth"),
        pytest.param([np.zeros((0, 4))] * 2, [], [], False, id="empty-sweeps"),
        pytest.param([np.zeros((0, 4))] * 2, CAR, [2], True, id="empty-with-objects"),
        pytest.param([NAN_POINT] * 2, CAR, [2], True, id="nan-points"),
        pytest.param([toy.sweep() + np.float32(1e6)] * 2, CAR, [2], True, id="out-of-range"),
        pytest.param([toy.sweep(200_000)] * 2, CAR, [2], True, id="200k-points"),
        pytest.param(
            [toy.sweep()] * 2, [[4, 0, -1, 0.05, 0.05, 0.05, 0]], [0], False, id="no-match"
        ),
        pytest.param([toy.sweep()] * 2, CAR, [-1], False, id="no-class"),
    ],
)
def test_loss_and_gradients_stay_finite(step, state, sweeps, boxes, labels, boxes_count):
    batch = batch_of([np.asarray(s, np.float32) for s in sweeps], boxes=boxes, labels=labels)
    (loss, aux), grads = step(state[0], state[1], batch)
    assert np.isfinite(loss) and loss > 0
    for leaf in jax.tree.leaves((grads, aux.stats)):
        assert np.isfinite(leaf).all()
    assert (float(aux.metrics["box"]) > 0) == boxes_count
    assert float(aux.metrics["overflow"]) == batch["overflow"].mean()


def test_training_lowers_the_loss_and_moves_the_statistics(task, state, step):
    params, stats, _ = jax.tree.map(jnp.array, state)
    batch = batch_of([toy.sweep(), toy.sweep(seed=1)], boxes=CAR, labels=[2])
    losses = []
    for _ in range(30):
        (loss, aux), grads = step(params, stats, batch)
        params = jax.tree.map(lambda p, g: p - 0.03 * np.sign(g), params, grads)
        stats = aux.stats
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    before, after = (jax.tree.leaves(s["batch_stats"]) for s in (state[1], stats))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))


def test_rows_of_the_padding_do_not_count(task, state):
    params, stats, frozen = state
    alone = batch_of([toy.sweep()], boxes=CAR, labels=[2])
    padded = {k: np.concatenate([v, v]) for k, v in alone.items()}
    padded["points"] = padded["points"].copy()
    padded["points"][1] *= 0.5
    padded["mask"] = np.array([1.0, 0.0], np.float32)
    one, two = (jax.jit(task.eval_loss)(params, stats, frozen, b) for b in (alone, padded))
    assert float(two["count"]) == 1.0
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-6)


def test_sizes_come_from_lists_as_well():
    section = {"anchor_sizes": [[0.6, 0.8, 1.7]] * 3, "low": [0.0, -39.68, -3.0], "name": "x"}
    cfg = pointpillars_config(section, ["a", "b", "c"])
    assert cfg.classes == ("a", "b", "c") and hash(cfg) and cfg.anchor_sizes[0] == (0.6, 0.8, 1.7)
