import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxcomp import optim, sharding, train
from jaxcomp.errors import CheckpointError, DataError, NonFiniteError
from jaxcomp.feed import Feeder
from jaxcomp.trees import tree_digest
from jaxcomp.types import DataSplits, Task

TESTS = Path(__file__).parent
TIMES = ("step_ms", "input_wait", "val_seconds", "seconds")


def setup(task=None, size=8, mesh=None, accumulation=1, config=None, **options):
    """State, frozen, step and batches of the toy."""
    task, config = task or toy.Toy(), config or toy.config()
    tx = optim.make_optimiser(config.training, 5)
    source = toy.Endless(size)
    rng = jax.random.key(0)
    state, frozen = train.create_state(
        task, tx, rng, toy.Endless(size).__next__(), accumulation=accumulation, mesh=mesh
    )
    step = train.make_train_step(task, tx, accumulation=accumulation, mesh=mesh, **options)
    return state, frozen, step, source


def run(steps, **kwargs):
    """Params and metrics after some steps."""
    state, frozen, step, source = setup(**kwargs)
    mesh = kwargs.get("mesh") or sharding.make_mesh()
    for _ in range(steps):
        batch = sharding.put_batch(mesh, next(source))
        state, metrics = step(state, frozen, batch, np.uint32(0))
    return state, metrics


def lines(workdir):
    """The records of metrics.jsonl without times."""
    records = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def script(workdir, out, *overrides):
    """The toy's training as a process."""
    command = [sys.executable, str(TESTS / "toy.py"), str(workdir), str(out), *overrides]
    env = {
        **os.environ,
        "PYTHONPATH": str(TESTS.parent),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    with open(f"{out}.err", "ab") as errors:
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=errors)


