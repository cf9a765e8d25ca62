"""Residual codes from the command line: train, resume, grid of real bytes, any point again."""

import itertools
import json
import re

import jax
import lidar_toy as toy
import numpy as np
import pytest

from jaxcomp import main, weights_file
from jaxcomp.codecs import rq_stream
from jaxcomp.config import load_config
from jaxcomp.errors import CheckpointError, ConfigError
from jaxcomp.jobs import residual_vq, rq_files, rq_grid
from jaxcomp.loaders_lidar import KIND, load_lidar_detector
from jaxcomp.models.pointpillars import PointPillars
from jaxcomp.tasks.pointpillars import init_variables

CLASSES = ("Pedestrian", "Cyclist", "Car")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A KITTI folder, and the weights of a detector that has never seen anything."""
    root = tmp_path_factory.mktemp("rq")
    toy.kitti_folder(root / "kitti")
    variables = init_variables(PointPillars(toy.CFG), jax.random.key(0))
    meta = {"kind": KIND, "model": toy.SIZES, "classes": CLASSES}
    weights_file.export_npz(root / "detector.npz", variables, meta)
    return root


def argv(place, workdir, *more):
    values = {
        "data.name": "kitti", "data.dir": place / "kitti", "data.train_size": 0,
        "data.val_size": 0, "data.pad_points": 1024, "data.max_boxes": 8, "data.num_threads": 0,
        "detector.path": place / "detector.npz", "training.batch_size": 2, "log.progress": False,
        "progressive_learning.embedding_schedule": "(2,4)", "training.epochs": 8,
        "logging.ckpt_freq_epoch": 1,
    }  # fmt: skip
    flags = [f"--config.{k}={v}" for k, v in values.items()]
    spec = "--config=configs/pointpillars_rq.py:codebooks=2,stage_epochs=2"
    return [spec, *flags, f"--workdir={workdir}", *more]


@pytest.fixture(scope="module")
def run(place):
    """A run that was killed in the middle of a stage and went on."""
    workdir = place / "run"
    seen = []

    class Killed(BaseException):
        pass

    original = residual_vq._write_epoch

    def die(config, plan, detector, summary):
        original(config, plan, detector, summary)
        seen.append(summary.epoch)
        if seen == [1, 2, 3]:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual_vq, "_write_epoch", die)
        with pytest.raises(Killed):
            main.main(argv(place, workdir))
        assert main.main(argv(place, workdir)) == 0
    assert seen[:3] == [1, 2, 3] and seen[3] in (3, 4) and seen[-1] == 8
    return workdir


@pytest.fixture(scope="module")
def straight(place):
    """The same run without a break."""
    assert main.main(argv(place, place / "straight")) == 0
    return place / "straight"


def test_a_run_killed_inside_a_stage_ends_with_the_same_bits(run, straight):
    one, two = (rq_files.load_rq(folder)[0] for folder in (run, straight))
    assert one.tobytes() == two.tobytes()


def test_files_have_the_documented_names_and_earlier_rows_never_change(run):
    names = {path.name for path in (run / "codebooks").iterdir()}
    for stage in ("codebook_0_stage_0", "codebook_0_stage_1", "codebook_1_stage_0"):
        assert {f"{stage}_{n}.npz" for n in ("epoch_1", "epoch_2", "best", "final")} <= names
    assert "global_best.npz" in names
    final = rq_files.load_rq(run)[0]
    for k in range(2):
        for s, n in enumerate((2, 4)):
            rows = rq_files.load_rq(run / "codebooks" / f"codebook_{k}_stage_{s}_final.npz")[0]
            assert np.abs(rows[k, :n] - final[k, :n]).max() == 0
            assert np.abs(rows[:k] - final[:k]).max(initial=0) == 0


def test_every_stage_ends_with_the_accuracy_of_its_point(run):
    """Rows that are finished do not move, so the table of the end has the same."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = [line for line in lines if line["kind"] == "measured"]
    found = [found[-1 - i] for i in range(4)][::-1]  # the kill tells one twice
    points = [(line["codebooks"], line["embeddings"]) for line in found]
    assert points == [(1, 2), (1, 4), (2, 2), (2, 4)]
    table = rows_of_table(run)
    for (count, rows), line in zip(points, found, strict=True):
        row = table[f"{count}x{rows}"]
        for name in ("map_3d_moderate_r40", "map_bev_moderate_r40"):
            assert line.get(name) == row.get(name)
    assert "codebook_1_stage_1, 2 codebooks of up to 4 rows: " in (run / "train.log").read_text()


