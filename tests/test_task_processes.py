"""Every workload by two processes: it trains, is measured and ends as by one."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import lidar_toy
import numpy as np
import pytest

from jaxcomp import main, weights_file
from jaxcomp.loaders_lidar import KIND
from jaxcomp.models.pointpillars import PointPillars
from jaxcomp.tasks.pointpillars import init_variables

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).parents[1]
BOUND = 1200  # seconds on a loaded machine
IMAGES = {"data.height": 64, "data.width": 96, "data.train_size": 8, "data.val_size": 6}
CODEC = IMAGES | {"model.n_hidden": 8, "model.n_channels": 8, "model.stages": 1}
RUN = {"training.batch_size": 4, "training.epochs": 1, "log.progress": False, "log.every_steps": 1}
SWEEPS = {"data.name": "kitti", "data.train_size": 0, "data.val_size": 0}
SWEEPS |= {"data.pad_points": 1024, "data.max_boxes": 8, "data.num_threads": 0}
JEPA = {
    "data.height": 16, "data.width": 16, "data.train_size": 8, "data.val_size": 6,
    "training.lr_schedule.warmup_epochs": 0, "model.width": 16, "model.depth": 1, "model.heads": 2,
    "model.predictor_depth": 1, "model.predictor_heads": 2, "evaluation.probe_rows": 10,
}  # fmt: skip
TASKS = {
    "level": ("configs/fpn_level.py", CODEC),
    "joint": ("configs/fpn_joint.py", CODEC),
    "random": ("configs/fpn_random.py", CODEC),
    "detect": ("configs/detector.py", IMAGES | {"training.lr_schedule.warmup_epochs": 0}),
    "pointpillars": ("configs/pointpillars.py", SWEEPS | {
        f"model.{k}": v for k, v in lidar_toy.SIZES.items()
    } | {"training.batch_size": 2}),
    "residual": ("configs/pointpillars_rq.py:codebooks=1,stage_epochs=1", SWEEPS | {
        "progressive_learning.embedding_schedule": (2, 4), "training.epochs": 2,
        "training.batch_size": 2,
    }),
    "jepa": ("configs/hjepa.py:fpn=add,feature_dim=8", JEPA),
    "face": ("configs/featherface.py:v1", {
        "data.height": 64, "data.width": 64, "data.largest": 60.0, "data.train_size": 8,
        "data.val_size": 6, "training.lr_schedule.warmup_epochs": 0,
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of data and of the weights of a lidar detector that has never seen anything."""
    root = tmp_path_factory.mktemp("tasks")
    lidar_toy.kitti_folder(root / "kitti")
    variables = init_variables(PointPillars(lidar_toy.CFG), jax.random.key(0))
    meta = {"kind": KIND, "model": lidar_toy.SIZES, "classes": ("Pedestrian", "Cyclist", "Car")}
    weights_file.export_npz(root / "detector.npz", variables, meta)
    return root


LONG = {  # 20 steps and more, in batches that four devices share
    name: {"training.epochs": 20, "training.batch_size": 4} for name in TASKS if name != "detect"
}
LONG["residual"]["progressive_learning.embedding_stage_epochs"] = 10


def command(place, name, workdir, more=None):
    """The arguments of the main command."""
    spec, values = TASKS[name]
    values = RUN | values | (more or {})
    if "data.pad_points" in values:
        values = values | {"data.dir": str(place / "kitti")}
    if name == "residual":
        values = values | {"detector.path": str(place / "detector.npz")}
    return [f"--config={spec}", f"--workdir={workdir}",
            *(f"--config.{k}={v}" for k, v in values.items())]  # fmt: skip


