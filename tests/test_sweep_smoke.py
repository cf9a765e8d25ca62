"""The smoke form of the sweep, as the documented command runs it: codecs, anchors, page, again."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxcomp.evaluate.anchors import KINDS, anchors

ROOT = Path(__file__).parents[1]
TABLES = (
    "rate_accuracy.csv",
    "rate_accuracy.md",
    "rate_accuracy.tex",
    "bd.csv",
    "bd.md",
    "gains.md",
)


def sweep(folder):
    """Starts the script; its output."""
    environment = {
        **os.environ,
        "TFDS_DATA_DIR": str(folder / "data"),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    words = ["--config=configs/fpn_lambda_sweep.py:smoke", "--jobs=2"]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "launch/sweep.py", *words, f"--config.sweep.root={folder / 'root'}"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    logs = "\n".join(file.read_text() for file in sorted(folder.glob("root/*/*.log")))
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{logs[-2000:]}"
    print(f"{time.monotonic() - start:.0f} s")
    return done.stdout, logs


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(folder, output, logs) of the first start."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, *sweep(folder)


def test_every_run_is_finished_on_features_that_were_made_once(swept):
    folder, out, logs = swept
    with (folder / "root" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [(row["member"], float(row["rate_weight"]), row["state"]) for row in rows]
    finished = "finished"
    assert names == [
        ("joint_task", 0.1, finished), ("random", 0.01, finished), ("random", 0.1, finished),
    ]  # fmt: skip
    assert all(float(row["bytes_per_frame"]) > 0 for row in rows)
    assert "3 runs, 0 finished, 2 at a time" in out
    assert logs.count("Features of about") == 1 and logs.count("are read from") == 3


def test_the_report_has_every_codec_and_anchor(swept):
    report = swept[0] / "root_report"
    found = json.loads((report / "rate_accuracy.json").read_text())
    learned = [(p["system"], p["setting"]) for p in found["points"] if p["kind"] == "learned"]
    assert learned == [
        ("joint, task + feature loss, straight-through", 0.1),
        ("random, feature loss", 0.01), ("random, feature loss", 0.1),
    ]  # fmt: skip
    offered = [anchors(kind) for kind in KINDS]
    names = {p["name"] for p in found["points"] if p["kind"] != "learned"}
    assert names == {anchor.label for offer in offered for anchor in offer.anchors}
    assert set(found["missing"]) == {name for offer in offered for name in offer.missing}
    curves = {row["system"] for row in found["systems"] if row["kind"] in ("feature", "image")}
    pairs = {(row["test"], row["anchor"]) for row in found["bd"]}
    assert {anchor for test, anchor in pairs if test == learned[1][0]} >= curves
    assert all((report / name).stat().st_size > 50 for name in TABLES)
    assert "random, feature loss" in (report / "gains.md").read_text()
    with (report / "rate_accuracy.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found["points"])


def test_the_page_shows_the_figures_and_loads_nothing(swept):
    report = swept[0] / "root_report"
    text = (report / "index.html").read_text()
    figures = {path.stem for path in report.glob("figures/*.svg")}
    wanted = {f"rate_accuracy_{name}" for name in ("map50", "map75", "f1_50")}
    assert figures >= wanted | {"rate_distortion", "level_shares", "codec_times", "latency"}
    assert text.count('class="chart') >= len(figures)
    assert "<script" not in text and not re.search(r'(src|href)="(?!data:|#)', text)


def test_a_second_start_does_nothing(swept):
    folder = swept[0]
    kept = [*folder.rglob("summary.json"), *folder.rglob("codec.npz"), *folder.rglob("points/*")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) > 3 + 3 + 2 * 4
    out, logs = sweep(folder)
    count = len(list(folder.glob("root_report/points/*.json"))) - 1  # one is the uncompressed
    assert "3 runs, 3 finished" in out and f"{count} of {count} points are there already" in out
    assert logs == swept[2]
    assert {path: path.stat().st_mtime_ns for path in kept} == before
