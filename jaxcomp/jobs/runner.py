"""The main path: run directory, job, training, evaluation, summary, report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxcomp import checkpoint, train
from jaxcomp import config as config_lib
from jaxcomp import workdir as workdir_lib
from jaxcomp.errors import CheckpointError
from jaxcomp.jobs import build_job, run_location
from jaxcomp.log import LOG
from jaxcomp.types import TrainState


def run(config: Any, argv: Sequence[str], *, workdir: str, mode: str, started: float) -> Any:
    """Trains and evaluates a validated config, or only evaluates a trained run directory.

    Args:
      config: what to run.
      argv: the command line, for the record.
      workdir: exactly this directory; empty: a new one, or the unfinished one of this config.
      mode: "train" or "eval".
      started: `time.time()` when the command began.

    Returns:
      The summary that was written.

    Raises:
      JaxcompError: bad input; nothing that was there is lost.
    """
    root, name = run_location(config)
    if mode == "eval" and not (Path(workdir) / "checkpoints").is_dir():
        raise CheckpointError(
            f"--mode=eval needs --workdir=DIR with a trained run, {workdir!r} holds no checkpoints"
        )
    with workdir_lib.open_workdir(
        config,
        name=name,
        root=root,
        explicit=workdir or None,
        argv=["python -m jaxcomp.main", *argv],
    ) as directory:
        if directory.finished and mode == "train":
            print(f"{directory.path} is finished; its summary:")
            return _show(directory.path)
        print(f"run directory: {directory.path}{' (resuming)' if directory.resumed else ''}")
        _use_compilation_cache()
        job = build_job(config)
        result = _trained(directory) if mode == "eval" else _train(job, config, directory)
        metrics = job.evaluate(result, directory.path, _frames_done("evaluate"))
        summary = _summary(config, argv, result, metrics, directory, started)
        directory.finish(summary)
        from jaxcomp import report

        report.build_page(directory.path)
        return _show(directory.path)


def _train(job: Any, config: Any, directory: workdir_lib.Workdir) -> train.FitResult:
    """Trains or goes on; the step's time survives a kill between training and evaluation."""
    result = train.fit(job.task, config, job.splits, directory.path, callbacks=job.callbacks)
    record = directory.path / "timing.json"
    if result.train_step_ms is not None:
        timing = {"train_step_ms": result.train_step_ms, "input_wait": result.input_wait}
        directory.write_json(record.name, timing)
    elif record.exists():
        result = dataclasses.replace(result, **json.loads(record.read_text()))
    return result


def _trained(directory: workdir_lib.Workdir) -> train.FitResult:
    """The best checkpoint of a run as a result, without training."""
    variables, meta, _ = checkpoint.load_frozen(directory.path)
    old: dict[str, Any] = {}
    if directory.finished:
        old = json.loads((directory.path / "summary.json").read_text())
    state = TrainState(
        step=meta["step"], params=variables["params"], stats=variables["stats"], opt=()
    )
    return train.FitResult(
        state=state,
        frozen={},
        history=(),
        best_epoch=old.get("best_epoch", 0),
        best_loss=old.get("best_validation_loss", float("nan")),
        epochs=old.get("epochs", 0),
        steps=old.get("steps", meta["step"]),
        stopped=old.get("stopped", "evaluated before the end"),
        skipped=old.get("skipped_steps", 0),
        train_step_ms=old.get("train_step_ms"),
        input_wait=old.get("input_wait", 0.0),
        seconds=old.get("train_seconds", 0.0),
    )


def _use_compilation_cache() -> None:
    """Keeps compiled programs between runs: a resumed or repeated run starts at once.

    The folder is named after the processor, since a home directory may serve several kinds.
    """
    if jax.config.jax_compilation_cache_dir:
        return  # the user's own choice
    cpu = workdir_lib.cpu_model() + jax.__version__
    name = hashlib.sha256(cpu.encode()).hexdigest()[:12]
    folder = Path.home() / ".cache" / "jaxcomp" / "xla" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # only speed is lost
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _frames_done(label: str) -> Callable[[int], None]:
    """A line of progress every 50 frames."""
    last = 0

    def show(frames: int) -> None:
        nonlocal last
        if frames // 50 > last:
            last = frames // 50
            LOG.info("%s: %d frames", label, frames)

    return show


def _summary(
    config: Any,
    argv: Sequence[str],
    result: train.FitResult,
    metrics: Mapping[str, Any],
    directory: workdir_lib.Workdir,
    started: float,
) -> dict[str, Any]:
    """Everything that `summary.json` holds; times of a resumed run add up."""
    before = result.seconds if directory.resumed else 0.0
    seconds = time.time() - started
    return {
        "task": config.task,
        "profile": config.profile,
        "level": config.level,
        "rate_weight": config.training.rate_weight,
        "seed": config.seed,
        "data": "synthetic scenes" if config.data.name == "scenes" else config.data.name,
        **metrics,
        "best_epoch": result.best_epoch,
        "best_validation_loss": result.best_loss,
        "epochs": result.epochs,
        "steps": result.steps,
        "stopped": result.stopped,
        "skipped_steps": result.skipped,
        "train_step_ms": result.train_step_ms,
        "input_wait": result.input_wait,
        "train_seconds": result.seconds,
        "seconds": max(seconds, before),
        "resumed": directory.resumed,
        "devices": [str(d.device_kind) for d in jax.devices()],
        "command": "python -m jaxcomp.main " + " ".join(argv),
        "config_digest": config_lib.digest(config),
        **workdir_lib.provenance(),
        "config": json.loads(config_lib.to_json(config)),
    }


def _show(path: Path) -> dict[str, Any]:
    from jaxcomp import report

    summary = json.loads((path / "summary.json").read_text())
    print(report.text_table(summary))
    print(f"summary: {path / 'summary.json'}\nreport:  {path / 'index.html'}")
    return summary
