"""The one trainer: state, step and loop. It knows the protocol `Task`, never a workload.

    task, config, data ──► create_state ──► step(state, frozen, batch, seed) ──► state, metrics
                                              │ each epoch: validate, plateau, early stop, save
                                              ▼
                                       checkpoints/  metrics.jsonl

The step is a pure function; what the loop itself remembers is one record, `Progress`, that is saved
as JSON beside the arrays. A killed run therefore continues bit for bit.

A task may have stages: `task.end_of_stage(step)` is the first optimiser step behind the stage of a
step (a multiple of an epoch's). Early stopping then counts within each stage and ends it alone: the
step number jumps to the next one. Schedules that the optimiser counts itself do not jump with it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxcomp import log, optim, processes, sharding
from jaxcomp.checkpoint import Checkpointer
from jaxcomp.errors import CheckpointError, DataError, NonFiniteError
from jaxcomp.feed import Feeder
from jaxcomp.progress import EpochSummary, FitResult, Interrupted, Progress
from jaxcomp.step import create_state, make_train_step
from jaxcomp.train.decisions import decide
from jaxcomp.train.in_flight import InFlight
from jaxcomp.train.signals import Signals
from jaxcomp.train.times import Times
from jaxcomp.train.validation import Validator, evaluate_loss
from jaxcomp.trees import leaf_paths, tree_digest
from jaxcomp.types import DataSplits, PyTree, Task, TrainState

__all__ = [
    "EpochSummary",
    "FitResult",
    "Interrupted",
    "create_state",
    "evaluate_loss",
    "fit",
    "make_train_step",
]

LOG = log.LOG
Stop = Callable[[Sequence[Mapping[str, Any]]], bool]  # records of all epochs -> whether to end
# What it returns, if anything, goes to the logs as a record of the kind "measured".
Callback = Callable[[EpochSummary], Mapping[str, Any] | None]
MAX_SKIPPED = 50  # non-finite batches in a row before "skip" gives up as well
INIT_STREAM = 2**32 - 1  # folded into the seed for `Task.init`; steps never reach it


def fit(
    task: Task,
    config: Any,
    data: DataSplits,
    workdir: str | os.PathLike[str],
    *,
    tx: optax.GradientTransformation | None = None,
    mesh: jax.sharding.Mesh | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = True,
    stop: Stop | None = None,
) -> FitResult:
    """Trains a task, or goes on where the run directory stands.

    Args:
      task: the workload.
      config: a valid config; `training`, `checkpoint`, `log`, `alerts`, `mesh` and `seed` are read.
      data: training and validation data; of several processes, each reads its part of them.
      workdir: the run directory; `checkpoints/`, `metrics.jsonl` and `train.log` are made in it.
      tx: an optimiser instead of `optim.make_optimiser(config.training, ...)`; the plateau
        schedule needs `hyperparams["learning_rate"]` in its state.
      mesh: the devices; by default all, in groups of `config.mesh.fsdp`.
      callbacks: called with an `EpochSummary` after each epoch, before its checkpoint, in the
        first process; metrics that one returns are recorded. After a kill an epoch may be told
        again with the same content, so write files by replacing them.
      resume: False refuses a directory that holds checkpoints.
      stop: a rule of the workload's own that ends training early, beside that of
        `config.training.early_stopping`: a pure function of the epochs' records.

    Returns:
      The best state and what happened. A run that is already complete returns at once.

    Raises:
      Interrupted: SIGINT or SIGTERM came; everything is saved.
      NonFiniteError: as `config.training.on_nonfinite` says.
      CheckpointError: the directory cannot be used or holds something else.
      ConfigError: `config.mesh.fsdp` does not divide the number of devices.
      DataError: there is no data, or it cannot be shared out among the processes.
      ProcessError: another process is gone.
    """
    mesh = mesh or sharding.make_mesh(fsdp=config.mesh.fsdp)
    data = _part_of(data)
    with processes.losses_told("training"), processes.watched("training"):
        return _fit(task, config, data, Path(workdir), tx, mesh, callbacks, resume, stop)


def _fit(
    task: Task,
    config: Any,
    data: DataSplits,
    workdir: Path,
    tx: optax.GradientTransformation | None,
    mesh: jax.sharding.Mesh,
    callbacks: Sequence[Callback],
    resume: bool,
    stop: Stop | None,
) -> FitResult:
    """`fit` with this process's part of the data."""
    training = config.training
    if data.steps_per_epoch < 1:
        raise DataError("An epoch has no batch; lower config.training.batch_size.")
    steps = math.ceil(data.steps_per_epoch / training.accumulation)
    tx = tx or optim.make_optimiser(training, steps)
    iterator = data.train()
    start = iterator.get_state()
    rng = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
    state, frozen = create_state(
        task, tx, rng, next(iterator), accumulation=training.accumulation, mesh=mesh
    )
    progress = Progress(
        plateau=dataclasses.asdict(optim.Plateau(training.learning_rate)),
        early=dataclasses.asdict(optim.EarlyStopping()),
        data=start,
        frozen_digest=tree_digest(frozen),
    )
    with Checkpointer(workdir / "checkpoints", config.checkpoint.keep) as saver:
        state, progress = _resume(saver, state, progress, resume)
        iterator.set_state(progress.data)
        run = _Run(
            task, config, data, workdir, tx, mesh, callbacks, saver, state, frozen, progress, stop
        )  # fmt: skip
        return run.go(iterator)


