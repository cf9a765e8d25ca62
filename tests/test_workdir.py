import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import toy
import yaml

from jaxcomp import workdir
from jaxcomp.errors import CheckpointError

HOLD = """
import sys, time, toy
from jaxcomp import workdir
run = workdir.open_workdir(toy.config(), name="kind", root=sys.argv[1])
print(run.path, flush=True)
time.sleep(60)
"""


def test_a_new_run_is_named_and_documented(tmp_path):
    config = toy.config(training__rate_weight="2.5e-4", training__learning_rate="5e-5")
    with workdir.open_workdir(config, name="kind", root=tmp_path, argv=["main", "--x=1"]) as run:
        assert re.fullmatch(r"run_\d{8}_\d{6}_lambda_2\.50e-04_lr_5\.00e-05_bs_8", run.path.name)
        assert run.path.parent == tmp_path / "kind" and not run.resumed and not run.finished
        stored = json.loads((run.path / "config.json").read_text())
        assert yaml.safe_load((run.path / "config_used.yaml").read_text()) == stored
        assert stored["training"]["learning_rate"] == 5e-5
        assert "command: main --x=1" in (run.path / "command_args.txt").read_text()
        provenance = json.loads((run.path / "provenance.json").read_text())
        assert provenance["versions"]["jax"] and provenance["hardware"]["cores"] >= 1
        assert not list(run.path.glob("*.tmp"))


def test_an_unfinished_run_is_resumed_and_a_finished_one_is_not(tmp_path):
    def start(**changes):
        with workdir.open_workdir(toy.config(**changes), name="kind", root=tmp_path) as run:
            return run

    first = start()
    again = start(log__every_steps=1)
    assert again.path == first.path and again.resumed
    assert start(seed=1).path != first.path
    first.finish({"loss": 1.0})
    assert first.finished and start().path != first.path


def test_another_config_in_the_given_directory_is_refused(tmp_path):
    workdir.open_workdir(toy.config(), name="", explicit=tmp_path / "w").close()
    with pytest.raises(CheckpointError, match=r"another config \(seed 0 -> 3\).*rename it"):
        workdir.open_workdir(toy.config(seed=3), name="", explicit=tmp_path / "w")
    with workdir.open_workdir(toy.config(), name="", explicit=tmp_path / "w") as run:
        assert run.resumed


@pytest.mark.parametrize("name", ["checkpoints", "config.json"])
@pytest.mark.parametrize("provenance", [None, '{"config_dig'])
def test_a_run_without_provenance_is_not_adopted(tmp_path, name, provenance):
    (tmp_path / name).mkdir() if name == "checkpoints" else (tmp_path / name).write_text("{}")
    if provenance:
        (tmp_path / "provenance.json").write_text(provenance)
    with pytest.raises(CheckpointError, match=f"holds {name}.*no readable provenance"):
        workdir.open_workdir(toy.config(), name="", explicit=tmp_path)
    assert (tmp_path / "config_used.yaml").exists() is False


def test_a_digest_made_in_another_way_is_computed_anew(tmp_path):
    workdir.open_workdir(toy.config(), name="", explicit=tmp_path / "w").close()
    file = tmp_path / "w" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config_digest": "of old"}))
    with workdir.open_workdir(toy.config(), name="", explicit=tmp_path / "w") as run:
        assert run.resumed


def test_json_is_strict(tmp_path):
    with workdir.open_workdir(toy.config(), name="", explicit=tmp_path / "w") as run:
        values = {"a": float("nan"), "b": [1.0, float("inf")], "c": np.array([2.0, np.nan])}
        text = run.finish(values).read_text()
    assert json.loads(text) == {"a": None, "b": [1.0, None], "c": [2.0, None]}
    assert "NaN" not in text


def test_the_lock_refuses_a_second_process_and_dies_with_the_first(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.getcwd()])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        path = holder.stdout.readline().strip()
        with pytest.raises(CheckpointError, match=f"in use by process {holder.pid}"):
            workdir.open_workdir(toy.config(), name="kind", root=tmp_path)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with workdir.open_workdir(toy.config(), name="kind", root=tmp_path) as run:
        assert str(run.path) == path and run.resumed


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, "disk is full"), (30, "read-only"), (36, "too long"), (5, "Input/output error")],
)
def test_disk_errors_are_worded(tmp_path, monkeypatch, number, words):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match=words):
        workdir.atomic_write(tmp_path / "x", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_root_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        workdir.open_workdir(toy.config(), name="kind", root=tmp_path / "file")


def test_runs_of_one_second_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "run_name", lambda config, now: "run_same")
    paths = []
    for seed in range(3):
        with workdir.open_workdir(toy.config(seed=seed), name="k", root=tmp_path) as run:
            paths.append(run.path.name)
    assert paths == ["run_same", "run_same_2", "run_same_3"]
