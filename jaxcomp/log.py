"""What a run tells: JSONL always, a text log, a progress bar, TensorBoard and W&B as extras.

`metrics.jsonl` has one object per line: {"kind": "batch" | "epoch", "step": n, ...}. When a run
resumes from step n, lines beyond n are dropped, so that the file reads as if the run had never
stopped. `train.log` is for people and is only appended to.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tqdm

from jaxcomp.errors import ConfigError
from jaxcomp.types import PyTree
from jaxcomp.workdir import atomic_write, disk_errors, finite

LOG = logging.getLogger("jaxcomp")
_BATCH, _MAGNITUDES = "Train Batch:", "Feature Magnitudes:"
_DETAILS = (_BATCH, _MAGNITUDES)  # beginnings of lines that come several times an epoch


def flatten_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics as one level: {"mse": {"p2": v}} becomes {"mse/p2": v}."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten_metrics(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def _group(averages: Mapping[str, float], name: str) -> dict[str, float]:
    """The members `name/...` of flat metrics, without the prefix."""
    return {k.partition("/")[2]: v for k, v in averages.items() if k.startswith(f"{name}/")}


def batch_line(i: int, n: int, averages: Mapping[str, float], lr: float) -> str:
    """One line about the epoch so far; parts whose metric is absent are left out.

    Args:
      i: batches done in this epoch.
      n: batches of the epoch.
      averages: running averages since the start of the epoch, flat names.
      lr: the learning rate.

    Returns:
      `Train Batch: [i/N] Loss: … MSE: … BPP: … GradNorm: … LR: … FPN_MSE: [L0:… …]`.
    """
    parts = [f"{_BATCH} [{i}/{n}]"]
    for label, name, digits in (
        ("Loss", "loss", 4),
        ("MSE", "mse", 6),
        ("BPP", "bpp", 4),
        ("GradNorm", "grad_norm", 3),
    ):
        if name in averages:
            parts.append(f"{label}: {averages[name]:.{digits}f}")
    parts.append(f"LR: {lr:.2e}")
    levels = _group(averages, "fpn_mse")
    if levels:
        parts.append("FPN_MSE: [" + " ".join(f"{k}:{v:.5f}" for k, v in levels.items()) + "]")
    return " ".join(parts)


def magnitude_line(averages: Mapping[str, float]) -> str | None:
    """`Feature Magnitudes: [L2:max=…]` from the metric `feature_max`, or None without one."""
    levels = _group(averages, "feature_max")
    if "feature_max" in averages:
        levels = {"": averages["feature_max"]}
    if not levels:
        return None
    items = (f"{k}:max={v:.3f}" if k else f"max={v:.3f}" for k, v in levels.items())
    return f"{_MAGNITUDES} [" + " ".join(items) + "]"


def health_alerts(
    train: Mapping[str, float], val: Mapping[str, float], rate_weight: float, alerts: Any
) -> list[str]:
    """Warnings about an epoch; metrics that a task does not have raise none.

    The loss is MSE + rate_weight · rate, so a dominating rate asks for a smaller weight.

    Args:
      train: averages over the epoch, flat names (`grad_norm`, `feature_max`).
      val: validation averages (`mse`, `bpp`), else those of training are used.
      rate_weight: the weight of the rate in the loss.
      alerts: the section `config.alerts`.

    Returns:
      One sentence for each threshold that is passed.
    """
    found = []
    if train.get("grad_norm", 0.0) > alerts.grad_norm:
        found.append(
            f"Gradient norm {train['grad_norm']:.3g} is above {alerts.grad_norm:g}: "
            "lower the learning rate or clip_norm."
        )
    ratio = rate_distortion_ratio(val, rate_weight)
    if ratio is None:
        ratio = rate_distortion_ratio(train, rate_weight)
    if ratio is not None and ratio > alerts.rate_ratio_high:
        found.append(f"RATE DOMINATES (ratio {ratio:.3g}): reduce rate_weight for a lower MSE.")
    if ratio is not None and ratio < alerts.rate_ratio_low:
        found.append(
            f"DISTORTION DOMINATES (ratio {ratio:.3g}): increase rate_weight for a lower rate."
        )
    for name, value in train.items():
        if name.partition("/")[0] == "feature_max" and value > alerts.feature_max:
            found.append(f"{name} {value:.3g} is above {alerts.feature_max:g}: check the features.")
    return found


def _rate_and_distortion(
    metrics: Mapping[str, float], rate_weight: float
) -> tuple[float | None, str, float | None]:
    """(the weighted rate, the name of the distortion, the distortion), the parts of the loss.

    A task may name them (`rate_loss`, `distortion`); else they are rate_weight · bpp and mse.
    """
    rate = metrics.get("rate_loss")
    if rate is None and "bpp" in metrics:
        rate = rate_weight * metrics["bpp"]
    name = "distortion" if "distortion" in metrics else "mse"
    return rate, name, metrics.get(name)


def rate_distortion_ratio(metrics: Mapping[str, float], rate_weight: float) -> float | None:
    """Weighted rate / distortion as they stand in the loss, or None where one is missing."""
    rate, _, distortion = _rate_and_distortion(metrics, rate_weight)
    if rate is None or not distortion:
        return None
    return rate / distortion


_SHOWN = ("loss", "mse", "bpp", "vq_loss", "det_loss", "grad_norm")


def epoch_lines(
    record: Mapping[str, Any], config: Any, best: bool, step_ms: float | None, input_wait: float
) -> list[str]:
    """The summary of an epoch for people.

    Args:
      record: {"epoch", "lr", "train", "val"} with flat averages.
      config: the whole config.
      best: whether the validation loss is the lowest so far.
      step_ms: median time of a step, if known.
      input_wait: share of the time spent waiting for data.

    Returns:
      Two to four lines: training, validation, rate-distortion balance, speed.
    """
    weight, lines = config.training.rate_weight, []
    for split in ("train", "val"):
        values = record[split]
        shown = [f"{k} {values[k]:.6g}" for k in _SHOWN if k in values]
        mark = " (best)" if best and split == "val" else ""
        lines.append(
            f"Epoch {record['epoch']}/{config.training.epochs} {split}: "
            f"{_stage_words(values)}{' '.join(shown)}{mark}"
        )
    ratio = rate_distortion_ratio(record["val"], weight)
    if ratio is not None:
        rate, name, distortion = _rate_and_distortion(record["val"], weight)
        lines.append(
            f"Rate-Distortion Balance: rate {rate:.3e} | {name} {distortion:.3e} | "
            f"Ratio: {ratio:.3f}"
        )
    speed = "" if step_ms is None else f" step {step_ms:.1f} ms, waiting for data {input_wait:.1%}"
    rate_words = f" Lambda: {weight:.2e}" if weight else ""
    lines.append(f"LR: {record['lr']:.2e}{rate_words}{speed}")
    return lines


def _stage_words(values: Mapping[str, float]) -> str:
    """Which codebook learns with how many rows, where a task tells it."""
    if not {"codebook_idx", "embed_size"} <= set(values):
        return ""
    how = ", averages" if values.get("warmup") else ""
    return f"codebook {values['codebook_idx']:.0f}, {values['embed_size']:.0f} rows{how}: "


def parameter_overview(params: PyTree) -> str:
    """The table of parameters (clu): name, shape, dtype, size; the total in the last line."""
    from clu import parameter_overview as clu_overview

    return clu_overview.get_parameter_overview(params, include_stats=False)


def truncate_jsonl(path: Path, step: int) -> None:
    """Drops lines beyond `step`, and a last line that a killed process left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    atomic_write(path, "".join(kept))


