"""What the validation loss of an epoch decides: best, learning rate, early stopping, stages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from jaxcomp import optim
from jaxcomp.progress import Progress


class Decision(NamedTuple):
    """What follows from an epoch.

    Attributes:
      best: whether its loss is the lowest so far.
      stage_over: the last epoch of its stage if the stage is over, or 0.
      lr: the learning rate from here on if the plateau schedule changes it, or None.
    """

    best: bool
    stage_over: int
    lr: float | None


def decide(progress: Progress, training: Any, loss: float, stage_end: int) -> Decision:
    """Notes in `progress` what the loss of the epoch just run means, and tells it.

    Args:
      progress: with this epoch counted; `best`, `plateau`, `early` and `done` are updated.
      training: `config.training`.
      loss: the validation loss.
      stage_end: the last epoch of the stage to which this one belongs; 0 without stages.
    """
    stopping = training.early_stopping
    best = loss < progress.best.get("loss", math.inf)
    if best:
        progress.best = {"step": progress.step, "epoch": progress.epoch, "loss": loss}
    lr = _plateau(progress, training.lr_schedule, loss)
    early = optim.EarlyStopping(**progress.early).update(loss, stopping.min_delta)
    worse = early.stop(stopping.patience)
    over = stage_end if worse or progress.epoch >= stage_end else 0
    progress.early = dataclasses.asdict(optim.EarlyStopping() if over else early)
    if worse and stage_end in (0, training.epochs):
        progress.done = "early_stopping"
    elif progress.epoch >= training.epochs:
        progress.done = "epochs"
    return Decision(best, over, lr)


def _plateau(progress: Progress, schedule: Any, loss: float) -> float | None:
    """The learning rate if the plateau schedule changes it, or None."""
    if schedule.name != "plateau":
        return None
    old = optim.Plateau(**progress.plateau)  # type: ignore[arg-type]
    new = old.update(loss, schedule.factor, schedule.patience, schedule.min_lr)
    progress.plateau = dataclasses.asdict(new)
    return new.lr if new.lr != old.lr else None
