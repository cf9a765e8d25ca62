"""Both jobs on a KITTI folder, from native images to KITTI's own accuracy and files."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from jaxcomp import cli
from jaxcomp import main as main_module
from jaxcomp.codecs import bitstream
from jaxcomp.data.kitti_format import parse_labels
from jaxcomp.jobs.kitti_scores import KittiScores
from jaxcomp.loaders import load_codec, load_detector

LINE = "Car 0.00 0 0.20 {} {} {} {} 1.50 1.60 3.90 1.00 1.70 20.00 0.10\n"
SMALL = [
    "--config.data.name=kitti", "--config.data.height=64", "--config.data.width=160",
    "--config.data.train_size=0", "--config.data.val_size=0", "--config.training.batch_size=2",
    "--config.training.epochs=1", "--config.training.lr_schedule.name=constant",
    "--config.training.lr_schedule.warmup_epochs=0", "--config.log.progress=False",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six frames of two sizes, each a bright car on a dark road, every third held out."""
    root = tmp_path_factory.mktemp("kitti")
    for name in ("image_2", "label_2"):
        (root / "training" / name).mkdir(parents=True)
    for i in range(6):
        image = np.random.default_rng(i).integers(0, 60, (75 + i % 2, 240, 3)).astype(np.uint8)
        box = (20 + 20 * i, 20, 80 + 20 * i, 65)
        image[box[1] : box[3], box[0] : box[2]] = 220
        Image.fromarray(image).save(root / f"training/image_2/{i:06d}.png")
        (root / f"training/label_2/{i:06d}.txt").write_text(LINE.format(*box))
    (root / "ImageSets").mkdir()
    (root / "ImageSets/train.txt").write_text("000001\n000002\n000004\n000005\n")
    (root / "ImageSets/val.txt").write_text("000000\n000003\n")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The small detector, one epoch, started from the shipped weights."""
    out = tmp_path_factory.mktemp("detector") / "run"
    argv = [
        "--config=configs/detector.py", *SMALL, f"--config.data.dir={folder}",
        f"--workdir={out}", "--config.data.resize=shortest", "--config.data.min_side=50",
        "--config.data.max_side=160", "--config.evaluation.pictures_every=1",
        "--config.model.pretrained=jaxcomp/weights/detector_scenes.npz",
    ]  # fmt: skip
    assert main_module.main(argv) == 0
    return out


def test_the_detector_is_measured_by_kitti(trained):
    summary = json.loads((trained / "summary.json").read_text())
    scores = summary["kitti"]["detector"]["scores"]["Car"]["2d"]
    assert summary["kitti"]["detector"]["objects"]["Car"]["easy"] == 2
    assert (trained / "results" / "frames.txt").read_text() == "000000\n000003\n"
    assert set(scores) == {"r40", "r11"} and set(scores["r40"]) == {"easy", "moderate", "hard"}
    for name in ("000000", "000003"):
        text = (trained / "results" / "detector" / f"{name}.txt").read_text()
        for item in parse_labels(text):
            assert item.score is not None and 0 <= item.box[0] <= item.box[2] <= 240.01
    pictures = sorted((trained / "predictions" / "epoch_001").glob("pred_*.png"))
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.size == (240, 75)
    assert "KITTI AP Car" in (trained / "index.html").read_text()
    meta = load_detector(trained).meta
    assert (meta["resize"], meta["min_side"], meta["max_side"]) == ("shortest", 50, 160)


@pytest.mark.slow
def test_a_codec_trains_on_native_images(folder, trained, tmp_path):
    argv = [
        "--config=configs/fpn_level.py:level=1", *SMALL, f"--config.data.dir={folder}",
        f"--workdir={tmp_path / 'run'}", f"--config.detector.path={trained}",
        "--config.data.resize=stretch", "--config.data.cache_features=False",
    ]  # fmt: skip
    assert main_module.main(argv) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["feature_shape"] == [8, 20, 64] and summary["frames"] == 2
    # The rate counts pixels of the files, not of what the network saw.
    pixels = 75 * 240 + 76 * 240
    total = summary["bytes_per_frame"] * 2
    assert summary["bpp_image"] == pytest.approx(8 * total / pixels)
    assert set(summary["kitti"]) == {"before", "after"}
    results = tmp_path / "run" / "results"
    argv = ["kitti-eval", "--labels", f"{results / 'labels'}", "--results", f"{results / 'after'}",
            "--frames", f"{results / 'frames.txt'}", "--classes", "Car",
            "--json", f"{tmp_path / 'eval.json'}"]  # fmt: skip
    assert cli.main(argv) == 0
    again = json.loads((tmp_path / "eval.json").read_text())["scores"]["Car"]["2d"]
    assert again == summary["kitti"]["after"]["scores"]["Car"]["2d"]

    codec, detector = load_codec(tmp_path / "run"), load_detector(trained)
    image = folder / "training/image_2/000000.png"
    prepared, meta = detector.prepare(image, codec.input)
    features = detector.get_fpn_features(prepared)
    blob = codec.compress(features)
    assert blob == (tmp_path / "run" / "streams" / "000000.jxc").read_bytes()
    argv = ["compress", str(image), "--codec", str(tmp_path / "run"), "--detector", str(trained),
            "--out", str(tmp_path / "f.jxc")]  # fmt: skip
    assert cli.main(argv) == 0
    streams = bitstream.read((tmp_path / "f.jxc").read_bytes()).streams
    assert [s.payload for s in streams] == [s.payload for s in bitstream.read(blob).streams]
    restored = codec.decompress(blob)
    found = detector.detect_from_features({**features, **restored}, meta)
    assert np.isfinite(found["boxes"]).all() and found["boxes"].max() <= 240.01


def test_perfect_detections_in_network_pixels_score_100(tmp_path):
    objects = tuple(parse_labels(LINE.format(20, 20, 80, 65)))
    frames = [types.SimpleNamespace(name=f"{i:06d}", objects=objects) for i in range(200)]
    scores = KittiScores(frames, ("Car", "Pedestrian"))
    count = len(frames)
    batch = {
        "image": np.zeros((count, 80, 240, 3), np.uint8), "mask": np.ones(count),
        "image_id": np.arange(count), "native_size": np.full((count, 2), [80.0, 240.0]),
        "image_size": np.full((count, 2), [40.0, 120.0]),
    }  # fmt: skip
    found = {
        "boxes": np.tile(np.array([[[10, 10, 40, 32.5]]]), (count, 1, 1)),
        "scores": np.full((count, 1), 0.9), "labels": np.ones((count, 1), int),
        "valid": np.ones((count, 1), bool),
    }  # fmt: skip
    scores.add("model", batch, found)
    wrong = {**found, "boxes": found["boxes"] + 25}
    scores.add("moved", batch, wrong)
    out = scores.finish(tmp_path)
    assert len(list((tmp_path / "model").glob("*.txt"))) == count
    easy = {k: v["scores"]["Car"]["2d"]["r40"]["easy"] for k, v in out.items()}
    assert easy["model"] == pytest.approx(100.0)
    assert easy["moved"] == 0.0
