"""The main job from end to end: data, features, training, real bytes, detections, files, page.

The fast form runs a few frames through the shipped detector; the slow ones are the promises of the
README at full length.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxcomp
from jaxcomp import main as main_module
from jaxcomp.errors import CheckpointError, JaxcompError, TableMismatchError

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/configs/fpn_level.py"
SMALL = ["--config.data.train_size=16", "--config.data.val_size=6", "--config.training.epochs=2"]
KEYS = {
    *("task", "config", "level", "rate_weight", "params", "params_digest", "estimated_bits"),
    *("actual_bits", "overhead", "bytes_per_frame", "bpp_image", "bpp_feature", "bits_per_value"),
    *("mse", "relative_mse", "map50_uncompressed", "map50", "encode_ms", "decode_ms"),
    *("train_step_ms", "seconds", "commit", "versions", "hardware", "seed"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a few frames, on data of its own."""
    folder = tmp_path_factory.mktemp("job")
    old = os.environ.get("TFDS_DATA_DIR")
    os.environ["TFDS_DATA_DIR"] = str(folder / "data")
    try:
        assert main_module.main([CONFIG, *SMALL, f"--workdir={folder / 'run'}"]) == 0
        yield folder / "run"
    finally:
        os.environ.pop("TFDS_DATA_DIR") if old is None else os.environ.update(TFDS_DATA_DIR=old)


def test_a_run_leaves_what_the_documents_promise(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) >= KEYS
    for name in ("training_summary.txt", "index.html", "codec.npz", "metrics.jsonl", "train.log",
                 "training_diagnostics_epoch_1.txt", "command_args.txt"):  # fmt: skip
        assert (finished / name).stat().st_size > 0
    folder = finished / "level_analysis" / "level_2"
    assert list(folder.glob("lambda_0.0015/*_analysis.txt"))
    text = (finished / "training_summary.txt").read_text()
    loss = next(line for line in text.splitlines() if "Best Validation Loss:" in line)
    assert float(loss.split(" ")[3]) == pytest.approx(summary["best_validation_loss"], abs=1e-4)


def test_rates_come_from_the_files(finished):
    summary = json.loads((finished / "summary.json").read_text())
    files = list((finished / "streams").glob("*.jxc"))
    total = sum(f.stat().st_size for f in files)
    assert len(files) == summary["frames"] == 6
    assert summary["bytes_per_frame"] == total / 6
    assert summary["bpp_image"] == pytest.approx(8 * total / (6 * 128 * 416))
    assert summary["actual_bits"] / summary["estimated_bits"] == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_long_streams_hold_what_the_model_estimates(tmp_path):
    argv = ["--config=configs/fpn_level.py:level=0", f"--workdir={tmp_path / 'run'}"]
    argv += ["--config.data.train_size=64", "--config.data.val_size=40"]
    argv += ["--config.training.epochs=4", "--config.log.progress=False"]
    assert main_module.main(argv) == 0
    sizes = [f.stat().st_size for f in (tmp_path / "run" / "streams").glob("*.jxc")]
    assert len(sizes) == 40 and min(sizes) > 4000
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    ratio = summary["actual_bits"] / summary["estimated_bits"]
    print(f"actual / estimated - 1 = {ratio - 1:.4%} over {len(sizes)} files of {np.mean(sizes)} B")
    assert abs(ratio - 1) < 0.01
    assert abs(ratio - 1) < 0.003  # the goal


