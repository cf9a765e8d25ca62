"""The lidar detector as a workload: config, a whole small run, scores, the report's pictures."""

import dataclasses
import json

import jax
import lidar_toy as toy
import numpy as np
import pytest

from jaxcomp.config import apply_overrides, load_config, validate
from jaxcomp.data.kitti_format import parse_labels
from jaxcomp.data.lidar_boxes import lidar_objects
from jaxcomp.data.lidar_records import LidarFrame
from jaxcomp.data.lidar_sets import fingerprint, lidar_frames
from jaxcomp.errors import CheckpointError, ConfigError
from jaxcomp.evaluate.birds_eye import bev_outlines, bev_picture
from jaxcomp.inspecting import describe_config
from jaxcomp.jobs import build_job, run_location, runner
from jaxcomp.jobs.lidar_scores import LidarScores, flat_scores
from jaxcomp.loaders_lidar import load_lidar_detector

CONFIG = "configs/pointpillars.py"


# --- config ---------------------------------------------------------------------------------------


def test_the_full_size_has_the_documented_parameters():
    described = describe_config(load_config(f"{CONFIG}:kitti"))
    assert described["total_parameters"] == 4_834_824
    assert described["features"] == {"bev": [496, 432, 64]} and described["map_shape"] == [248, 216]
    assert set(described["macs"]) == {"encoder", "backbone", "neck", "outputs"}


def test_both_profiles_are_valid_and_have_a_folder():
    for profile in ("embedded", "kitti"):
        config = load_config(f"{CONFIG}:{profile}")
        assert validate(config).profile == profile
        assert run_location(config) == ("checkpoints", "lidar_detection")
    assert (config.training.batch_size, config.training.epochs) == (6, 160)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.cell=(0.2,0.0,4.0)", r"model\.cell=.*more than 0"),
        ("model.low=(0.0,1.0)", r"model\.low=.*length 2; 3 are needed"),
        ("model.negative_iou=(0.9,0.3,0.4)", "negative_iou=0.9 is above positive_iou"),
        ("model.anchor_bottoms=(-1.0,)", "anchor_bottoms=.*1 values for the 3 classes"),
        ("model.block_convs=(1,2)", "block_convs.*each block"),
        ("augment.fill=(1,2)", r"augment\.fill=.*2 values for the 3 classes"),
        ("augment.flip=1.5", r"augment\.flip=1\.5 is out of range"),
        ("data.pad_points=10", r"pad_points=10 is out of range"),
        ("training.one_cycle.peak_at=2.0", "peak_at=2.0 is out of range"),
        ("model.name=pillars", "did you mean 'pointpillars'"),
    ],
)
def test_contradictions_are_named(override, words):
    with pytest.raises(ConfigError, match=words):
        validate(apply_overrides(load_config(CONFIG), [override]))


# --- data -----------------------------------------------------------------------------------------


