"""Progressive training: stages as a function of the step, frozen rows to the bit, one program."""

import functools
import itertools

import jax
import lidar_toy as toy
import numpy as np
import pytest

from jaxcomp import optim, train
from jaxcomp.codecs.residual_vq import usage_report
from jaxcomp.config import base_config, load_config
from jaxcomp.errors import ConfigError
from jaxcomp.models.pointpillars import PointPillars
from jaxcomp.tasks.lidar_input import Voxeliser
from jaxcomp.tasks.pointpillars import init_variables
from jaxcomp.tasks.pointpillars_loss import PointPillarsLossConfig
from jaxcomp.tasks.residual_vq import ResidualVqTask, RqConfig, rows_of
from jaxcomp.tasks.stages import StageSchedule
from jaxcomp.types import Task

SCHEDULE = StageSchedule(2, (2, 5), stage_epochs=3, warmup_epochs=1, steps_per_epoch=2)
CAR = [[4.0, 0.4, -1.7, 1.6, 3.9, 1.5, 0.1]]


@functools.cache
def detector():
    model = PointPillars(toy.CFG)
    return model, init_variables(model, jax.random.key(0))


def make_task(schedule=SCHEDULE, **options):
    model, variables = detector()
    return ResidualVqTask(
        model, variables, schedule, RqConfig(**options), PointPillarsLossConfig()
    )  # fmt: skip


def batch(seed=0, count=200):
    prepare = Voxeliser(toy.CFG, train=True, pad_points=1024, pad_pillars=64)
    sweeps = [toy.sweep(count, seed + 10 * i) for i in range(4)]
    return prepare(sweeps) | toy.objects(CAR, [2], rows=4)


def optimiser():
    training = base_config().training
    training.update(optimiser="adamw", weight_decay=0.01, learning_rate=1e-2)
    training.lr_schedule.name = "constant"
    return optim.make_optimiser(training, 2)


def run(task, steps, batches=batch):
    """States after every step, and the step function."""
    tx = optimiser()
    state, frozen = train.create_state(task, tx, jax.random.key(0), batches(0))
    step = train.make_train_step(task, tx, steps_per_epoch=2)
    states, metrics = [jax.device_get(state)], []
    for i in range(steps):
        state, values = step(state, frozen, batches(i), np.uint32(0))
        states.append(jax.device_get(state))
        metrics.append({k: float(v) for k, v in values.items()})
    return states, metrics, step


@pytest.fixture(scope="module")
def trained():
    return run(make_task(), SCHEDULE.epochs * 2)


def test_it_is_a_task():
    assert isinstance(make_task(), Task)


def test_stages_follow_the_document():
    schedule = StageSchedule(5, (16, 32, 64, 128, 256), 20, 2, 100)
    assert (schedule.stages, schedule.epochs) == (25, 500)
    stage = jax.tree.map(np.asarray, schedule.at(7 * 2000 + 150))
    assert (stage.codebook, stage.low, stage.high, stage.step) == (1, 32, 64, 150)
    assert stage.warmup and not stage.start
    assert not schedule.at(7 * 2000 + 200).warmup and schedule.at(7 * 2000).start
    np.testing.assert_array_equal(schedule.active(stage), [64, 64, 0, 0, 0])
    assert schedule.name(7) == "codebook_1_stage_2"
    free = np.asarray(schedule.trainable(stage))
    assert free.sum() == 32 and free[1, 32:64].all()
    full = StageSchedule(5, (16, 256), 20, 2, 100, previous="full")
    np.testing.assert_array_equal(full.active(full.at(4 * 2000)), [256, 256, 16, 0, 0])
    joint = StageSchedule(3, (64,), 100, 2, 10, joint=True)
    assert joint.stages == 1 and np.asarray(joint.trainable(joint.at(999))).all()
    ends = [schedule.end(step) for step in (0, 1999, 2000, 7 * 2000 + 150, 10**6)]
    assert ends == [2000, 2000, 4000, 16000, 50000]
    # The cosine restarts with each stage and falls by epoch.
    scales = [float(schedule.at(2000 + 100 * e).scale) for e in range(2, 20)]
    assert scales[0] == 1 and all(a > b for a, b in itertools.pairwise(scales))


def test_finished_rows_and_codebooks_keep_every_bit(trained):
    """The promise: the largest change of what was trained before is exactly 0, at every step."""
    states, _, _ = trained
    moved = 0
    for i, (old, new) in enumerate(itertools.pairwise(states)):
        before, after = (rows_of(s.params, s.stats) for s in (old, new))
        free = np.asarray(SCHEDULE.trainable(SCHEDULE.at(i)))
        stage = SCHEDULE.at(i)
        done = np.zeros_like(free)
        done[: int(stage.codebook)] = True
        done[int(stage.codebook), : int(stage.low)] = True
        assert np.abs(after - before)[done].max(initial=0) == 0
        assert after[~free].tobytes() == before[~free].tobytes()
        moved += (after != before)[free].any()
    assert moved == len(states) - 1  # and in every step the rows of its stage do move


def test_warm_up_moves_the_base_and_gradients_the_rest(trained):
    states, _, _ = trained
    for i, (old, new) in enumerate(itertools.pairwise(states)):
        warm = bool(SCHEDULE.at(i).warmup)
        delta = (old.params["delta"] != new.params["delta"]).any()
        base = (old.stats["rows"] != new.stats["rows"]).any()
        assert (delta, base) == (not warm, warm), i


def test_all_stages_are_one_program(trained):
    *_, step = trained
    assert step._cache_size() == 1