def test_the_same_command_shows_a_finished_run(finished, capsys):
    before = (finished / "summary.json").read_bytes()
    assert main_module.main([CONFIG, *SMALL, f"--workdir={finished}"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert (finished / "summary.json").read_bytes() == before


def test_evaluating_again_gives_the_same_numbers(finished, monkeypatch):
    before = json.loads((finished / "summary.json").read_text())
    monkeypatch.chdir(finished.parent)  # a relative directory, as the command prints it
    assert main_module.main([CONFIG, *SMALL, f"--workdir={finished.name}", "--mode=eval"]) == 0
    after = json.loads((finished / "summary.json").read_text())
    times = {"seconds", "encode_ms", "decode_ms", "command", "resumed"}
    assert {k: v for k, v in after.items() if k not in times} == {
        k: v for k, v in before.items() if k not in times
    }


def test_another_config_is_refused_and_nothing_is_lost(finished, capsys):
    before = (finished / "summary.json").read_bytes()
    other = [CONFIG, *SMALL, "--config.training.rate_weight=0.5", f"--workdir={finished}"]
    assert main_module.main(other) == 1
    error = capsys.readouterr().err
    assert "rate_weight" in error and "--workdir" in error
    assert (finished / "summary.json").read_bytes() == before


def test_readme_snippet_runs(finished, tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0]
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    from PIL import Image

    Image.fromarray(rng.integers(0, 255, (375, 1242, 3), np.uint8)).save("street.png")
    assert "RUN_DIRECTORY" in code
    scope = {}
    exec(code.replace("RUN_DIRECTORY", str(finished)), scope)
    assert isinstance(scope["blob"], bytes) and len(scope["blob"]) < 2000
    assert scope["detections"]["boxes"].shape[-1] == 4


def test_streams_of_another_model_and_foreign_features_are_refused(finished):
    codec = jaxcomp.load_codec(finished)
    detector = jaxcomp.load_detector()
    features = detector.get_fpn_features(np.zeros((128, 416, 3), np.uint8))
    blob = codec.compress(features)
    other = jaxcomp.loaders.LevelCodec(
        codec.codec, codec.variables, _shifted(codec.tables), codec.meta
    )
    with pytest.raises(TableMismatchError):
        other.decompress(blob)
    for bad in ({"p3": features["p3"]}, features["p4"][..., :5], features["p4"] * np.nan):
        with pytest.raises(JaxcompError):
            codec.compress(bad)
    with pytest.raises(JaxcompError, match="p6"):
        detector.detect_from_features({k: v for k, v in features.items() if k != "p6"})


def _shifted(tables):
    import dataclasses

    return dataclasses.replace(tables, offset=tables.offset + 1)


def test_shipped_detector_splits(finished):
    detector = jaxcomp.load_detector()
    image = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    fitted, meta = detector.prepare(image)
    whole = detector.detect(image)
    split = detector.detect_from_features(detector.get_fpn_features(fitted), meta)
    for name in whole:
        np.testing.assert_array_equal(whole[name], split[name])
    assert (whole["boxes"][..., 2] <= 300.5).all()


def test_another_detector_width_is_refused(finished, capsys):
    argv = [CONFIG, *SMALL, "--config.model.in_channels=32", f"--workdir={finished.parent / 'x'}"]
    assert main_module.main(argv) == 1
    assert "in_channels=32" in capsys.readouterr().err


def test_real_frame_through_the_shipped_weights(finished, shared, tmp_path, capsys):
    from jaxcomp.cli import main as cli

    image = sorted((shared / "data" / "kitti" / "training" / "image_2").glob("*"))[0]
    stream = str(tmp_path / "frame.jxc")
    assert cli(["compress", str(image), "--codec", str(finished), "--out", stream]) == 0
    out = str(tmp_path / "boxes.json")
    argv = ["detect", str(image), "--stream", stream, "--codec", str(finished), "--out", out]
    assert cli([*argv, "--score", "0.05"]) == 0
    rows = json.loads(Path(out).read_text())["detections"]
    assert all(0 <= row["box"][0] <= row["box"][2] <= 1250 for row in rows)
    assert (tmp_path / "boxes_detections.png").stat().st_size > 1000


def run_command(folder, *more, kill_after=None):
    env = os.environ | {"TFDS_DATA_DIR": str(folder / "data"), "XLA_FLAGS": ""}
    argv = [sys.executable, "-m", "jaxcomp.main", CONFIG, *more]
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    if kill_after is not None:
        started = time.time()
        while time.time() - started < 600 and not kill_after():
            if process.poll() is not None:
                raise AssertionError("the run ended before it could be killed")
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return None
    assert process.wait() == 0
    return None


def test_outputs_never_overwrite_inputs(finished, tmp_path, capsys):
    from PIL import Image

    from jaxcomp.cli import main as cli

    photo, codec = str(tmp_path / "photo.png"), str(finished)
    Image.fromarray(np.zeros((128, 416, 3), np.uint8)).save(photo)
    before = Path(photo).read_bytes()
    assert cli(["compress", photo, "--codec", codec, "--out", photo]) == 1
    assert cli(["detect", photo, "--out", photo]) == 1
    weights = str(finished / "codec.npz")
    content = Path(weights).read_bytes()
    assert cli(["compress", photo, "--codec", codec, "--out", weights]) == 1
    assert capsys.readouterr().err.count("is an input") == 3
    assert Path(weights).read_bytes() == content
    assert cli(["detect", photo, "--out", str(tmp_path / "photo.json"), "--score", "0"]) == 0
    assert Path(photo).read_bytes() == before


def test_a_stream_of_another_frame_size_is_refused(finished, tmp_path, capsys):
    from PIL import Image

    from jaxcomp.cli import main as cli

    codec = jaxcomp.load_codec(finished)
    (tmp_path / "small.jxc").write_bytes(codec.compress(np.zeros((1, 2, 2, 64), np.float32)))
    photo = str(tmp_path / "photo.png")
    Image.fromarray(np.zeros((128, 416, 3), np.uint8)).save(photo)
    stream = ["--stream", str(tmp_path / "small.jxc"), "--codec", str(finished)]
    assert cli(["detect", photo, *stream]) == 1
    assert "different sizes" in capsys.readouterr().err


def test_a_codec_of_another_detector_is_refused(finished):
    codec, detector = jaxcomp.load_codec(finished), jaxcomp.load_detector()
    codec.check_detector(detector)
    codec.meta["detector_digest"] = "0" * 64
    with pytest.raises(CheckpointError, match="another detector"):
        codec.check_detector(detector)


def test_a_damaged_codec_file_is_refused(finished, tmp_path):
    from jaxcomp import weights_file

    tree, meta = weights_file.load_npz(finished / "codec.npz")
    for name, content, record in (
        ("no_tables", {k: v for k, v in tree.items() if k != "tables"}, meta),
        ("narrow", tree, meta | {"model": meta["model"] | {"in_channels": 8}}),
        ("other_kind", tree, meta | {"kind": "detector"}),
        ("words", tree, meta | {"model": meta["model"] | {"stages": "2"}}),
        ("no_model", tree, {k: v for k, v in meta.items() if k != "model"}),
    ):
        weights_file.export_npz(tmp_path / f"{name}.npz", content, record)
        with pytest.raises(CheckpointError):
            jaxcomp.load_codec(tmp_path / f"{name}.npz")
    (tmp_path / "cut.npz").write_bytes((finished / "codec.npz").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        jaxcomp.load_codec(tmp_path / "cut.npz")


@pytest.mark.slow
def test_kill_9_in_the_middle_changes_nothing(tmp_path):
    """Killed in training, then in evaluation: the same end as an unbroken run with fewer frames."""
    options = ["--config.data.train_size=80", "--config.data.val_size=24",
               "--config.training.epochs=12"]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_command(tmp_path, *options, f"--workdir={whole}")

    def in_training():
        log = broken / "metrics.jsonl"
        return log.exists() and log.read_text().count('"epoch"') > 4

    def in_evaluation():
        return len(list((broken / "streams").glob("*.jxc"))) > 5

    run_command(tmp_path, *options, f"--workdir={broken}", kill_after=in_training)
    assert not (broken / "summary.json").exists()
    run_command(tmp_path, *options, f"--workdir={broken}", kill_after=in_evaluation)
    assert not (broken / "summary.json").exists()
    run_command(tmp_path, *options, f"--workdir={broken}")
    times = {"seconds", "train_seconds", "encode_ms", "decode_ms", "train_step_ms", "input_wait",
             "resumed", "command"}  # fmt: skip
    one, two = (
        {k: v for k, v in json.loads((d / "summary.json").read_text()).items() if k not in times}
        for d in (whole, broken)
    )
    assert one == two
    for stream in (whole / "streams").iterdir():
        assert stream.read_bytes() == (broken / "streams" / stream.name).read_bytes()


@pytest.mark.slow
def test_shipped_detector_reproduces_its_accuracy(tmp_path):
    """Held-out scenes are generated anew; the stored mAP belongs to the stored weights."""
    from jaxcomp import config, data
    from jaxcomp.jobs.detect import evaluate_detector

    detector = jaxcomp.load_detector()
    settings = config.load_config(
        f"{ROOT}/configs/detector.py", ["data.train_size=8", f"data.dir={tmp_path}"]
    )
    metrics, _ = evaluate_detector(detector, data.make_splits(settings).validation())
    assert metrics["map50"] == pytest.approx(detector.meta["metrics"]["map50"], abs=2e-3)
    assert metrics["map50"] >= 0.75


@pytest.mark.slow
def test_main_job_keeps_its_promise(tmp_path):
    """The README's command: accuracy kept, rate below raw, estimate near the truth, time."""
    started = time.time()
    run_command(tmp_path, f"--workdir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert time.time() - started <= 360
    assert summary["map50"] >= 0.95 * summary["map50_uncompressed"]
    assert summary["raw_bytes_per_frame"] >= 200 * summary["bytes_per_frame"]
    assert abs(summary["overhead"]) <= 0.01