def test_frames_are_capped_told_apart_and_refused_without_sweeps(tmp_path):
    root = toy.kitti_folder(tmp_path)
    config = toy.config(root)
    frames = lidar_frames(config)
    assert [len(frames[s]) for s in ("train", "validation")] == [4, 2]
    fewer = lidar_frames(apply_overrides(config, ["data.val_size=1"]))
    assert len(fewer["validation"]) == 1 and fingerprint(fewer) != fingerprint(frames)
    assert fingerprint(lidar_frames(config)) == fingerprint(frames)
    with pytest.raises(ConfigError, match=r"has no lidar sweeps; use one of: kitti, scenes"):
        lidar_frames(apply_overrides(config, ["data.name=faces"]))


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, run directory, summary) of one epoch on the toy folder."""
    folder = tmp_path_factory.mktemp("lidar_run")
    config = toy.config(toy.kitti_folder(folder / "kitti"))
    summary = runner.run(config, [], workdir=str(folder / "run"), mode="train", started=0.0)
    return config, folder / "run", summary


def test_a_run_writes_weights_results_and_metrics(run):
    _, folder, summary = run
    detector = load_lidar_detector(folder)
    assert detector.classes == ("Pedestrian", "Cyclist", "Car")
    assert summary["frames"] == 2 and summary["params_digest"] and summary["weights_bytes"] > 0
    for name in ("sweeps", "dropped_pillars"):
        assert summary["voxelised"]["train"][name] > 0
    assert 0 <= summary["ap_3d_moderate_r40_Car"] <= 100
    assert set(summary["kitti"]["detector"]["scores"]["Car"]) == {"2d", "bev", "3d", "aos"}
    assert (folder / "results" / "frames.txt").read_text() == "000004\n000005\n"
    truth = parse_labels((folder / "results" / "labels" / "000004.txt").read_text())
    assert [o.type for o in truth] == ["Car", "Pedestrian", "Van"]
    for item in parse_labels((folder / "results" / "detector" / "000004.txt").read_text()):
        assert item.score is not None and min(item.dimensions) > 0


def test_the_page_shows_sweeps_from_above(run):
    _, folder, _ = run
    page = (folder / "index.html").read_text()
    assert page.count("<polygon class=") >= 6 and "Lidar detector, embedded profile" in page
    assert "KITTI 3-D AP" in page and "KITTI BEV AP Car" in page
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epoch = next(r for r in records if r["kind"] == "epoch")
    assert {"class", "box", "direction", "overflow"} <= set(epoch["train"]) & set(epoch["val"])


def test_evaluating_again_gives_the_same(run):
    config, folder, summary = run
    again = runner.run(config, [], workdir=str(folder), mode="eval", started=0.0)
    for name in ("map_3d_moderate_r40", "params_digest", "kitti"):
        assert again.get(name) == summary.get(name)


def test_training_goes_on_from_its_weights_and_refuses_others(run):
    config, folder, _ = run
    start = apply_overrides(config, [f"model.pretrained={folder}"])
    params, _, _ = build_job(start).task.init(jax.random.key(0), {})
    wanted = load_lidar_detector(folder).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    with pytest.raises(CheckpointError, match="of another model"):
        build_job(apply_overrides(start, ["model.encoder_features=9"])).task.init(None, {})
    with pytest.raises(CheckpointError, match="give the classes of the file"):
        build_job(apply_overrides(start, ["classes=('Car','Van','Cyclist')"])).task.init(None, {})
    with pytest.raises(CheckpointError, match="no weights"):
        build_job(apply_overrides(config, ["model.pretrained=nowhere.npz"]))


# --- scores ---------------------------------------------------------------------------------------


def frame(i, objects, rows=375):
    return LidarFrame(
        f"{i:06d}", lambda: toy.sweep(), toy.CALIBRATION, tuple(objects), rows, 1242, rows
    )


def cars(count=45):
    """Frames with one car each, easy to see, and its lidar box as a detection."""
    frames, found = [], []
    for i in range(count):
        item = toy.label(8 + 0.2 * (i % 20), 0.1)
        own = frame(i, [item])
        box = lidar_objects([item], toy.CALIBRATION, ("Car",)).boxes
        frames.append(own)
        found.append({"boxes": box, "scores": [0.5 + 0.01 * i], "labels": [0], "valid": [True]})
    return frames, found


def projected(frames, found):
    """Frames whose labels have the 2-D box that the 3-D box projects to."""
    from jaxcomp.ops.boxes3d import kitti_columns

    out = []
    for one, own in zip(frames, found, strict=True):
        columns = kitti_columns(
            own["boxes"], own["scores"], own["labels"], one.calibration, (375, 1242), ("Car",)
        )
        item = dataclasses.replace(
            one.objects[0], box=tuple(columns["box"][0]), alpha=float(columns["alpha"][0])
        )
        out.append(dataclasses.replace(one, objects=(item,)))
    return out


def test_perfect_detections_score_hundred_and_none_score_zero():
    frames, found = cars()
    frames = projected(frames, found)
    scores = LidarScores(frames, ("Car",))
    for row, own in enumerate(found):
        scores.add("all", row, own)
        scores.add("none", row, {**own, "valid": [False]})
    results = scores.finish()
    perfect, nothing = flat_scores(results["all"]), flat_scores(results["none"])
    for measure in ("2d", "bev", "3d", "aos"):
        for recalls in ("r40", "r11"):
            key = f"{measure}_moderate_{recalls}"
            assert perfect[f"ap_{key}_Car"] == pytest.approx(100) == perfect[f"map_{key}"]
            assert nothing[f"ap_{key}_Car"] == 0


def test_smallest_heights_follow_the_images():
    frames, found = cars(3)
    scores = LidarScores([dataclasses.replace(f, difficulty_rows=150) for f in frames], ("Car",))
    for row, own in enumerate(found):
        scores.add("x", row, own)
    assert scores.finish()["x"]["min_heights"] == pytest.approx([16.0, 10.0, 10.0])


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_put_ahead_right_and_left_up():
    points = np.array([[10.0, 4.0, 0.0, 0.5], [np.nan, 0, 0, 0], [99, 0, 0, 0]], np.float32)
    picture = bev_picture(points, (0, -5), (20, 5), 10.0)
    assert picture.shape == (100, 200, 3)
    changed = np.argwhere((picture != picture[0, 0]).any(-1))
    assert changed.tolist() == [[10, 100]]
    box = np.array([[10.0, 4.0, 0.0, 1.0, 2.0, 1.5, 0.0]])  # w along x, l along y
    outline = bev_outlines(box, (0, -5), (20, 5), 10.0)[0]
    np.testing.assert_allclose(np.ptp(outline, 0), [10, 20], atol=1e-4)
    np.testing.assert_allclose(outline.mean(0), [100, 10], atol=1e-4)


# --- full size ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_sweeps_train_at_full_size(shared, tmp_path):
    """A few steps of the `kitti` profile on real frames: finite, and every pillar has room."""
    overrides = ["training.batch_size=2", "training.epochs=1", "data.train_size=4"]
    overrides += [f"data.dir={shared / 'data' / 'kitti'}", "data.val_size=2"]
    config = load_config(f"{CONFIG}:kitti", overrides)
    summary = runner.run(config, [], workdir=str(tmp_path), mode="train", started=0.0)
    assert summary["params"] == 4_834_824 and summary["steps"] == 2
    assert np.isfinite(summary["best_validation_loss"])
    assert summary["voxelised"]["train"]["dropped_pillars"] == 0
    assert "map_3d_moderate_r40" in summary or summary["kitti"]["detector"]["notes"]
