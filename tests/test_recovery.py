"""Recovery of a small run as its own process: damaged files, a full disk, odd clocks and locales.

`python -m tests.recovery_drill` does the same to the main job, with kills at random moments.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import toy
from test_processes import forget_the_end

from jaxcomp import optim, train
from jaxcomp.checkpoint import Checkpointer
from jaxcomp.log import LOG
from jaxcomp.trees import tree_digest

FAST = "--xla_backend_optimization_level=0"  # to compile, which is most of it
TESTS = Path(__file__).parent
EPOCHS = 4


def script(folder, *words, **env):
    """Trains the toy in `folder`/run; (status, output, its record if it ended well)."""
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    words = (f"training.epochs={EPOCHS}", *words)
    done = subprocess.run(
        [sys.executable, str(TESTS / "toy_process.py"), str(folder / "run"), str(out), *words],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "XLA_FLAGS": FAST, **env},
        capture_output=True, timeout=300,
    )  # fmt: skip
    text = done.stderr.decode(errors="replace")
    return done.returncode, text, json.loads(out.read_bytes()) if out.exists() else None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    status, text, record = script(tmp_path_factory.mktemp("undisturbed"))
    assert status == 0, text
    return record


def test_another_clock_zone_and_locale_change_nothing(undisturbed, tmp_path):
    """No UTF-8 by default; then files from the future and from 1970, moved to odd letters."""
    plain, odd = tmp_path / "plain", tmp_path / "läuft — 跑 (1)"
    plain.mkdir()
    env = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C"}
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, text, _ = script(plain, "training.epochs=2", **env, **ascii_only)
    assert status == 0, text
    forget_the_end(plain / "run")
    for i, path in enumerate(sorted(plain.rglob("*"))):
        os.utime(path, (4e9, 4e9) if i % 2 else (0, 0))
    plain.rename(odd)
    status, text, record = script(odd, **(env | {"TZ": "Etc/GMT+12"}))
    assert status == 0, text
    assert record == undisturbed


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        status, text, _ = script(disk)
        assert status == 4 and "error: " in text and "disk is full" in text, text
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        status, text, record = script(disk)
        assert status == 0, text
        assert record == undisturbed
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def a_byte_less(folder):
    """Restores copies of a run's checkpoints, each with one file a byte shorter."""
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    LOG.addHandler(handler)
    config = toy.config(training__epochs=2)
    train.fit(toy.Toy(), config, toy.splits(), folder)
    original = folder / "checkpoints"
    state = train.create_state(
        toy.Toy(), optim.make_optimiser(config.training, 5), jax.random.key(0),
        next(toy.Endless(8)),
    )[0]  # fmt: skip
    with Checkpointer(original) as saver:
        saved = {step: tree_digest(saver.restore(state, step)[0]) for step in (5, 10)}
    files = [p for p in sorted((original / "10").rglob("*")) if p.is_file() and p.stat().st_size]
    fallen = 0
    for victim in files:
        copy = folder / "copy"
        shutil.copytree(original, copy)
        os.truncate(copy / victim.relative_to(original), victim.stat().st_size - 1)
        told.clear()
        with Checkpointer(copy) as saver:
            found, _, step = saver.restore_latest(state)
        assert tree_digest(found) == saved[step], victim
        warned = "Checkpoint 10 is damaged; going back to step 5." in told
        assert warned == (step == 5) == (not (copy / "10").exists()), victim
        fallen += step == 5
        shutil.rmtree(copy)
    assert 2 <= fallen <= len(files)


def test_a_byte_less_in_any_file_of_a_checkpoint_is_harmless(tmp_path):
    """The checkpoint is as it was, as the store leaves unused bytes, or the one before is used.

    In a process of its own: where one array cannot be read, the store's other reads report to an
    event loop that is closed by then, at any time, which would fail any test.
    """
    code = "import sys, pathlib, test_recovery as t; t.a_byte_less(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=TESTS, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_drills_of_the_main_job(tmp_path):
    """Two kills and all others; the documented command does twenty."""
    words = [sys.executable, "-m", "tests.recovery_drill", "--kills", "2"]
    env = {**os.environ, "XLA_FLAGS": "", "TFDS_DATA_DIR": str(tmp_path)}
    done = subprocess.run(words, cwd=TESTS.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2/2 kills recovered bit by bit" in done.stdout
