"""What many processes need is made once; who waits goes on when the maker has ended."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxcomp.data import feature_store
from jaxcomp.data.scenes import ScenesSettings
from jaxcomp.data.waiting import one_at_a_time

ROOT = Path(__file__).parents[1]
HOLDER = """
import pathlib, sys, time
from jaxcomp.data.waiting import one_at_a_time
with one_at_a_time(pathlib.Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""
MAKER = """
import json, sys
from jaxcomp.data.scenes import ScenesSettings, prepare_scenes
builder = prepare_scenes(ScenesSettings(**json.loads(sys.argv[2])), sys.argv[1])
print(builder.info.splits["train"].num_examples)
"""


def start(code, *words):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_nobody_waits_for_a_process_that_was_killed(tmp_path):
    path = tmp_path / "folder" / "lock"
    with start(HOLDER, path) as holder:
        assert holder.stdout.readline() == "held\n"
        told = []

        def say():
            told.append("waits")
            holder.kill()

        with one_at_a_time(path, say):
            assert told == ["waits"] and holder.wait() == -9
    with one_at_a_time(path, lambda: pytest.fail("free, but waited for")):
        pass


def test_without_locks_nobody_waits(tmp_path):
    (tmp_path / "file").write_text("")
    with one_at_a_time(tmp_path / "file" / "lock", lambda: pytest.fail("waited")):
        pass


def test_two_runs_that_start_together_make_one_store(tmp_path):
    origin, made, barrier = {"detector": "abc"}, [], threading.Barrier(2)

    def batches():
        made.append("features")
        threading.Event().wait(0.2)
        yield {"p2": np.ones((3, 2, 2, 1), np.float32)}

    def run():
        barrier.wait()
        with feature_store.sole_writer(tmp_path, origin, lambda: made.append("waits")):
            if feature_store.open_store(tmp_path, origin) is None:
                splits = {split: batches() for split in feature_store.SPLITS}
                feature_store.write_store(tmp_path, origin, splits)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(made) == ["features", "features", "waits"]  # of two splits, once each
    assert feature_store.open_store(tmp_path, origin) is not None


def test_frames_are_rendered_by_one_process(tmp_path):
    sizes = {"train_size": 2, "val_size": 1, "height": 64, "width": 96}
    name = ScenesSettings(**sizes).name()
    with one_at_a_time(tmp_path / "scenes" / f".{name}.lock", lambda: None):
        maker = start(MAKER, tmp_path, json.dumps(sizes))
        line = maker.stderr.readline()
        assert "another process makes these frames" in line, line
        assert not (tmp_path / "scenes" / name).exists()
    out, err = maker.communicate(timeout=120)
    assert maker.returncode == 0 and out.strip() == "2", err
    assert any((tmp_path / "scenes" / name).iterdir())
