"""The page of residual codes: every figure is there and shows what it says."""

import json
import re

import lidar_toy as toy
import numpy as np
import pytest

from jaxcomp.data.lidar import kitti_frames
from jaxcomp.data.lidar_records import LidarRecords
from jaxcomp.jobs import rq_figures, rq_grid, rq_page
from jaxcomp.tasks.stages import StageSchedule

SIZES, BOOKS = (16, 64), 3


def entry(name, size, ap, **more):
    return {"system": name, "name": name, "bytes": size, rq_figures.AP: ap} | more


def make_table():
    rows = []
    for k in range(1, BOOKS + 1):
        for n in SIZES:
            point = {"codebooks": k, "embeddings": n, "saved": 0.2, "ratio": 20.0}
            rows.append(entry("residual codes", 100.0 * k + n, 50.0 + k, **point))
            rows[-1]["name"] = rq_grid.point_name((n,) * k)
    anchors = [entry("points-laz-1cm", 9e3, 60.0), entry("points-draco-1cm", 8e3, 5.0)]
    return [*rows, *anchors, entry(rq_grid.UNCOMPRESSED, 1e5, 61.0)]


def records(folder, plan):
    """`metrics.jsonl` as training writes it."""
    lines = []
    for epoch in range(1, plan.epochs + 1):
        warm = float((epoch - 1) % plan.stage_epochs < plan.warmup_epochs)
        train = {"vq_loss": 1 / epoch, "det_loss": 1 - warm, "warmup": warm, "perplexity": epoch}
        for k in range(plan.codebooks) if plan.joint else ():
            train |= {f"perplexity/{k}": epoch + k, f"dead/{k}": 0.1 * k}
        train["dead"] = 0.1
        val = {"vq_loss": 1 / epoch, "det_loss": 1.0}
        lines.append(json.dumps({"kind": "epoch", "epoch": epoch, "train": train, "val": val}))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Pictures of two sweeps with one box for every system."""
    root = toy.kitti_folder(tmp_path_factory.mktemp("page"))
    frames = kitti_frames(root)["validation"]
    sweeps = LidarRecords(frames, toy.CFG.classes, 8)
    pictures = rq_page.Pictures(toy.CFG, sweeps, 2)
    box = {
        "boxes": np.array([[5.0, 1, -1.7, 1.6, 3.9, 1.5, 0.2]]), "scores": np.array([0.9]),
        "labels": np.array([2]), "valid": np.array([True]),
    }  # fmt: skip
    for row in range(2):
        for name in (*(one["name"] for one in make_table()), "64-16"):
            pictures.keep(row, name, box)
    return pictures


def charts(page):
    """Words of every chart, and its content."""
    found = re.findall(r'<svg class="chart[^>]*aria-label="([^"]*)">(.*?)</svg>', page, re.S)
    return dict(found)


def made(folder, kept, plan, table=None):
    counts = {(k, n): np.arange(n) + k for k in range(BOOKS) for n in SIZES}
    records(folder, plan)
    rq_page.write_page(folder, table or make_table(), counts, kept, plan)
    return (folder / "grid.html").read_text()


def test_the_page_of_a_run_holds_every_figure(tmp_path, kept):
    plan = StageSchedule(BOOKS, SIZES, 3, 1, 4)
    page = made(tmp_path, kept, plan)
    drawn = charts(page)
    (accuracy, alone) = (w for w in drawn if "over bytes per sweep" in w)
    assert "points-laz-1cm 60.0 at 9,000" in accuracy and "points-laz" not in alone
    assert drawn[alone].count("<circle") == BOOKS * len(SIZES)  # anchors are no circles
    (heat,) = (w for w in drawn if w.startswith("3-D AP by number of codebooks"))
    assert drawn[heat].count("<rect") == BOOKS * len(SIZES) and "3 codebooks" in drawn[heat]
    for words in ("perplexity", "dead rows (%)"):
        use = drawn[f"{words} of every codebook by its number of rows"]
        assert use.count("<polyline") == len(SIZES)
    stages = re.findall(r">codebook (\d), (\d+) rows<", page)
    assert stages == [(str(k), str(n)) for k in range(BOOKS) for n in SIZES]
    for words in ("error of the codes (mean square)", "detection loss", "perplexity"):
        curve = drawn[f"{words} by epoch"]
        assert re.findall(r">codebook (\d)<", curve) == ["0", "1", "2"]
    # Lines are apart where stages are; epochs of averages have no detection loss.
    assert drawn["perplexity by epoch"].count("<polyline") == plan.stages
    first = re.search(r'points="([^"]*)"', drawn["detection loss by epoch"])[1]
    assert len(first.split()) == plan.stage_epochs - plan.warmup_epochs
    for row in range(2):
        for words in ("ground truth", "features as they are", "1x16", "2x64", "3x64"):
            assert re.search(rf"Frame {row}: {words}", page), words


def test_all_codebooks_of_the_legacy_mode_are_drawn(tmp_path, kept):
    plan = StageSchedule(BOOKS, (64,), 4, 1, 4, joint=True)
    drawn = charts(made(tmp_path, kept, plan))
    for words in ("perplexity", "share of dead rows"):
        curve = drawn[f"{words} by epoch"]
        assert curve.count("<polyline") == BOOKS
        assert all(f">codebook {k}<" in curve for k in range(BOOKS))


def test_one_measured_point_has_a_page_too(tmp_path, kept):
    table = [r for r in make_table() if r["name"] in ("2x64", rq_grid.UNCOMPRESSED)]
    mixed = entry("residual codes", 50.0, 40.0, codebooks=2, embeddings=[64, 16]) | {
        "name": "64-16"
    }
    rq_page.write_page(tmp_path, [*table, mixed], None, kept)
    page = (tmp_path / "grid.html").read_text()
    assert "Use of the codebooks" not in page and "Training" not in page
    assert "64-16" in page and "index.html" not in page


def test_figures_stand_alone(tmp_path, kept):
    made(tmp_path, kept, StageSchedule(BOOKS, SIZES, 3, 1, 4))
    for name in ("accuracy_bytes.svg", "heat_map.svg"):
        text = (tmp_path / name).read_text()
        assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "#fff" in text