def test_the_grid_has_every_point_and_the_anchors(run):
    table = json.loads((run / "grid.json").read_text())["rows"]
    names = {row["name"] for row in table}
    assert {"1x2", "1x4", "2x2", "2x4", "points-lzma-1cm", "bev-8bit"} <= names
    size = {row["name"]: row["bytes"] for row in table}
    assert size["1x2"] < size["2x2"] < size["2x4"] and size["1x2"] < size["1x4"]
    assert (run / "grid.csv").read_text().startswith("system,codebooks,embeddings,bytes")
    page = (run / "grid.html").read_text()
    assert all(title in page for title in ("Every point", "Use of the codebooks", "from above"))
    assert '<a href="grid.html">Every point' in (run / "index.html").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["bytes_per_frame"] == size["2x4"] and summary["task"] == "residual_vq"


def test_a_stored_file_decodes_with_the_stored_model(run):
    rows, model, meta = rq_files.load_rq(run)
    assert meta["sizes"] == [2, 4] and rows.shape == (2, 4, 8)
    frame = rq_stream.decompress((run / "streams" / "2x4.jxc").read_bytes(), model)
    assert frame.point == (4, 4) and rq_stream.features(frame, model.rows).shape == (16, 16, 8)


def evaluate(place, workdir, *flags):
    return main.main(argv(place, workdir, "--mode=eval", "--config.evaluation.anchors=False",
                          *flags))  # fmt: skip


def rows_of_table(folder):
    """The table without times, by system."""
    rows = json.loads((folder / "grid.json").read_text())["rows"]
    keep = [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in rows]
    return {row["name"]: row for row in keep}


def test_any_point_can_be_measured_again(place, run, tmp_path):
    flags = ("--eval_num_codebooks=2", "--eval_num_embeddings=2")
    assert evaluate(place, tmp_path, f"--rq_ckpt={run}", *flags) == 0
    table = rows_of_table(tmp_path)
    assert list(table) == ["2x2", rq_grid.UNCOMPRESSED]
    assert table["2x2"] == rows_of_table(run)["2x2"]


def test_the_whole_grid_again_is_the_table_of_the_run_with_figures(place, run, tmp_path, capsys):
    """What contexts save too: what it needs of the training sweeps is in the file."""
    assert evaluate(place, tmp_path, f"--rq_ckpt={run / 'rq.npz'}") == 0
    printed = capsys.readouterr().out
    table, before = rows_of_table(tmp_path), rows_of_table(run)
    assert table == {name: row for name, row in before.items() if name in table}
    assert set(table) == {"1x2", "1x4", "2x2", "2x4", rq_grid.UNCOMPRESSED}
    for row in table.values():
        if row["system"] == "residual codes":
            assert row["saved"] == 1 - row["index_bytes"] / row["order_0_bytes"]
            assert f"{row['saved']:.1%}" in printed
    for name in ("heat_map.svg", "streams/2x4.jxc"):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()
    page = (tmp_path / "grid.html").read_text()
    assert "Use of the codebooks" in page and "index.html" not in page


def test_evaluating_needs_codebooks(place, capsys):
    assert evaluate(place, "", "--eval_num_codebooks=1") == 1
    assert "needs --rq_ckpt=FILE" in capsys.readouterr().err


