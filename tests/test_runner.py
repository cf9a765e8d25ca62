"""What surrounds training: times, summaries, pages and refusals, with a toy workload."""

import errno
import json
import os
import signal

import pytest
import toy

from jaxcomp import main, workdir
from jaxcomp.errors import CheckpointError
from jaxcomp.jobs import runner
from jaxcomp.jobs.job import Job
from jaxcomp.log import LOG


def evaluate(result, path, progress):
    LOG.info("evaluating %s", path.name)
    return {"frames": 3, "value": float("nan"), "stopped_by": result.stopped}


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Runs the toy in `tmp_path`/run; `job` replaces parts of it."""

    def run(mode="train", config=None, **job):
        parts = {"task": toy.Toy(), "splits": toy.splits(), "callbacks": (), "evaluate": evaluate}
        monkeypatch.setattr(runner, "build_job", lambda config: Job(**parts | job))
        monkeypatch.setattr(runner, "check_job", lambda config: None)
        monkeypatch.setattr(runner, "keep_compiled", lambda *_, **__: None)
        config = config or toy.config(training__epochs=2)
        began = runner.time.time() - 100.0  # as if the command took that long to begin
        return runner.run(config, [], workdir=str(tmp_path / "run"), mode=mode, started=began)

    return run


def interrupt(epoch):
    if epoch.epoch == 1:
        os.kill(os.getpid(), signal.SIGINT)


def stop(*args):
    raise KeyboardInterrupt


def strict(path):
    def refuse(word):
        raise AssertionError(word)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_run_that_is_not_trained_to_the_end_is_not_evaluated(start, tmp_path):
    with pytest.raises(runner.train.Interrupted):
        start(callbacks=(interrupt,))
    with pytest.raises(CheckpointError, match=r"epoch 1, step 5.*without --mode=eval"):
        start("eval")
    assert not (tmp_path / "run" / "summary.json").exists()
    summary = start()
    assert (summary["epochs"], summary["stopped"]) == (2, "epochs")


def test_times_add_up_over_processes_and_evaluating_again_keeps_them(start, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        start(evaluate=stop)
    first = start()
    assert 200 < first["seconds"] < 290 and first["train_seconds"] < 90
    assert first["train_step_ms"] > 0
    again = start("eval")
    for name in ("seconds", "train_seconds", "train_step_ms", "best_epoch", "epochs", "stopped"):
        assert again[name] == first[name], name
    assert strict(tmp_path / "run" / "summary.json")["value"] is None
    assert set(strict(tmp_path / "run" / "timing.json")) >= {"wall_seconds", "train_seconds"}


def test_a_trained_run_without_a_summary_can_be_evaluated(start):
    with pytest.raises(KeyboardInterrupt):
        start(evaluate=stop)
    summary = start("eval")
    assert summary["stopped_by"] == "epochs" and summary["best_validation_loss"] > 0


def test_the_page_is_there_before_the_summary(start, tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.Workdir, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        start()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "index.html").exists()


def test_a_finished_run_gets_its_lost_page_back(start, tmp_path, capsys):
    start()
    (tmp_path / "run" / "index.html").unlink()
    start()
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "index.html").exists()


def test_what_happens_outside_training_is_told(start, tmp_path, capsys):
    start()
    out, log = capsys.readouterr().out, (tmp_path / "run" / "train.log").read_text()
    assert "evaluating run" in out and "evaluating run" in log
    assert log.count("Epoch 1/2 val") == out.count("Epoch 1/2 val") == 1
    assert "Train Batch" in log and "Train Batch" not in out
    assert "dense/kernel" in log and "dense/kernel" not in out and "Parameters: Total: 4" in out


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "Input/output error")]
)
def test_a_disk_that_fails_in_the_evaluation_is_worded(start, number, words):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    with pytest.raises(CheckpointError, match=words):
        start(evaluate=fail)


def test_evaluation_needs_a_run(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "check_job", lambda config: None)
    with pytest.raises(CheckpointError, match="needs --workdir"):
        runner.run(toy.config(), [], workdir="", mode="eval", started=0.0)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (OSError(36, "File name too long"), 1)]
)
def test_main_words_everything_in_one_line(error, status, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(main, "run", fail)
    monkeypatch.setattr(main.config_lib, "load_config", lambda *args: None)
    assert main.main(["--config=x.py"]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1