def wait_for(condition, process, seconds=120):
    """Polls until something has happened in a process."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.returncode
        time.sleep(0.01)


def test_the_toy_is_a_task():
    assert isinstance(toy.Toy(), Task)


def test_a_task_that_lacks_a_method_cannot_be_made():
    class Half(Task):
        loss = eval_loss = toy.Toy.loss

    with pytest.raises(TypeError, match="init"):
        Half()


def test_one_and_four_devices_agree():
    assert len(jax.devices()) == 4
    one, _ = run(5, mesh=sharding.make_mesh(jax.devices()[:1]))
    four, _ = run(5, mesh=sharding.make_mesh())
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    batch = sharding.put_batch(sharding.make_mesh(), next(toy.Endless(8)))
    assert batch["x"].sharding.shard_shape((8, 3)) == (2, 3)
    odd = sharding.put_batch(sharding.make_mesh(), next(toy.Endless(5)))
    assert odd["x"].sharding.is_fully_replicated


def test_the_step_depends_on_seed_and_step_alone():
    digests = [tree_digest(run(3)[0].params) for _ in range(2)]
    assert digests[0] == digests[1]
    state, frozen, step, source = setup()
    batch = next(source)
    _, other = step(state, frozen, batch, np.uint32(1))
    state, frozen, step, _ = setup()
    _, same = step(state, frozen, batch, np.uint32(0))
    # Not the params: the first step of Adam is as long whatever the gradient.
    assert float(other["grad_norm"]) != float(same["grad_norm"])


def test_the_reported_norm_is_before_clipping():
    _, metrics = run(1)
    assert float(metrics["grad_norm"]) > 1.0  # the clip norm


def test_accumulation_equals_a_big_batch():
    quiet = toy.Toy(noise=0.0)
    big, _ = run(2, task=quiet, size=20)
    small, metrics = run(8, task=quiet, size=5, accumulation=4, steps_per_epoch=8)
    assert int(small.step) == 2 and float(metrics["updated"]) == 1.0
    for a, b in zip(jax.tree.leaves(big.params), jax.tree.leaves(small.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_the_last_partial_group_is_applied_as_its_mean():
    quiet = toy.Toy(noise=0.0)
    state, frozen, step, source = setup(
        task=quiet, size=5, accumulation=3, steps_per_epoch=4, config=toy.config()
    )
    updated = []
    for _ in range(8):
        state, metrics = step(state, frozen, next(source), np.uint32(0))
        updated.append(int(metrics["updated"]))
    assert updated == [0, 0, 1, 1, 0, 0, 1, 1]
    # The fourth batch alone is the second step: compare with two plain steps of 15 and 5 rows.
    tx = optim.make_optimiser(toy.config().training, 5)
    plain, frozen = train.create_state(quiet, tx, jax.random.key(0), next(toy.Endless(5)))
    step = train.make_train_step(quiet, tx)
    source = toy.Endless(5)
    four = [next(source) for _ in range(4)]
    for part in (four[:3], four[3:]):
        batch = {k: np.concatenate([b[k] for b in part]) for k in four[0]}
        plain, _ = step(plain, frozen, batch, np.uint32(0))
    halfway, frozen, step, source = setup(task=quiet, size=5, accumulation=3, steps_per_epoch=4)
    for _ in range(4):
        halfway, _ = step(halfway, frozen, next(source), np.uint32(0))
    np.testing.assert_allclose(
        plain.params["dense"]["kernel"], halfway.params["dense"]["kernel"], rtol=2e-6
    )


def test_a_mask_freezes_exactly_under_adam():
    class Freezing(toy.Toy):
        def update_mask(self, params, step):
            return {"dense": {"kernel": jnp.where(step < 3, 1.0, 0.0), "bias": 1.0}}

    after, _ = run(3, task=Freezing())
    later, _ = run(9, task=Freezing())
    np.testing.assert_array_equal(after.params["dense"]["kernel"], later.params["dense"]["kernel"])
    assert not np.array_equal(after.params["dense"]["bias"], later.params["dense"]["bias"])


def test_after_update_sees_the_new_parameters():
    state, frozen, step, source = setup()
    before = jax.device_get(state.params["dense"]["kernel"])
    state, _ = step(state, frozen, next(source), np.uint32(0))
    wanted = 0.9 * before + 0.1 * np.asarray(state.params["dense"]["kernel"])
    np.testing.assert_allclose(state.stats["ema"]["dense"]["kernel"], wanted, rtol=1e-6)


def test_a_loss_scale_changes_nothing_in_float32():
    plain, scaled = run(3)[0], run(3, loss_scale=128.0)[0]
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(scaled.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_leaves_the_state(accumulation):
    options = {"skip_nonfinite": True, "accumulation": accumulation, "steps_per_epoch": 5}
    state, frozen, step, source = setup(task=toy.Toy(bad_step=0), **options)
    before = tree_digest((state.params, state.stats))
    for _ in range(accumulation):
        state, metrics = step(state, frozen, next(source), np.uint32(0))
    assert tree_digest((state.params, state.stats)) == before and int(state.step) == 0
    assert not metrics["finite"] and float(metrics["updated"]) == 0.0


def test_nonfinite_stops_and_names_the_tensor(tmp_path):
    with pytest.raises(
        NonFiniteError, match=r"Step 8 \(epoch 2\).*params/dense/kernel.*loss is nan"
    ):
        train.fit(toy.Toy(bad_step=7), toy.config(), toy.splits(), tmp_path)
    result = train.fit(toy.Toy(), toy.config(), toy.splits(), tmp_path)  # goes on from epoch 1
    assert [r["epoch"] for r in result.history] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(r["train"]["loss"]) for r in result.history)


def test_nonfinite_skips_and_counts_but_not_for_ever(tmp_path, monkeypatch):
    class OneBadBatch(toy.Endless):
        def __next__(self):
            batch = super().__next__()
            if self.position == 3:
                batch["x"][0] = np.inf
            return batch

    config = toy.config(training__on_nonfinite="skip")
    data = DataSplits(lambda: OneBadBatch(8), 5, toy.splits().validation)
    result = train.fit(toy.Toy(), config, data, tmp_path / "a")
    assert result.skipped == 1 and int(result.state.step) == 29 and result.steps == 30
    monkeypatch.setattr(train, "MAX_SKIPPED", 4)
    with pytest.raises(NonFiniteError, match="4 batches in a row"):
        train.fit(toy.Toy(bad_step=2), config, toy.splits(), tmp_path / "b")


def test_fit_learns_and_leaves_what_it_promises(tmp_path):
    seen = []
    config = toy.config(training__epochs=30, training__accumulation=2)
    result = train.fit(toy.Toy(), config, toy.splits(), tmp_path, callbacks=[seen.append])
    assert result.best_loss == min(r["val"]["loss"] for r in result.history) < 0.1
    assert result.best_epoch == min(result.history, key=lambda r: r["val"]["loss"])["epoch"]
    assert [s.epoch for s in seen] == list(range(1, 31)) and seen[-1].val == result.history[-1][
        "val"
    ]
    assert result.train_step_ms > 0 and 0 <= result.input_wait <= 1 and result.stopped == "epochs"
    records = lines(tmp_path)
    assert [r["epoch"] for r in records if r["kind"] == "epoch"] == list(range(1, 31))
    assert (tmp_path / "train.log").stat().st_size
    # The state is the best one: its loss is the best loss.
    mesh = sharding.make_mesh()
    again = train.evaluate_loss(toy.Toy(), result.state, result.frozen, toy.splits(), mesh)
    assert again["loss"] == result.best_loss


def test_a_complete_run_returns_at_once_with_the_same_result(tmp_path):
    first = train.fit(toy.Toy(), toy.config(), toy.splits(), tmp_path)
    again = train.fit(toy.Toy(), toy.config(), toy.splits(), tmp_path)
    assert tree_digest(first.state) == tree_digest(again.state)
    assert first.history == again.history and again.train_step_ms is None
    with pytest.raises(CheckpointError, match="holds checkpoints"):
        train.fit(toy.Toy(), toy.config(), toy.splits(), tmp_path, resume=False)


def test_early_stopping_and_plateau_act(tmp_path):
    class Stuck(toy.Toy):
        def eval_loss(self, params, stats, frozen, batch):
            return {"count": jnp.sum(batch["mask"]), "loss": jnp.sum(batch["mask"])}

    config = toy.config(
        training__epochs=50,
        training__early_stopping__patience=4,
        training__lr_schedule__patience=1,
    )
    result = train.fit(Stuck(), config, toy.splits(), tmp_path)
    assert result.stopped == "early_stopping" and result.epochs == 5 and result.best_epoch == 1
    np.testing.assert_allclose(
        [r["lr"] for r in result.history], [0.05, 0.05, 0.05, 0.04, 0.04], rtol=1e-6
    )


class Staged(toy.Toy):
    """Stages of four epochs; no epoch is better than the first of its stage."""

    def __init__(self, updates=5):
        super().__init__()
        self.updates = updates

    def loss(self, params, stats, frozen, batch, rng, step):
        loss, aux = super().loss(params, stats, frozen, batch, rng, step)
        return loss, aux.replace(metrics={**aux.metrics, "at": step.astype(jnp.float32)})

    def eval_loss(self, params, stats, frozen, batch):
        return {"count": jnp.sum(batch["mask"]), "loss": jnp.sum(batch["mask"])}

    def end_of_stage(self, step):
        return (step // (4 * self.updates) + 1) * 4 * self.updates


def staged(workdir, *callbacks, updates=5, **changes):
    changes = {"training__epochs": 12, "training__early_stopping__patience": 1} | changes
    config = toy.config(**changes)
    return train.fit(Staged(updates), config, toy.splits(), workdir, callbacks=callbacks)


def test_patience_ends_a_stage_and_the_step_jumps_to_the_next(tmp_path):
    over = []
    result = staged(tmp_path, lambda s: over.append(s.stage_over))
    assert [r["epoch"] for r in result.history] == [1, 2, 5, 6, 9, 10]
    assert [r["step"] for r in result.history] == [5, 10, 25, 30, 45, 50]
    assert [r["train"]["at"] for r in result.history] == [2, 7, 22, 27, 42, 47]
    assert over == [False, True] * 3
    assert (result.stopped, result.epochs, result.steps) == ("early_stopping", 6, 30)
    assert result.best_epoch == 1


def test_stages_jump_by_optimiser_steps_where_batches_are_accumulated(tmp_path):
    result = staged(tmp_path, updates=3, training__accumulation=2, training__epochs=8)
    assert [r["epoch"] for r in result.history] == [1, 2, 5, 6]
    assert [r["train"]["at"] for r in result.history] == pytest.approx([0.8, 3.8, 12.8, 15.8])


def test_a_stage_that_is_never_left_early_ends_in_time(tmp_path):
    over = []
    patience = {"training__early_stopping__patience": 4}
    result = staged(tmp_path, lambda s: over.append(s.stage_over), **patience)
    assert over == [False, False, False, True] * 3 and result.stopped == "epochs"
    assert [r["train"]["at"] for r in result.history] == [5 * i + 2 for i in range(12)]


@pytest.mark.parametrize("epoch", [2, 5])
def test_a_kill_before_and_right_after_a_jump_gives_the_same_bits(tmp_path, epoch):
    class Killed(BaseException):
        pass

    def term(summary):  # saved behind the jump
        if summary.epoch == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    def kill(summary):  # before the jump is saved
        if summary.epoch == epoch:
            raise Killed

    whole = staged(tmp_path / "whole")
    for folder, callback, error in (("a", term, train.Interrupted), ("b", kill, Killed)):
        with pytest.raises(error):
            staged(tmp_path / folder, callback)
        resumed = staged(tmp_path / folder)
        assert tree_digest(resumed.state) == tree_digest(whole.state)
        assert resumed.history == whole.history


def test_other_frozen_weights_are_refused(tmp_path):
    class Other(toy.Toy):
        def init(self, rng, batch):
            params, stats, _ = super().init(rng, batch)
            return params, stats, {"scale": jnp.full((), 2.0)}

    train.fit(toy.Toy(), toy.config(training__epochs=1), toy.splits(), tmp_path)
    with pytest.raises(CheckpointError, match="other frozen weights"):
        train.fit(Other(), toy.config(training__epochs=1), toy.splits(), tmp_path)


def test_an_ending_iterator_and_an_empty_validation_are_errors(tmp_path):
    class Ending(toy.Endless):
        def __next__(self):
            if self.position == 7:
                raise StopIteration
            return super().__next__()

    data = DataSplits(lambda: Ending(8), 5, toy.splits().validation)
    with pytest.raises(DataError, match="endless"):
        train.fit(toy.Toy(), toy.config(), data, tmp_path / "a")
    data = DataSplits(lambda: toy.Endless(8), 5, lambda: iter(()))
    with pytest.raises(DataError, match="validation"):
        train.fit(toy.Toy(), toy.config(), data, tmp_path / "b")


def test_the_feeder_reports_the_position_of_the_batch_in_use():
    source = toy.Endless(8)
    with Feeder(source, lambda batch: batch) as feeder:
        for position in (1, 2, 3):
            feeder.next()
            assert feeder.state == {"position": position}


def test_kill_9_and_restart_give_the_same_bits(tmp_path):
    overrides = ("training__epochs=8", "checkpoint__every_steps=3")
    whole = script(tmp_path / "a", tmp_path / "a.json", *overrides)
    assert whole.wait(120) == 0, (tmp_path / "a.json.err").read_text()
    folder = tmp_path / "b" / "checkpoints"
    for enough in (3, 20):  # once in the middle of an epoch, once later
        part = script(tmp_path / "b", tmp_path / "b.json", *overrides, "log__every_steps=2")

        def reached(enough=enough):
            steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
            return max(steps, default=0) >= enough

        wait_for(reached, part)
        part.kill()
        part.wait()
    last = script(tmp_path / "b", tmp_path / "b.json", *overrides)
    assert last.wait(120) == 0, (tmp_path / "b.json.err").read_text()
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert a == b
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert "Resuming" in (tmp_path / "b" / "train.log").read_text()


def test_sigterm_saves_at_once_and_says_how_to_resume(tmp_path):
    def stop(summary):
        if summary.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(train.Interrupted, match="Run the same command again") as caught:
        train.fit(toy.Toy(), toy.config(), toy.splits(), tmp_path / "a", callbacks=[stop])
    assert caught.value.signum == signal.SIGTERM
    resumed = train.fit(toy.Toy(), toy.config(), toy.splits(), tmp_path / "a")
    whole = train.fit(toy.Toy(), toy.config(), toy.splits(), tmp_path / "b")
    assert tree_digest(resumed.state) == tree_digest(whole.state)
    assert resumed.history == whole.history
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
