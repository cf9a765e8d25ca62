"""The task in the shared trainer: what moves, when, and that resuming is exact."""

import itertools
import types

import hjepa_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import config as config_lib
from jaxcomp import optim, trees
from jaxcomp.data.pictures import picture_splits
from jaxcomp.jobs import jepa as job
from jaxcomp.loaders.hjepa import load_hjepa
from jaxcomp.models.hjepa import HJEPA
from jaxcomp.sharding import make_mesh
from jaxcomp.step import create_state, make_train_step
from jaxcomp.tasks.jepa import EMASchedule, JEPATask, hjepa_config
from jaxcomp.tasks.jepa_loss import JEPALossConfig
from jaxcomp.train import fit

SMALL = (
    "data.height=16", "data.width=16", "data.train_size=24", "data.val_size=10",
    "data.num_threads=0", "training.batch_size=8", "training.epochs=2",
    "training.lr_schedule.warmup_epochs=1", "model.width=16", "model.depth=1", "model.heads=2",
    "model.predictor_depth=1", "model.predictor_heads=2", "log.progress=False",
    "evaluation.probe_rows=24", "evaluation.attentive_rows=24",
)  # fmt: skip


def config(*changes, args="fpn=add,feature_dim=8"):
    return config_lib.load_config(f"configs/hjepa.py:{args}", [*SMALL, *changes])


@pytest.fixture(scope="module")
def batches():
    splits = picture_splits(config(), 8)
    source = splits.train()
    return [next(source) for _ in range(4)]


def make_task(cfg, **options):
    ema = options.pop("ema", EMASchedule(0.5, 1.0, total_steps=4))
    loss = options.pop("loss", JEPALossConfig())
    variables = toy.network(cfg)[1]
    options = {"max_masked": 9, "max_context": 8, "initial": lambda: variables} | options
    return JEPATask(HJEPA(cfg), loss, ema, **options)


def mesh():
    return make_mesh(jax.devices()[:1])


def test_the_target_moves_after_the_step_once_by_the_schedule(batches):
    """With two micro-batches the target moves with the optimiser, not with each of them."""
    task = make_task(toy.config(use_fpn=True))
    training = config("training.accumulation=2").training
    tx = optim.make_optimiser(training, 10)
    state, frozen = create_state(
        task, tx, jax.random.key(0), batches[0], accumulation=2, mesh=mesh()
    )
    # The warm-up starts at a rate of 0; the second step moves the weights.
    step = make_train_step(task, tx, accumulation=2, mesh=mesh())
    history = [jax.device_get((state.params["encoder"], state.stats["target"]))]
    for batch in batches:
        state, metrics = step(state, frozen, jax.tree.map(jnp.asarray, batch), jnp.uint32(0))
        history.append(jax.device_get((state.params["encoder"], state.stats["target"])))
        assert np.isfinite(float(metrics["loss"]))
    targets = [jax.tree.leaves(target) for _, target in history]
    same = [
        all(np.array_equal(a, b) for a, b in zip(x, y, strict=True))
        for x, y in itertools.pairwise(targets)
    ]
    assert same == [True, False, True, False]
    momentum = float(task.ema(jnp.int32(2)))
    assert momentum == pytest.approx(0.75)
    for before, after, encoder in zip(
        *(jax.tree.leaves(x) for x in (history[2][1], history[4][1], history[4][0])), strict=True
    ):
        np.testing.assert_allclose(after, momentum * before + (1 - momentum) * encoder, atol=1e-6)


def test_padded_rows_and_lists_change_no_validation_sum(batches):
    task = make_task(toy.config())
    params, stats, _ = task.init(jax.random.key(0), batches[0])
    run = toy.compiled(task.eval_loss)
    batch = {**batches[0], "mask": np.ones(8, np.float32)}
    whole = run(params, stats, {}, batch)
    half = {**batch, "mask": (np.arange(8) < 4).astype(np.float32)}
    junk = {**half, "image": np.where(np.arange(8)[:, None, None, None] < 4, batch["image"], 0)}
    a, b = run(params, stats, {}, half), run(params, stats, {}, junk)
    assert float(a["count"]) == 4 and float(whole["count"]) == 8
    for name, value in a.items():
        assert np.isfinite(value) and float(value) == pytest.approx(float(b[name]), rel=1e-4), name


def test_masks_and_crops_are_a_function_of_the_step(batches):
    splits = picture_splits(config(), 8)
    source = splits.train()
    state = [next(source), source.get_state()][1]
    again = splits.train()
    again.set_state(state)
    for other in (next(source), next(again)):
        for name, value in batches[1].items():
            np.testing.assert_array_equal(value, other[name])
    first, second = (next(iter(splits.validation())) for _ in range(2))
    np.testing.assert_array_equal(first["hidden"], second["hidden"])
    assert batches[0]["hidden"].sum(1).max() <= 9 and (first["label"] >= 0).all()


def test_only_kernels_decay_and_the_decay_follows_its_schedule():
    training = config("training.weight_decay=0.4", "training.weight_decay_end=0.2").training
    value = optim.weight_decay(training, 10)
    assert [float(value(s)) for s in (0, 10, 20, 30)] == pytest.approx([0.4, 0.3, 0.2, 0.2])
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "patch_kernel": jnp.ones(2)}
    assert optim.kernels(params) == {"a": {"kernel": True, "bias": False}, "patch_kernel": True}
    with training.unlocked():
        training.learning_rate, training.lr_schedule.name = 1.0, "constant"
    tx = optim.make_optimiser(training, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = tx.init(params)
    updates, state = tx.update(zeros, state, params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.4, rtol=1e-6)
    assert not np.asarray(updates["a"]["bias"]).any()
    assert optim.get_learning_rate(state) == 1.0


def test_a_run_ends_with_weights_probes_and_masks(tmp_path):
    cfg = config()
    built = job.build(cfg)
    result = fit(built.task, cfg, built.splits, tmp_path, callbacks=built.callbacks)
    metrics = built.evaluate(result, tmp_path, lambda n: None)
    probes = metrics["probes"]
    assert set(probes["trained"]) == set(probes["initial"]) >= {"level0_mean", "level2_max"}
    for one in (*probes["trained"].values(), probes["pixels"]):
        assert 0 <= one["knn"] <= 1 and 0 <= one["linear"] <= 1 and one["rankme"] >= 1
    assert 0 <= metrics["level1_mean_attentive"] <= 1
    assert 0 <= metrics["initial_level2_mean_attentive"] <= 1
    for name in ("masks.png", "attention.png", "neighbours.png"):
        assert (tmp_path / name).stat().st_size > 100, name
    model = load_hjepa(tmp_path)
    assert model.cfg == hjepa_config(cfg)
    assert len(result.history) == 2
    ours = trees.leaves_by_path(model.variables["params"])
    for name, leaf in trees.leaves_by_path(result.state.params).items():
        np.testing.assert_allclose(ours[name], leaf, atol=2e-3, rtol=2e-3)
    image = np.zeros((1, 16, 16, 3), np.uint8)
    assert model.extract_features(image, 2).shape == (1, 1, 16)  # 4 x 4 patches, pooled by 4


def test_a_collapse_is_told(caplog):
    alerts = config().alerts
    val = {"target_std": 0.01, "target_rankme": 8.0}
    words = job.collapse_words(alerts, val)
    assert len(words) == 1 and "target_std=0.01 is below config.alerts.target_std" in words[0]
    assert job.collapse_words(alerts, val | {"target_std": 0.5}) == ()
    job.warn_of_collapse(alerts, types.SimpleNamespace(val=val))
    assert words[0] in caplog.text