def _part_of(data: DataSplits) -> DataSplits:
    """The data of this process."""
    if processes.count() == 1:
        return data
    if data.sharded is None:
        raise DataError("these data are for one process: they cannot be shared out among several")
    return data.sharded(processes.index(), processes.count())


def _resume(
    saver: Checkpointer, state: TrainState, progress: Progress, resume: bool
) -> tuple[TrainState, Progress]:
    """The newest saved state, or the given one if there is none."""
    if not resume and saver.steps():
        raise CheckpointError(
            f"{str(saver.path)!r} holds checkpoints; resume, or choose another --workdir."
        )
    restored = saver.restore_latest(state)
    if restored is None:
        return state, progress
    state, record, _ = restored
    saved = Progress(**record)
    if saved.frozen_digest != progress.frozen_digest:
        raise CheckpointError(
            f"{str(saver.path)!r} was trained with other frozen weights "
            f"({saved.frozen_digest[:12]}, now {progress.frozen_digest[:12]}). "
            "Give the same config.detector.path, or choose another --workdir."
        )
    return state, saved


class _Run:
    """One process's part of a run. All that must survive it is in `state` and `progress`."""

    def __init__(
        self,
        task: Task,
        config: Any,
        data: DataSplits,
        workdir: Path,
        tx: optax.GradientTransformation,
        mesh: jax.sharding.Mesh,
        callbacks: Sequence[Callback],
        saver: Checkpointer,
        state: TrainState,
        frozen: PyTree,
        progress: Progress,
        stop: Stop | None = None,
    ):
        training = config.training
        self.stop, self.task = stop, task
        self.config, self.data, self.workdir, self.mesh = config, data, workdir, mesh
        self.callbacks, self.saver = callbacks, saver
        self.state, self.frozen, self.progress = state, frozen, progress
        self.step = make_train_step(
            task,
            tx,
            accumulation=training.accumulation,
            steps_per_epoch=data.steps_per_epoch,
            loss_scale=training.loss_scale,
            skip_nonfinite=training.on_nonfinite == "skip",
            mesh=mesh,
        )
        self.validate = Validator(task, data, mesh)
        self.seed = jax.device_put(np.uint32(config.seed), sharding.replicated(mesh))
        self.saved_step = progress.step if saver.steps() else -1
        self.times = Times(progress.seconds)

    def go(self, iterator: Any) -> FitResult:
        """Runs to the end and returns the best state."""
        config, progress = self.config, self.progress
        self.out = log.RunLog(
            self.workdir,
            config.log,
            total_steps=config.training.epochs * self.data.steps_per_epoch,
            step=progress.step,
            config=config.to_dict(),
            primary=processes.is_primary(),
        )
        with self.out, Signals() as self.signals:
            if progress.step == 0:
                LOG.info("Parameters:\n%s", log.parameter_overview(self.state.params))
            else:
                LOG.info("Resuming from step %d (epoch %d).", progress.step, progress.epoch + 1)
            with Feeder(iterator, lambda b: sharding.put_batch(self.mesh, b)) as feeder:
                while not progress.done:
                    self._train_epoch(feeder)
                    self._end_epoch()
                    self._stop_if_asked()
            self.saver.wait()
            return self._result()

    def _train_epoch(self, feeder: Feeder) -> None:
        """Dispatches the steps of the epoch that are left; metrics are read a step later."""
        progress, every = self.progress, self.config.checkpoint.every_steps
        steps, in_flight = self.data.steps_per_epoch, InFlight(self._collect)
        with self.times.training():
            for done in range(progress.batch + 1, steps + 1):
                with self.times.waiting():
                    batch = feeder.next()
                self.state, metrics = self.step(self.state, self.frozen, batch, self.seed)
                in_flight.add(metrics)
                reached = progress.step + len(in_flight)
                self.signals.poll(reached)
                due = (every and reached % every == 0) or self.signals.signum
                if due and done < steps:  # the last batch is saved with the validation that follows
                    in_flight.drain()
                    progress.data = feeder.state
                    self._save()
                    self._stop_if_asked()
                    self.times.pause()
            in_flight.drain()
            progress.data = feeder.state if feeder.state is not None else progress.data

    def _collect(self, metrics: dict[str, float]) -> None:
        """Counts one finished step, checks it and tells about it."""
        progress = self.progress
        self.times.collected()
        progress.step += 1
        progress.batch += 1
        if metrics["finite"]:
            progress.skipped_in_row = 0
            if "lr" in metrics:  # which stages of a task may scale
                progress.lr = metrics["lr"] * metrics.get("lr_scale", 1.0)
            progress.add(metrics)
        else:
            self._nonfinite(metrics)
        averages = progress.averages()
        self.out.advance(progress.step, averages)
        every = self.config.log.every_steps
        if progress.batch % every == 0:
            steps = self.data.steps_per_epoch
            LOG.info(log.batch_line(progress.batch, steps, averages, progress.lr))
            line = log.magnitude_line(averages)
            if line and progress.batch % (5 * every) == 0:
                LOG.info(line)
            values = {"epoch": progress.epoch + 1, "lr": progress.lr, **averages}
            self.out.record("batch", progress.step, values)

    def _nonfinite(self, metrics: Mapping[str, float]) -> None:
        """Raises or counts a step whose loss or gradient is not finite."""
        progress = self.progress
        words = [f"{k} is {v}" for k, v in metrics.items() if not math.isfinite(v)]
        leaf = int(metrics["bad_leaf"])
        if leaf >= 0:
            name = leaf_paths(self.state.params)[leaf]
            words.insert(0, f"the first bad gradient is that of params/{name}")
        where = f"Step {progress.step} (epoch {progress.epoch + 1}): {'; '.join(words)}."
        progress.skipped += 1
        progress.skipped_in_row += 1
        if self.config.training.on_nonfinite == "stop":
            raise NonFiniteError(
                f"{where} Lower config.training.learning_rate, check the data, or set "
                "config.training.on_nonfinite='skip'. The last checkpoint is good."
            )
        if progress.skipped_in_row >= MAX_SKIPPED:
            raise NonFiniteError(f"{where} {MAX_SKIPPED} batches in a row were skipped; stopping.")
        LOG.warning("%s Skipped (%d so far).", where, progress.skipped)

    def _end_epoch(self) -> None:
        """Validates, decides what follows, tells everyone and saves."""
        progress, config = self.progress, self.config
        began = time.perf_counter()
        val = self.validate(self.state, self.frozen)
        val_seconds = time.perf_counter() - began
        if not math.isfinite(val["loss"]) and config.training.on_nonfinite == "stop":
            raise NonFiniteError(
                f"The validation loss of epoch {progress.epoch + 1} is {val['loss']}; lower "
                "config.training.learning_rate. The last checkpoint is good."
            )
        train, lr = progress.averages(), progress.lr
        progress.epoch += 1
        progress.batch, progress.sums = 0, {}
        best, stage_end, new_lr = decide(progress, config.training, val["loss"], self._stage_end())
        if new_lr is not None:
            opt = optim.set_learning_rate(self.state.opt, new_lr)
            self.state = self.state.replace(opt=opt)
        record: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, "lr": lr}
        record |= {"train": train, "val": val}
        progress.history.append(record)
        if self.stop is not None and self.stop(progress.history):
            progress.done = progress.done or "early_stopping"
        alerts = log.health_alerts(train, val, config.training.rate_weight, config.alerts)
        self._tell(record, alerts, best, val_seconds)
        if self.callbacks:
            self._call_back(record, alerts, best, stage_end > 0)
        if stage_end > progress.epoch and not progress.done:
            self._jump(stage_end)
        self._save()

    def _call_back(
        self, record: Mapping[str, Any], alerts: Sequence[str], best: bool, stage_over: bool
    ) -> None:
        """Tells the callbacks of the first process; all of them bring the state together."""
        summary = EpochSummary(
            epoch=record["epoch"],
            epochs=self.config.training.epochs,
            step=self.progress.step,
            train=record["train"],
            val=record["val"],
            lr=record["lr"],
            grad_norm=record["train"].get("grad_norm", 0.0),
            best=best,
            stage_over=stage_over,
            alerts=alerts,
            state=sharding.whole(self.state),
            frozen=processes.local(self.frozen),
            workdir=self.workdir,
        )
        if processes.is_primary():
            for callback in self.callbacks:
                measured = callback(summary)
                if measured:
                    self.out.record("measured", self.progress.step, measured)

    def _jump(self, epoch: int) -> None:
        """Leaves out the epochs of the stage that are left; the data go on where they are."""
        progress, patience = self.progress, self.config.training.early_stopping.patience
        LOG.info(
            "The stage ends with epoch %d, not %d: no better validation loss for %d epochs.",
            progress.epoch, epoch, patience,
        )  # fmt: skip
        progress.jump(epoch * self.data.steps_per_epoch, epoch)
        old = self.state.step
        step = jax.device_put(np.asarray(epoch * self._updates(), old.dtype), old.sharding)
        self.state = self.state.replace(step=step)

    def _updates(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(self.data.steps_per_epoch / self.config.training.accumulation)

    def _stage_end(self) -> int:
        """The last epoch of the stage to which the epoch just run belongs; 0 without stages."""
        end_of_stage = getattr(self.task, "end_of_stage", None)
        steps = self._updates()
        end = None if end_of_stage is None else end_of_stage(self.progress.epoch * steps - 1)
        return 0 if end is None else min(end // steps, self.config.training.epochs)

    def _tell(
        self, record: Mapping[str, Any], alerts: Sequence[str], best: bool, val_seconds: float
    ) -> None:
        """One epoch for the logs; times go here, never into the history."""
        values = {**record, "alerts": list(alerts), "skipped": self.progress.skipped}
        step_ms, input_wait = self.times.epoch_step_ms(), self.times.input_wait()
        values |= {"step_ms": step_ms, "input_wait": input_wait}
        values |= {"val_seconds": val_seconds, "seconds": self.times.seconds()}
        values.pop("step")
        self.out.record("epoch", self.progress.step, values)
        for line in log.epoch_lines(record, self.config, best, step_ms, input_wait):
            LOG.info(line)
        for alert in alerts:
            LOG.warning(alert)

    def _save(self) -> None:
        """Saves the arrays and the record, unless this step is saved already."""
        self.out.flush()
        if self.saved_step == self.progress.step:
            return
        self.progress.seconds = self.times.seconds()
        record = dataclasses.asdict(self.progress)
        self.saver.save(self.progress.step, self.state, record, self.progress.best.get("step"))
        self.saved_step = self.progress.step

    def _stop_if_asked(self) -> None:
        """Raises `Interrupted` once everything is on disk, if a signal came."""
        if not self.signals.signum:
            return
        self.saver.wait()
        name = signal.Signals(self.signals.signum).name
        message = (
            f"{name} at step {self.progress.step}: the run is saved in {str(self.workdir)!r}. "
            "Run the same command again to resume it."
        )
        LOG.warning(message)
        raise Interrupted(message, self.signals.signum)

    def _result(self) -> FitResult:
        """Reads the best state back, unless it is the present one."""
        progress, state = self.progress, self.state
        best = progress.best
        if best and best["step"] != progress.step:
            if best["step"] in self.saver.steps():
                state, _ = self.saver.restore(self.state, best["step"])
            else:
                LOG.warning("The best step %d is gone; using the last one.", best["step"])
        return FitResult(
            state=sharding.whole(state),
            frozen=processes.local(self.frozen),
            history=progress.history,
            best_epoch=best.get("epoch", progress.epoch),
            best_loss=best.get("loss", math.nan),
            epochs=progress.run[0],
            steps=progress.run[1],
            stopped=progress.done,
            skipped=progress.skipped,
            train_step_ms=self.times.step_ms(),
            input_wait=self.times.input_wait(),
            seconds=self.times.seconds(),
        )
