"""When to stop the training of a light network, and what is written down about each epoch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcomp.log import LOG
from jaxcomp.workdir import atomic_write, json_text

HIGH_NORM, LOW_NORM, HIGH_LOSS = 10.0, 1e-6, 100.0


@dataclasses.dataclass
class SmartEarlyStopping:
    """Early stopping that knows in which epochs light networks are usually at their best.

    Before `min_epoch` it neither stops nor counts. In the window half the patience suffices; after
    it a loss 10 % above the best stops at once. The earliest stop of the defaults is epoch 110.

    Attributes:
      patience: epochs without a better validation loss; 0 never stops.
      min_epoch: the first epoch that counts.
      optimal_window: (first, last) epoch of the window.
      min_delta: how much lower a loss must be to be better.
      best_loss, best_map, best_epoch: the best so far.
      wait: epochs since then.
    """

    patience: int = 20
    min_epoch: int = 100
    optimal_window: tuple[int, int] = (100, 120)
    min_delta: float = 1e-4
    best_loss: float = math.inf
    best_map: float | None = None
    best_epoch: int = 0
    wait: int = 0

    def should_stop(self, epoch: int, val_loss: float, val_map: float | None = None) -> bool:
        """Whether to end after this epoch; call it once for each, in order.

        Args:
          epoch: its number.
          val_loss: validation loss.
          val_map: average precision; kept beside the best loss, it decides nothing.
        """
        if self.patience < 1 or epoch < self.min_epoch:
            return False
        if val_loss < self.best_loss - self.min_delta:
            self.best_loss, self.best_map, self.best_epoch = val_loss, val_map, epoch
            self.wait = 0
            return False
        self.wait += 1
        first, last = self.optimal_window
        if first <= epoch <= last:
            return self.wait >= max(self.patience // 2, 1)
        late = epoch > last and val_loss > 1.1 * self.best_loss
        return self.wait >= self.patience or late


@dataclasses.dataclass(frozen=True)
class StopRule:
    """`SmartEarlyStopping` as a function of the records of all epochs, as `train.fit` takes it.

    It holds no state, so that a run that goes on decides as one that never stopped.
    """

    patience: int
    min_epoch: int
    optimal_window: tuple[int, int]
    min_delta: float

    def __call__(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether to end after the last record."""
        rule = SmartEarlyStopping(
            self.patience, self.min_epoch, self.optimal_window, self.min_delta
        )
        stops = [rule.should_stop(one["epoch"], one["val"]["loss"]) for one in history]
        if stops and stops[-1]:
            LOG.info("Smart stop: best loss %.4f in epoch %d.", rule.best_loss, rule.best_epoch)
        return bool(stops and stops[-1])


class TrainingMonitor:
    """Writes down each epoch of a training and warns of what looks wrong.

    Attributes:
      metrics: one record for each epoch.
    """

    def __init__(
        self,
        log_interval: int = 10,
        path: str | os.PathLike[str] | None = None,
        high_norm: float = HIGH_NORM,
    ):
        """Describes the monitor.

        Args:
          log_interval: epochs between two lines in the log; alarms come at once.
          path: JSON file that is replaced after each epoch, and read if it is there; None keeps
            the records in memory.
          high_norm: gradient norm above which there is an alarm.
        """
        self.high_norm = high_norm
        self.log_interval = max(log_interval, 1)
        self.path = Path(path) if path is not None else None
        self.metrics: list[dict[str, Any]] = self._known()

    def _known(self) -> list[dict[str, Any]]:
        if self.path is None or not self.path.is_file():
            return []
        try:
            found = json.loads(self.path.read_text())["epochs"]
            return [one for one in found if isinstance(one.get("epoch"), int)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []  # a damaged record is begun anew

    def log_epoch_metrics(
        self,
        epoch: int,
        train_loss: float,
        val_loss: float,
        val_map: float | None = None,
        learning_rate: float | None = None,
        grad_stats: Mapping[str, float] | None = None,
        alpha: float | None = None,
        epoch_time: float | None = None,
        epochs: int | None = None,
    ) -> list[str]:
        """Adds an epoch; one that is there already is replaced.

        Args:
          epoch: its number.
          train_loss: of the epoch.
          val_loss: of the epoch.
          val_map: average precision; None where it was not measured.
          learning_rate: of the last step.
          grad_stats: "grad_norm_current" and others, such as the norms of groups of layers.
          alpha: weight of the teacher; None without one.
          epoch_time: seconds.
          epochs: of the run, for an estimate of its end.

        Returns:
          Alarms, one sentence each; they are logged as warnings.
        """
        stats = dict(grad_stats or {})
        values = {
            "epoch": epoch, "train_loss": train_loss, "val_loss": val_loss, "val_map": val_map,
            "learning_rate": learning_rate, "alpha": alpha, "epoch_time": epoch_time,
        }  # fmt: skip
        alarms = anomalies(
            {"train loss": train_loss, "validation loss": val_loss}, stats, self.high_norm
        )
        record = values | {"grad_stats": stats, "alarms": alarms}
        self.metrics = [one for one in self.metrics if one["epoch"] < epoch] + [record]
        if epoch % self.log_interval == 0:
            LOG.info(self._line(record, epochs))
        for alarm in alarms:
            LOG.warning("Epoch %d: %s", epoch, alarm)
        if self.path is not None:
            self.save_metrics(self.path)
        return alarms

    def _line(self, one: Mapping[str, Any], epochs: int | None) -> str:
        words = [f"epoch {one['epoch']}: gradient norm"]
        words.append(", ".join(f"{k} {v:.3g}" for k, v in one["grad_stats"].items()) or "unknown")
        names = {"val_map": "validation AP", "alpha": "alpha"}
        words += [f"{text} {one[k]:.3f}" for k, text in names.items() if one[k] is not None]
        times = [one["epoch_time"] for one in self.metrics if one["epoch_time"] is not None]
        if epochs and times:
            left = (epochs - one["epoch"]) * sum(times) / len(times)
            words.append(f"about {left / 60:.1f} minutes to go")
        return f"{words[0]} {'; '.join(words[1:])}"

    def save_metrics(self, path: str | os.PathLike[str]) -> None:
        """Writes all records as JSON.

        Raises:
          CheckpointError: the place cannot be written.
        """
        atomic_write(Path(path), json_text({"epochs": self.metrics}))


def anomalies(
    losses: Mapping[str, float], gradients: Mapping[str, float], high_norm: float = HIGH_NORM
) -> list[str]:
    """What looks wrong: values not finite, losses above 100, norms above `high_norm` or gone."""
    found = []
    for name, value in {**losses, **gradients}.items():
        if not math.isfinite(value):
            found.append(f"{name} is {value}; lower the learning rate and check the data")
    for name, value in losses.items():
        if math.isfinite(value) and value > HIGH_LOSS:
            found.append(f"{name} {value:.3g} is above {HIGH_LOSS:g}; lower the learning rate")
    norm = gradients.get("grad_norm_current", 1.0)
    if norm > high_norm:
        found.append(f"high gradient norm {norm:.3g}; lower the learning rate or clip_norm")
    if norm < LOW_NORM:
        found.append(f"gradient norm {norm:.3g} vanishes; nothing is learned")
    return found
