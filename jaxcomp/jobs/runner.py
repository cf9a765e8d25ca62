"""The main path: run directory, job, training, evaluation, summary, report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxcomp import checkpoint, log, processes, sharding, train, trees
from jaxcomp import config as config_lib
from jaxcomp import workdir as workdir_lib
from jaxcomp.compile_cache import keep_compiled
from jaxcomp.errors import CheckpointError, JaxcompError
from jaxcomp.jobs import build_job, check_job, run_location
from jaxcomp.log import LOG
from jaxcomp.progress import Progress
from jaxcomp.report.reading import read_arrays, read_json, read_records, read_summary
from jaxcomp.types import TrainState

DATA_RECORD = "data.json"


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
    check_job(config)  # before a directory is made for what cannot run
    if mode == "train":
        sharding.make_mesh(fsdp=config.mesh.fsdp)
    root, name = run_location(config)
    if mode == "eval" and not (workdir and (Path(workdir) / "checkpoints").is_dir()):
        raise CheckpointError(
            f"--mode=eval needs --workdir=DIR with a trained run, {workdir!r} holds no checkpoints"
        )
    with _open(config, argv, root, name, workdir) as directory:
        if directory.finished and mode == "train":
            return _show(directory.path, f"{directory.path} is finished; its summary:")
        if processes.is_primary():
            print(f"run directory: {directory.path}{' (resuming)' if directory.resumed else ''}")
        with log.open_handlers(directory.path, processes.is_primary()):
            keep_compiled(jax.config, min_seconds=0.5)
            try:
                _train_and_evaluate(config, argv, directory, mode, started)
            except JaxcompError:
                directory.discard_unused()
                raise
        processes.wait_for_all("the summary")
        return _show(directory.path)


@contextlib.contextmanager
def _open(config: Any, argv: Sequence[str], root: str, name: str, explicit: str) -> Iterator[Any]:
    """The run directory. Of several processes the first one opens it, the others follow."""
    opened: list[workdir_lib.Workdir] = []

    def first() -> dict[str, Any]:
        one = workdir_lib.open_workdir(
            config,
            name=name,
            root=root,
            explicit=explicit or None,
            argv=["python -m jaxcomp.main", *argv],
        )
        opened.append(one)
        return {"path": str(one.path), "resumed": one.resumed, "finished": one.finished}

    digest = config_lib.digest(config)
    processes.check_agreement(digest, "config", "start all with the same command")
    told = processes.from_primary(first, "run directory")
    with contextlib.closing(opened[0] if opened else workdir_lib.FollowedWorkdir(**told)) as one:
        yield one


def _train_and_evaluate(
    config: Any, argv: Sequence[str], directory: workdir_lib.Workdir, mode: str, started: float
) -> None:
    """Everything between opening the run directory and its summary, which is written last."""
    timing = _Timing(directory, started)
    try:
        evaluated = _trained(directory, timing) if mode == "eval" else None
        if evaluated and not processes.is_primary():
            return  # there is nothing to share out
        job = build_job(config)
        if evaluated:
            _check_data(job, directory)
            _check_frozen(job, directory)
        else:
            processes.check_agreement(job.fingerprint, "data set", "give all of them the same data")
            processes.from_primary(lambda: _check_data(job, directory), "record of the data")
        result = evaluated or _train(job, config, directory, timing)
        if not processes.is_primary():
            return
        with workdir_lib.disk_errors(directory.path):
            metrics = job.evaluate(result, directory.path, _frames_done("evaluate"))
    except BaseException:
        with contextlib.suppress(CheckpointError):
            timing.save()
        raise
    seconds = max(timing.seconds(), result.seconds)
    if directory.finished:  # measured again: training took what it took
        seconds = read_json(directory.path / "summary.json").get("seconds", seconds)
    content = _summary(config, argv, result, metrics, directory, seconds)
    summary = json.loads(workdir_lib.json_text(content))
    # The page comes first: a run that ends between the two is not finished and makes both again.
    with workdir_lib.disk_errors(directory.path):
        _write_page(directory.path, summary)
    directory.finish(summary)


def _check_data(job: Any, directory: workdir_lib.Workdir) -> None:
    """Records which data a run is trained on, and refuses to go on with others.

    Raises:
      CheckpointError: the record names other data.
    """
    known = read_json(directory.path / DATA_RECORD).get("fingerprint")
    if known is None:
        directory.write_json(DATA_RECORD, {"fingerprint": job.fingerprint})
    elif known != job.fingerprint:
        raise CheckpointError(
            f"{str(directory.path)!r} was started on other data (frames, sizes or labels differ); "
            "give the folder it had, or another --workdir"
        )


def _write_page(path: Path, summary: Mapping[str, Any]) -> None:
    """The report page of a run whose `summary.json` is about to be written."""
    from jaxcomp.report import page

    text = page.run_page(
        summary, summary["config"], read_records(path), read_arrays(path), page.more_pages(path)
    )
    workdir_lib.atomic_write(path / page.PAGE, text)


class _Timing:
    """Times of a run over all its processes, kept in `timing.json`; saved after each epoch.

    Attributes:
      values: what is on record: `wall_seconds` and, after training, `train_seconds`,
        `train_step_ms` and `input_wait`.
    """

    def __init__(self, directory: workdir_lib.Workdir, started: float):
        self.values = read_json(directory.path / "timing.json")
        self._directory, self._started = directory, started
        self._before = float(self.values.get("wall_seconds", 0.0))

    def seconds(self) -> float:
        """Wall time of this process and of those before it."""
        return self._before + time.time() - self._started

    def save(self, **values: Any) -> None:
        """Adds values to the record, and the wall time so far unless the run was finished."""
        if not self._directory.finished:
            self.values |= values | {"wall_seconds": self.seconds()}
            self._directory.write_json("timing.json", self.values)


def _train(
    job: Any, config: Any, directory: workdir_lib.Workdir, timing: _Timing
) -> train.FitResult:
    """Trains or goes on; the step's time survives a kill between training and evaluation."""
    callbacks = (*job.callbacks, lambda epoch: timing.save())
    result = train.fit(
        job.task, config, job.splits, directory.path, callbacks=callbacks, stop=job.stop
    )
    if result.train_step_ms is not None:
        timing.save(
            train_step_ms=result.train_step_ms,
            input_wait=result.input_wait,
            train_seconds=result.seconds,
        )
        return result
    known = timing.values
    return dataclasses.replace(
        result,
        train_step_ms=known.get("train_step_ms"),
        input_wait=known.get("input_wait", result.input_wait),
        seconds=known.get("train_seconds", result.seconds),
    )


