"""What the training loop remembers, tells and returns: plain records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcomp.errors import JaxcompError
from jaxcomp.types import PyTree, TrainState

NOT_AVERAGED = ("updated", "finite", "bad_leaf", "lr")


class Interrupted(JaxcompError):
    """A signal ended the run; everything is saved.

    Attributes:
      signum: the signal.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@dataclasses.dataclass
class Progress:
    """What the loop remembers beside the arrays; plain JSON.

    Attributes:
      step: batches consumed since the start of the run, or left out where a stage ended early.
      epoch: epochs completed, or left out likewise.
      batch: batches consumed in the present epoch.
      sums: name to [sum, number of values] in the present epoch.
      plateau: fields of `optim.Plateau`.
      early: fields of `optim.EarlyStopping`, of the present stage if the task has stages.
      best: {"step", "epoch", "loss"} of the lowest validation loss, or empty.
      history: one record per completed epoch, without times.
      lr: the learning rate of the last step.
      skipped: non-finite batches left out, in total.
      skipped_in_row: the same since the last good one.
      seconds: time spent so far, over all restarts.
      done: why training is over ("epochs", "early_stopping"), or empty.
      data: state of the data iterator.
      frozen_digest: `tree_digest` of the frozen parameters.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    sums: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    plateau: dict[str, float] = dataclasses.field(default_factory=dict)
    early: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lr: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0
    done: str = ""
    data: Any = None
    frozen_digest: str = ""

    @property
    def run(self) -> tuple[int, int]:
        """Completed (epochs, batches of them) without those left out."""
        epochs = len(self.history)
        all_run = epochs == self.epoch
        return epochs, self.step if all_run else self.step * epochs // self.epoch

    def jump(self, step: int, epoch: int) -> None:
        """Leaves out what lies before the end of `epoch`; a best checkpoint to be saved follows."""
        if self.best.get("step") == self.step:
            self.best = {**self.best, "step": step}
        self.step, self.epoch = step, epoch

    def averages(self) -> dict[str, float]:
        """Running averages of the present epoch: each batch has weight one."""
        return {k: total / count for k, (total, count) in self.sums.items() if count}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds one batch to the sums; the gradient norm only where an optimiser step was made."""
        updated = metrics["updated"] > 0
        for name, value in metrics.items():
            if name in NOT_AVERAGED or (name == "grad_norm" and not updated):
                continue
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = [total + value, count + 1]


@dataclasses.dataclass(frozen=True)
class EpochSummary:
    """What callbacks get at the end of an epoch, after validation.

    Attributes:
      epoch: 1 for the first.
      epochs: how many there will be at most.
      step: batches consumed so far.
      train: averages of the epoch, flat names ("loss", "mse", "feature_max/p4", ...).
      val: validation averages, likewise.
      lr: the learning rate of this epoch's last step.
      grad_norm: average norm before clipping.
      best: whether this is the lowest validation loss so far.
      stage_over: whether a stage of the task ends here, in time or early; the last one too.
      alerts: health warnings.
      state: the train state; read it, do not keep it (the next step takes its buffers).
      frozen: the frozen parameters.
      workdir: the run directory.
    """

    epoch: int
    epochs: int
    step: int
    train: Mapping[str, float]
    val: Mapping[str, float]
    lr: float
    grad_norm: float
    best: bool
    stage_over: bool
    alerts: Sequence[str]
    state: TrainState
    frozen: PyTree
    workdir: Path


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training gives.

    Attributes:
      state: the train state with the lowest validation loss.
      frozen: the frozen parameters.
      history: one record per epoch that was run: epoch, step, lr, train, val.
      best_epoch: 1 for the first.
      best_loss: the lowest validation loss.
      epochs: epochs done.
      steps: batches consumed.
      stopped: "epochs" or "early_stopping".
      skipped: batches left out because they were not finite.
      train_step_ms: median time of a step of this process, compilation left out; None if none ran.
      input_wait: share of the time of training steps spent waiting for data, 0 to 1.
      seconds: time of training and validation, over all restarts.
    """

    state: TrainState
    frozen: PyTree
    history: Sequence[Mapping[str, Any]]
    best_epoch: int
    best_loss: float
    epochs: int
    steps: int
    stopped: str
    skipped: int
    train_step_ms: float | None
    input_wait: float
    seconds: float