def test_a_point_of_a_run_is_printed_and_the_run_stays(place, run, capsys):
    before = (run / "grid.json").read_bytes()
    assert evaluate(place, run, "--eval_num_codebooks=1", "--eval_num_embeddings=4") == 0
    printed = capsys.readouterr().out
    assert "| 1x4 codes |" in printed and "| 2x4 codes |" not in printed
    assert (run / "grid.json").read_bytes() == before


def test_codebooks_to_measure_are_not_trained(place, tmp_path, capsys):
    words = argv(place, tmp_path / "run")
    assert main.main([*words, "--rq_ckpt=nowhere.npz"]) == 1
    assert "add --mode=eval" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluating_again_leaves_the_table_of_a_run_alone(place, run, capsys):
    before = (run / "grid.json").read_bytes()
    assert evaluate(place, run, f"--rq_ckpt={run}", "--eval_num_codebooks=1") == 1
    assert "give another folder" in capsys.readouterr().err
    assert (run / "grid.json").read_bytes() == before


def test_files_of_before_have_no_counts_and_broken_ones_are_told(run, tmp_path):
    _, model, meta = rq_files.load_rq(run)
    assert sorted(meta["counts"]) == sorted(model.tables)
    rq_files.save_model(tmp_path / "old.npz", model, {"sizes": [2, 4]})
    assert rq_files.load_rq(tmp_path / "old.npz")[2]["counts"] is None
    for bad in (np.zeros(3, np.int64), np.full(2, -1), np.zeros(2)):
        rq_files.save_model(tmp_path / "bad.npz", model, {}, counts={(0, 2): bad})
        with pytest.raises(CheckpointError, match="for 2 rows"):
            rq_files.load_rq(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--eval_num_codebooks=3"], "3 codebooks are asked for, but the run holds 2"),
        (["--eval_num_embeddings=8"], "8 embeddings are asked for"),
        (["--eval_num_codebooks=1", "--eval_num_embeddings=4,2"], "one for each codebook"),
    ],
)
def test_a_point_beyond_the_schedule_is_refused_before_training(
    place, tmp_path, capsys, flags, words
):
    assert main.main(argv(place, tmp_path / "run", *flags)) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_mixed_point_and_the_file_of_a_stage(place, run, tmp_path):
    stage = run / "codebooks" / "codebook_1_stage_1_final.npz"
    assert evaluate(place, tmp_path, f"--rq_ckpt={stage}", "--eval_num_embeddings=4,2") == 0
    (point, _) = json.loads((tmp_path / "grid.json").read_text())["rows"]
    assert point["name"] == "4-2"


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        ("rq.npz", ["--eval_num_codebooks=3"], r"3 codebooks are asked for, .*holds 2"),
        ("rq.npz", ["--eval_num_embeddings=8"], r"8 embeddings are asked for, .*of 4"),
        ("codebooks/codebook_0_stage_1_final.npz", ["--eval_num_codebooks=2"], "holds 1"),
        ("codebooks/codebook_1_stage_0_final.npz", ["--eval_num_embeddings=4,4"],
         "codebook 1 holds 2 embeddings, 4"),
        ("nowhere.npz", [], "no weights at"),
        ("../detector.npz", [], "codebooks are needed"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_does_not_hold_is_refused_by_name(
    place, run, capsys, file, flags, message
):
    assert evaluate(place, "", f"--rq_ckpt={run / file}", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error


@pytest.mark.slow
def test_patience_ends_stages_and_leaves_their_files(place, tmp_path):
    flags = ["--config.training.early_stopping.patience=1", "--config.evaluation.anchors=False"]
    flags += [
        "--config.progressive_learning.embedding_stage_epochs=6",
        "--config.training.epochs=24",
    ]
    flags += ["--config.training.early_stopping.min_delta=1e9"]  # nothing is an improvement
    assert main.main(argv(place, tmp_path, *flags)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["epochs"], summary["stopped"]) == (8, "early_stopping")
    names = {path.name for path in (tmp_path / "codebooks").iterdir()}
    for k, s in itertools.product(range(2), range(2)):
        kinds = ("epoch_1", "epoch_2", "best", "final")
        assert {f"codebook_{k}_stage_{s}_{kind}.npz" for kind in kinds} <= names
        assert f"codebook_{k}_stage_{s}_epoch_3.npz" not in names
    # Every stage went on from the last rows of the one before, and they are the ones that stay.
    final = rq_files.load_rq(tmp_path)[0]
    for k, (s, n) in itertools.product(range(2), enumerate((2, 4))):
        rows = rq_files.load_rq(tmp_path / "codebooks" / f"codebook_{k}_stage_{s}_final.npz")[0]
        assert rows[k, :n].tobytes() == final[k, :n].tobytes()
        assert rows[:k].tobytes() == final[:k].tobytes()


def test_codebooks_of_another_detector_are_refused(place, run, tmp_path, capsys):
    variables = init_variables(PointPillars(toy.CFG), jax.random.key(1))
    meta = {"kind": KIND, "model": toy.SIZES, "classes": CLASSES}
    weights_file.export_npz(tmp_path / "other.npz", variables, meta)
    flags = (f"--rq_ckpt={run}", f"--config.detector.path={tmp_path / 'other.npz'}")
    assert evaluate(place, "", *flags) == 1
    error = capsys.readouterr().err
    # Both are named: what is there by its digest, what is wanted by its place too.
    digests = [
        load_lidar_detector(f).digest[:12] for f in (place / "detector.npz", tmp_path / "other.npz")
    ]
    assert f"other frozen weights ({digests[0]}, now {digests[1]})" in error
    assert repr(str(place / "detector.npz")) in error


def test_points_of_the_config():
    config = load_config("configs/pointpillars_rq.py", ["evaluation.use_num_codebook=3"])
    assert residual_vq.asked_points(config, (5, 256, 8), (16, 256)) == [(256,) * 3]
    odd = load_config(
        "configs/pointpillars_rq.py",
        ["evaluation.use_num_codebook=3", "evaluation.use_num_embedding=(4,2)"],
    )
    with pytest.raises(ConfigError, match="one for each codebook"):
        residual_vq.asked_points(odd, (5, 256, 8), (16, 256))
    assert rq_grid.grid_points(2, (2, 4)) == [(2,), (4,), (2, 2), (4, 4)]
    assert rq_grid.point_name((4, 2)) == "4-2" and rq_grid.point_name((4, 4)) == "2x4"


def test_an_empty_sweep_is_a_file_without_pillars(place, run):
    detector = load_lidar_detector(place / "detector.npz")
    rows, model, _ = rq_files.load_rq(run)
    quantiser = rq_grid.Quantiser(detector, rows)
    frame = quantiser.frame(quantiser.vectors(np.zeros((0, 4), np.float32)), (4, 4))
    blob = rq_stream.compress(frame, model)
    assert not rq_stream.decompress(blob, model).occupied.any() and len(blob) < 100


@pytest.mark.slow
def test_a_head_that_was_trained_goes_with_its_codebooks(place, tmp_path):
    flags = ["--config.rq_model.train_head=True", "--config.evaluation.anchors=False"]
    flags += ["--config.progressive_learning.embedding_schedule=(4,)", "--config.training.epochs=4"]
    # A size between those of the schedule is a prefix too, and gets tables.
    assert main.main(argv(place, tmp_path, *flags, "--eval_num_embeddings=4,3")) == 0
    assert list(rows_of_table(tmp_path)) == ["4-3", rq_grid.UNCOMPRESSED]
    encoder = rq_files.load_rq(tmp_path)[2]["encoder"]
    detector = load_lidar_detector(place / "detector.npz")
    moved = residual_vq.with_encoder(detector, encoder)
    before, after = (d.variables["params"]["encoder"]["kernel"] for d in (detector, moved))
    assert np.abs(np.asarray(after) - np.asarray(before)).max() > 0
    assert residual_vq.with_encoder(detector, None) is detector