def _check_frozen(job: Any, directory: workdir_lib.Workdir) -> None:
    """Raises unless the frozen weights are those of the training."""
    record = checkpoint.load_frozen(directory.path)[1]["record"]
    frozen = getattr(job.task, "frozen", None)
    if frozen is not None and trees.tree_digest(frozen) != record["frozen_digest"]:
        raise CheckpointError(
            f"{str(directory.path)!r} was trained with other frozen weights; give the same "
            "config.detector.path, and the same file there."
        )


def _trained(directory: workdir_lib.Workdir, timing: _Timing) -> train.FitResult:
    """The best checkpoint of a completed training as a result.

    Raises:
      CheckpointError: the training is not complete, or the checkpoint cannot be read.
    """
    variables, meta, _ = checkpoint.load_frozen(directory.path)
    progress = Progress(**meta["record"])
    if not progress.done:
        raise CheckpointError(
            f"{str(directory.path)!r}: the training is not complete (epoch {progress.epoch}, step "
            f"{progress.step}); finish it first by the same command without --mode=eval."
        )
    # Summaries of earlier versions hold what their timing.json does not.
    known = read_json(directory.path / "summary.json") | timing.values
    state = TrainState(
        step=meta["step"], params=variables["params"], stats=variables["stats"], opt=()
    )
    return train.FitResult(
        state=state,
        frozen={},
        history=progress.history,
        best_epoch=progress.best.get("epoch", progress.epoch),
        best_loss=progress.best.get("loss", math.nan),
        epochs=progress.run[0],
        steps=progress.run[1],
        stopped=progress.done,
        skipped=progress.skipped,
        train_step_ms=known.get("train_step_ms"),
        input_wait=known.get("input_wait", 0.0),
        seconds=known.get("train_seconds", progress.seconds),
    )


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
    seconds: float,
) -> dict[str, Any]:
    """Everything that `summary.json` holds; `seconds` is the wall time of all processes."""
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
        "seconds": seconds,
        "resumed": directory.resumed,
        "devices": [str(d.device_kind) for d in jax.devices()],
        "command": "python -m jaxcomp.main " + " ".join(argv),
        "config_digest": config_lib.digest(config),
        **workdir_lib.provenance(),
        "config": json.loads(config_lib.to_json(config)),
    }


def _show(path: Path, title: str = "") -> dict[str, Any]:
    """Prints the summary of a finished run, whose page is made again if it is gone."""
    from jaxcomp import report

    summary = read_summary(path)
    if not processes.is_primary():
        return summary
    if title:
        print(title)
    if not (path / "index.html").exists():
        report.build_page(path)
    print(report.text_table(summary))
    print(f"summary: {path / 'summary.json'}\nreport:  {path / 'index.html'}")
    return summary