def test_metrics_name_the_stage_and_the_losses_fall(trained):
    _, metrics, _ = trained
    assert [m["stage_idx"] for m in metrics[::6]] == [0, 1, 2, 3]
    assert [m["embed_size"] for m in metrics[::6]] == [2, 5, 2, 5]
    applied = [m["lr_scale"] for m in metrics[:5]]  # what really multiplies the learning rate
    np.testing.assert_allclose(applied, [0, 0, 1, 1, 0.5], atol=1e-6)
    assert all(np.isfinite(list(m.values())).all() for m in metrics)
    last = [m["vq_loss"] for m in metrics[5::6]]
    assert last[0] > last[1] and last[0] > last[3]


def test_continuing_from_the_middle_of_a_stage_gives_the_same_bits(trained):
    states, _, step = trained
    task, tx = make_task(), optimiser()
    fresh, frozen = train.create_state(task, tx, jax.random.key(1), batch(0))
    state = jax.tree.map(lambda old, like: jax.device_put(old, like.sharding), states[9], fresh)
    for i in range(9, 14):
        state, _ = step(state, frozen, batch(i), np.uint32(0))
    for a, b in zip(
        jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(states[14]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_validation_sees_the_rows_of_the_stage(trained):
    states, _, _ = trained
    task = make_task()
    evaluate = jax.jit(task.eval_loss)
    rows = [
        float(evaluate(s.params, s.stats, task.frozen, batch(99))["active_rows"]) / 4
        for s in (states[6], states[12], states[18], states[24])
    ]
    assert rows == [2, 5, 4, 10]


def test_sweeps_without_points_train_nothing_into_nan():
    _, metrics, _ = run(make_task(), 5, lambda i: batch(i, count=0))
    assert all(np.isfinite(list(m.values())).all() for m in metrics)


def test_a_head_that_is_trained_moves_only_by_gradients():
    schedule = StageSchedule(1, (4,), 3, 1, 2)
    states, metrics, _ = run(make_task(schedule, train_head=True), 6)
    kernels = [s.params["encoder"]["kernel"] for s in states]
    same = [bool((a == b).all()) for a, b in itertools.pairwise(kernels)]
    assert same == [True, True, False, False, False, False]
    assert np.isfinite([m["loss"] for m in metrics]).all()


def test_legacy_mode_trains_all_codebooks_together():
    schedule = StageSchedule(3, (4,), 3, 1, 2, joint=True)
    states, metrics, _ = run(make_task(schedule), 6)
    first, last = (rows_of(states[i].params, states[i].stats) for i in (2, 6))
    assert (first != last).any((1, 2)).all()
    # Every codebook's use is told, and the mean over them.
    for name in ("perplexity", "used", "dead"):
        for state, told in zip(states[1:], metrics, strict=True):
            each = [told[f"{name}/{k}"] for k in range(3)]
            wanted = [float(usage_report(u, 4)[name]) for u in state.stats["usage"]]
            np.testing.assert_allclose(each, wanted, rtol=1e-6)
            np.testing.assert_allclose(told[name], np.mean(wanted), rtol=1e-6)
    assert len({metrics[-1][f"perplexity/{k}"] for k in range(3)}) == 3


# --- config ---------------------------------------------------------------------------------------


def test_the_config_has_the_document_s_defaults():
    kitti = load_config("configs/pointpillars_rq.py:kitti")
    assert kitti.progressive_learning.embedding_schedule == (16, 32, 64, 128, 256)
    assert (kitti.model.n_codebook, kitti.training.epochs, kitti.training.batch_size) == (5, 500, 6)
    assert kitti.loss_weights.to_dict() == {
        "vq_weight": 0.25, "codebook_weight": 0.1, "det_weight": 0.8
    }  # fmt: skip
    assert (kitti.rq_model.decay, kitti.training.learning_rate) == (0.99, 1e-3)
    assert kitti.training.early_stopping.patience == 5
    legacy = load_config("configs/pointpillars_rq.py:kitti,legacy")
    assert (legacy.training.epochs, legacy.training.early_stopping.patience) == (100, 5)
    assert legacy.rq_model.codebook_size == 64
    odd = load_config(
        "configs/pointpillars_rq.py:codebooks=2",
        ["progressive_learning.embedding_schedule=(8,64,512)"],
    )
    assert odd.training.epochs == 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("progressive_learning.embedding_schedule=(64,16,256)", "must rise"),
        ("progressive_learning.warmup_epochs=9", "more than the 2 epochs"),
        ("training.epochs=7", "make 30; set it to that"),
        ("rq_model.decay=1.5", "out of range"),
        ("training.lr_schedule.name=cosine", "use 'constant'"),
        ("progressive_learning.previous=some", "Valid: full, matched"),
    ],
)
def test_contradictions_are_told_with_the_fix(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("configs/pointpillars_rq.py", [override])


def test_gradients_of_every_stage_begin_with_a_fresh_adam(trained):
    states = trained[0]
    lr = 1e-2
    for before, after in itertools.pairwise(states):
        moved = np.abs(np.asarray(after.params["delta"]) - np.asarray(before.params["delta"]))
        # A fresh Adam moves by the learning rate at first; decay pulls by a hundredth of it.
        if bool(make_task().restart_optimiser(before.step)):
            assert moved.max() <= lr * 1.02
    restarts = [bool(make_task().restart_optimiser(i)) for i in range(24)]
    assert [i for i, r in enumerate(restarts) if r] == [0, 2, 6, 8, 12, 14, 18, 20]