def together(place, commands, folder, devices=1):
    """(statuses, logs) of two processes, each with its devices and its list of command lines."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} "
    flags += "--xla_backend_optimization_level=0"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT),
        "TFDS_DATA_DIR": str(place / "data"),
    }  # fmt: skip
    script, members, logs = str(Path(__file__).with_name("task_process.py")), [], []
    for i, lines in enumerate(commands):
        words, log = folder / f"commands_{i}.json", folder / f"process_{i}.log"
        words.write_text(json.dumps(lines))
        argv = [sys.executable, script, str(words), f"127.0.0.1:{port}", "2", str(i)]
        with log.open("w") as file:
            members.append(subprocess.Popen(argv, env=env, cwd=ROOT, stdout=file, stderr=file))
        logs.append(log)
    try:
        end = time.monotonic() + BOUND
        statuses = [member.wait(max(1, end - time.monotonic())) for member in members]
    finally:
        for member in members:
            member.kill()
            member.wait()
    return statuses, [log.read_text() for log in logs]


def records(run, kind):
    """The lines of one kind of the log."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def compare(name, run, alone):
    """Two processes of one device against one of four: the losses of every epoch.

    The detector trains on proposals that are chosen by rank, and a random start gives nearly equal
    scores: how the work is split may decide. So of its first step, what does not depend on them.
    """
    ours, theirs = records(run, "epoch"), records(alone, "epoch")
    assert len(ours) == len(theirs) > 0
    pairs = [(a[part]["loss"], b[part]["loss"]) for a, b in zip(ours, theirs, strict=True)
             for part in ("train", "val")]  # fmt: skip
    if name == "detect":
        first, other = records(run, "batch")[0], records(alone, "batch")[0]
        pairs = [(first[key], other[key]) for key in ("rpn_class", "rpn_box")]
        np.testing.assert_allclose(first["loss"], other["loss"], rtol=1e-3)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)


def check(place, names, folder, monkeypatch):
    """Two processes, then one, and what both leave."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(place / "data"))
    monkeypatch.chdir(ROOT)
    lines = [command(place, name, folder / name) for name in names]
    lines.append([*lines[-1], "--mode=eval"])
    statuses, logs = together(place, [lines] * 2, folder)
    assert statuses == [0, 0], "\n".join(log[-3000:] for log in logs)
    for name in names:
        alone = folder / f"{name}_alone"
        assert main.main(command(place, name, alone)) == 0
        compare(name, folder / name, alone)
        files = [{str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
                 for run in (folder / name, alone)]  # fmt: skip
        left = {f for f in files[0] ^ files[1] if "checkpoints/" not in f}
        assert not left, left
        one, other = (json.loads((run / "summary.json").read_text())
                      for run in (folder / name, alone))  # fmt: skip
        assert set(one) == set(other) and one["steps"] == other["steps"] >= 2
        shutil.rmtree(alone)
    # The first process tells, the other only what goes wrong.
    assert logs[0].count("summary: ") == len(lines) and "summary: " not in logs[1]


# Up to two minutes of processor time each.
@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_task_by_two_processes_is_that_by_one(name, place, tmp_path, monkeypatch):
    check(place, [name], tmp_path, monkeypatch)


# Up to three minutes of processor time each. Not the detector: its proposals are chosen by rank.
@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_twenty_steps_by_two_processes_of_two_devices(name, place, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(place / "data"))
    monkeypatch.chdir(ROOT)
    line = command(place, name, tmp_path / name, LONG[name])
    statuses, logs = together(place, [[line]] * 2, tmp_path, devices=2)
    assert statuses == [0, 0], "\n".join(log[-3000:] for log in logs)
    alone = tmp_path / "alone"
    assert main.main(command(place, name, alone, LONG[name])) == 0
    assert json.loads((alone / "summary.json").read_text())["steps"] >= 20
    compare(name, tmp_path / name, alone)


def test_a_file_that_one_process_cannot_read_ends_both(place, tmp_path):
    shutil.copytree(place / "kitti", tmp_path / "kitti")
    for i in range(4):
        os.truncate(tmp_path / f"kitti/training/velodyne_reduced/{i:06d}.bin", 100)
    good = command(place, "pointpillars", tmp_path / "run")
    bad = [word.replace(str(place / "kitti"), str(tmp_path / "kitti")) for word in good]
    began = time.monotonic()
    statuses, logs = together(place, [[good], [bad]], tmp_path)
    assert statuses == [1, 1], logs
    assert time.monotonic() - began < BOUND / 2
    told = next(line for line in logs[1].splitlines() if line.startswith("error: "))
    assert "has no usable sweep" in told
    words = told.removeprefix("error: ").rstrip(".")
    assert f"process 1 failed: {words}" in logs[0] and "Traceback" not in "".join(logs)