class _Console(logging.Handler):
    """Prints above the progress bar instead of through it, and leaves details to `train.log`.

    Of a table only the first and the last line are printed; lines about batches only where
    somebody watches.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if text.startswith(_DETAILS) and not sys.stdout.isatty():
                return
            lines = text.splitlines()
            if record.levelno <= logging.INFO and len(lines) > 2:
                text = f"{lines[0]} {lines[-1]}"
            tqdm.tqdm.write(text)
        except Exception:  # a closed pipe must not end a run
            self.handleError(record)


@contextlib.contextmanager
def open_handlers(path: str | os.PathLike[str], primary: bool = True) -> Iterator[None]:
    """While it is open, the logger "jaxcomp" writes to `train.log` in `path` and to the console.

    Inside another one for the same directory it changes nothing.

    Args:
      path: the run directory, made if needed.
      primary: False in all processes but the first: nothing is written.

    Raises:
      CheckpointError: the directory cannot be written.
    """
    file = Path(path) / "train.log"
    name = os.path.abspath(file)
    if any(getattr(h, "baseFilename", None) == name for h in LOG.handlers):
        yield
        return
    if not primary:  # the first process tells everything that all of them see
        level = LOG.level
        LOG.setLevel(logging.ERROR)
        try:
            yield
        finally:
            LOG.setLevel(level)
        return
    with disk_errors(path):
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers = [logging.FileHandler(file), _Console()]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    saved = (LOG.level, LOG.propagate)
    for handler in handlers:
        LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            handler.close()
        LOG.setLevel(saved[0])
        LOG.propagate = saved[1]


def _tensorboard(path: Path) -> Any:
    """A writer of event files that needs no TensorFlow."""
    try:
        import tensorboardX
    except ImportError:
        raise ConfigError(
            "config.log.tensorboard=True needs tensorboardX: pip install 'jaxcomp[tensorboard]'."
        ) from None
    return tensorboardX.SummaryWriter(str(path))


def _wandb(path: Path, config: Mapping[str, Any]) -> Any:
    """A W&B run that resumes under the name of the run directory."""
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "config.log.wandb=True needs wandb: pip install 'jaxcomp[wandb]'."
        ) from None
    return wandb.init(
        project="jaxcomp", id=path.name, dir=str(path), config=dict(config), resume="allow"
    )


class RunLog:
    """All sinks of one run; a context manager.

    While it is open, the logger "jaxcomp" writes to `train.log` and to the console.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Any,
        *,
        total_steps: int,
        step: int = 0,
        config: Mapping[str, Any] | None = None,
        primary: bool = True,
    ):
        """Opens the files.

        Args:
          path: the run directory.
          settings: the section `config.log`.
          total_steps: batches of the whole run (for the ETA).
          step: the step the run starts or resumes from.
          config: the whole config, for W&B.
          primary: False in all processes but the first: nothing is written.

        Raises:
          CheckpointError: the directory cannot be written.
          ConfigError: an extra is asked for but not installed.
        """
        self.settings = settings
        self._file = self._board = self._wandb = None
        self._handlers = contextlib.ExitStack()
        path = Path(path)
        self._path = path / "metrics.jsonl"
        self._bar: Any = tqdm.tqdm(
            total=total_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=None if settings.progress and primary else True,  # None: unless a terminal
        )
        if not primary:
            return
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            truncate_jsonl(self._path, step)
            self._file = open(self._path, "a")
        self._handlers.enter_context(open_handlers(path))
        if settings.tensorboard:
            self._board = _tensorboard(path / "tensorboard")
        if settings.wandb:
            self._wandb = _wandb(path, config or {})

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`, and its numbers to the extras."""
        if self._file is None:
            return
        line = json.dumps({"kind": kind, "step": step, **finite(values)}, allow_nan=False)
        with disk_errors(self._path):
            self._file.write(line + "\n")
        flat = flatten_metrics(values)
        numbers = {f"{kind}/{k}": v for k, v in flat.items() if isinstance(v, int | float)}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def advance(self, step: int, shown: Mapping[str, float]) -> None:
        """Moves the progress bar to `step` and shows loss, MSE and bpp where there are any."""
        if self._bar.disable:
            return
        parts = {k: f"{shown[k]:.4g}" for k in ("loss", "mse", "bpp") if k in shown}
        self._bar.set_postfix(parts, refresh=False)
        self._bar.update(step - self._bar.n)

    def flush(self) -> None:
        """Hands everything to the operating system, where it survives the death of the process."""
        if self._file is not None:
            with disk_errors(self._path):
                self._file.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Closes the files and gives the logger back as it was."""
        self._bar.close()
        self._handlers.close()
        with disk_errors(self._path):
            if self._file is not None:
                self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
