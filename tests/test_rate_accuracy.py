"""The comparison of codecs and anchors on the same frames: points, resumption, tables, page."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import comparison_toy as toy
import numpy as np
import pytest

from jaxcomp import cli, loaders
from jaxcomp import main as main_module
from jaxcomp.errors import CheckpointError, ConfigError
from jaxcomp.jobs import (
    comparing,
    point_frames,
    point_measuring,
    point_systems,
    rate_accuracy,
)
from jaxcomp.jobs.frozen_features import with_classes
from jaxcomp.jobs.point_frames import HeldOut
from jaxcomp.jobs.rate_accuracy import Options
from jaxcomp.models.fpn import LEVELS
from jaxcomp.report import comparison

pytest.importorskip("zstandard", reason="the feature anchors are an extra: anchors")

ANCHORS = "detections,uniform-level,jpeg"


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_folder):
    """Two points of the shared codec, and a codec of one level."""
    folder = tmp_path_factory.mktemp("runs")
    toy.save_run(folder / "c", "level", 0.02, seed=3, level=2)
    toy.save_run(folder / "a", "random", 0.01, seed=1)
    toy.save_run(folder / "b", "random", 0.04, seed=2)
    return folder


@pytest.fixture(scope="module")
def done(runs, tmp_path_factory):
    """A comparison as the command leaves it."""
    out = tmp_path_factory.mktemp("out") / "comparison"
    argv = ["evaluate", str(runs), f"--out={out}", f"--anchors={ANCHORS}", "--frames=2"]
    assert cli.main([*argv, "--bootstrap=20"]) == 0
    return out


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def results(folder):
    return json.loads((folder / comparison.RESULTS).read_text())


def test_every_point_is_there_with_real_bytes(done, runs):
    found = results(done)
    names = [p["name"] for p in found["points"]]
    assert len(names) == len(set(names)) == 3 + 1 + 6 + 6
    learned = [p for p in found["points"] if p["kind"] == "learned" and p["whole"]]
    assert [p["setting"] for p in learned] == [0.01, 0.04]
    assert {p["system"] for p in learned} == {"random, feature loss"}
    codec, detector = loaders.load_codec(runs / "a"), loaders.load_detector()
    held = HeldOut(with_classes(toy.config("random"), detector), detector, 2)
    sizes = [len(codec.compress(codec.select(pyramid))) for _, pyramid in held.pyramids()]
    arrays = comparison.stored_arrays(done, learned[0]["name"])
    assert arrays["frame_bytes"].tolist() == sizes
    assert learned[0]["bytes_per_frame"] == np.mean(sizes)
    assert learned[0]["bpp_image"] == pytest.approx(8 * np.mean(sizes) / (64 * 96))
    values = sum(np.prod(shape) for shape in found["uncompressed"]["shapes"].values())
    assert learned[0]["bits_per_value"] == pytest.approx(8 * np.mean(sizes) / values)
    bits = [codec.coder.ideal_bits(codec.select(x)) for _, x in held.pyramids()]
    ideal = np.mean([sum(float(b.sum()) for b in row.values()) for row in bits]) / 8
    assert learned[0]["estimated_bytes_per_frame"] == pytest.approx(ideal, rel=1e-5)
    payload = sum(learned[0]["stream_bytes_per_frame"].values())
    assert payload < learned[0]["bytes_per_frame"]


def test_fine_quantisation_and_boxes_change_nothing_that_counts(done):
    points = {p["name"]: p for p in results(done)["points"]}
    base = results(done)["uncompressed"]["accuracy"]
    # Boxes are sent in quarters of a pixel; 8 bits leave a thousandth of the variance.
    assert points["boxes"]["accuracy"]["map50"] == pytest.approx(base["map50"], abs=0.05)
    assert points["boxes"]["difference"]["map50"][0] == pytest.approx(0, abs=0.05)
    fine, coarse = points["uniform-level-8"], points["uniform-level-3"]
    assert fine["relative_mse"] < 1e-3 < coarse["relative_mse"]
    assert set(fine["level_relative_mse"]) == set(LEVELS)
    assert points["boxes"]["relative_mse"] is None and points["boxes"]["bytes_per_frame"] < 2000
    assert points["jpeg-85"]["relative_mse"] < points["jpeg-10"]["relative_mse"]


def test_bit_maps_hold_the_code_length(done):
    found = results(done)
    point = next(p for p in found["points"] if p["kind"] == "learned" and p["whole"])
    arrays = comparison.stored_arrays(done, point["name"])
    maps = {name: x for name, x in arrays.items() if name.startswith("heat_")}
    assert set(maps) == {f"heat_{level}" for level in LEVELS}
    total = sum(x.mean() for x in maps.values()) * np.prod(found["uncompressed"]["canvas"])
    assert total == pytest.approx(arrays["frame_estimated_bits"][0], rel=1e-3)


def test_a_level_alone_is_no_system(done):
    found = results(done)
    (part,) = [p for p in found["points"] if not p["whole"]]
    assert part["levels_coded"] == ["p4"] and set(part["level_relative_mse"]) == {"p4"}
    assert part["name"] not in {row["chosen"] for row in found["systems"]}
    assert part["system"] not in {row["test"] for row in found["bd"]}
    assert "p4 alone" in found["notes"][0]
    assert "p4 alone, feature loss (others free)" in (done / "rate_accuracy.md").read_text()
    assert "p4 alone" in (done / "figures" / "rate_distortion_p4.svg").read_text()
    assert "p4 alone" not in (done / "figures" / "rate_accuracy_map50.svg").read_text()


def test_features_are_made_again_where_they_are_too_large(data_folder, monkeypatch):
    detector = loaders.load_detector()
    config = with_classes(toy.config("random"), detector)
    kept, again = HeldOut(config, detector, 2), HeldOut(config, detector, 2)
    for held, limit in ((kept, point_frames.CACHE_LIMIT), (again, 0)):
        monkeypatch.setattr(point_frames, "CACHE_LIMIT", limit)
        first, second = ([x for _, x in held.pyramids()] for _ in range(2))
        assert held.cached == (limit > 0)
        assert all((a is b) == held.cached for a, b in zip(first, second, strict=True))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a["p2"], b["p2"])
    assert kept.digest == again.digest != HeldOut(config, detector, 1).digest


def test_tables_and_page(done):
    rows = table(done / "rate_accuracy.csv")
    assert [r["name"] for r in rows] == [p["name"] for p in results(done)["points"]]
    assert len(table(done / "bd.csv")) == 2 * 3 * 2  # anchors, measures
    assert json.loads((done / "bd.json").read_text())["rows"] == results(done)["bd"]
    assert (done / "rate_accuracy.md").read_text().count("\n") == 2 + len(rows)
    text = (done / "index.html").read_text()
    HTMLParser().feed(text)
    for name in ("rate_accuracy_map50", "rate_distortion_p4", "latency", "level_shares"):
        assert (done / "figures" / f"{name}.svg").exists(), name
    assert text.count('class="chart curves"') >= 9 and text.count('class="scene"') == 8
    assert "<script" not in text and not re.search(r'(src|href)="(?!data:|#)', text)


def test_the_page_says_what_boxes_alone_cannot_do(done):
    text = (done / "index.html").read_text()
    section = text.partition("What local inference cannot do</h2>")[2].partition("</section>")[0]
    cost = results(done)["uncompressed"]["complexity"]
    whole = cost["head_kmac_per_pixel"] + cost["tail_kmac_per_pixel"]
    local, split = (section.rpartition(f"{kind} inference:")[2] for kind in ("local", "split"))
    assert f">{whole:.2f}<" in local.partition("</tr>")[0]
    assert f">{whole:.2f}<" not in split.partition("</tr>")[0]
    assert f"{cost['parameters']:,} parameters" in section
    assert "no other task" in section and "threshold" in section


def test_every_accuracy_of_a_class_has_its_interval(done):
    found = results(done)
    for point in (found["uncompressed"], *found["points"]):
        for name in found["classes"]:
            low, high = point["intervals"][f"ap50_{name}"]
            assert low is None or low <= high
    name = f"ap50_{found['classes'][0]}"
    low, high = found["uncompressed"]["intervals"][name]
    words = f"{found['uncompressed']['accuracy'][name]:.3f} [{low:.3f}, {high:.3f}]"
    assert words in (done / "index.html").read_text()


def test_an_interrupted_comparison_goes_on(runs, tmp_path, monkeypatch):
    measured = []
    real = point_measuring.measure_anchor

    def measure(anchor, *args):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(anchor.label)
        return real(anchor, *args)

    monkeypatch.setattr(point_measuring, "measure_anchor", measure)
    options = Options(anchors=("detections", "uniform-level"), frames=1, replicates=5)
    with pytest.raises(KeyboardInterrupt):
        rate_accuracy.compare([runs], tmp_path, options)
    assert measured == ["boxes", "uniform-level-1", "uniform-level-2"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "points").iterdir()}
    assert len(before) == 2 * (1 + 3 + 3)
    monkeypatch.setattr(point_measuring, "measure_anchor", real)
    found = rate_accuracy.compare([runs], tmp_path, options)
    assert len(found["points"]) == 3 + 1 + 6
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with pytest.raises(CheckpointError, match="other data: frames"):
        rate_accuracy.compare([runs], tmp_path, Options(frames=2, anchors=()))


def test_systems_are_runs_that_differ_in_the_rate_weight_alone(tmp_path, data_folder):
    toy.save_run(tmp_path / "1", "random", 0.01, seed=1, epochs=24)
    toy.save_run(tmp_path / "2", "random", 0.02, seed=2, epochs=24)
    older = json.loads((tmp_path / "2" / "config.json").read_text())
    del older["model"]["straight_through"]  # as before there was such a key
    (tmp_path / "2" / "config.json").write_text(json.dumps(older))
    toy.save_run(tmp_path / "3", "random", 0.02, seed=3, task_weight=1.0)
    toy.save_run(tmp_path / "4", "random", 0.02, seed=4, epochs=3)
    toy.save_run(tmp_path / "5", "joint", 0.02, seed=5)
    points = point_systems.find_points([tmp_path], tmp_path / "out")
    assert [(p.system, p.rate_weight) for p in points] == [
        ("joint, feature loss", 0.02),
        ("random, feature loss (epochs 24)", 0.01),
        ("random, feature loss (epochs 24)", 0.02),
        ("random, feature loss (epochs 3)", 0.02),
        ("random, task + feature loss", 0.02),
    ]
    assert all(p.whole for p in points) and len({p.name for p in points}) == 5


def test_a_chain_of_runs_is_one_system(tmp_path, data_folder):
    names = {"a/1": "", "a/2": "a/1", "a/4": "a/2", "b/2": "a/2"}  # from which other one
    for seed, (name, before) in enumerate(names.items()):
        folder = tmp_path / "old" / name
        weight = float(name[-1]) / 100
        toy.save_run(folder, "random", weight, seed=seed, epochs=5 if before else 12)
        content = json.loads((folder / "config.json").read_text())
        content["model"]["initial"] = str(folder.parents[1] / before / "codec.npz") * bool(before)
        (folder / "config.json").write_text(json.dumps(content))
    (tmp_path / "old").rename(tmp_path / "moved")
    points = point_systems.find_points([tmp_path], tmp_path / "out")
    assert [(p.system, p.rate_weight) for p in points] == [
        *(("random, feature loss (epochs 12)", rate) for rate in (0.01, 0.02, 0.04)),
        ("random, feature loss (epochs 12+5)", 0.02),
    ]


def test_five_levels_of_one_rate_weight_become_a_pyramid(tmp_path, data_folder):
    for level in range(5):
        toy.save_run(
            tmp_path / f"l{level}", "level", 0.01, seed=level, level=level, epochs=9 + level
        )
    toy.save_run(tmp_path / "lone", "level", 0.02, seed=7, level=3)
    points = point_systems.find_points([tmp_path], tmp_path / "out")
    assert [(p.system, p.whole) for p in points] == [
        ("assembled, feature loss", True), ("p5 alone, feature loss", False),
    ]  # fmt: skip
    assert points[0].codec.levels == LEVELS and points[0].rate_weight == 0.01
    again = point_systems.find_points([tmp_path], tmp_path / "out")
    assert [p.name for p in again] == [p.name for p in points]


def test_bad_input_is_one_line(tmp_path, runs, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = f"--out={tmp_path / 'out'}"
    damaged = tmp_path / "damaged"
    toy.save_run(damaged, "random", 0.01, seed=1)
    whole = (damaged / "codec.npz").read_bytes()
    (damaged / "codec.npz").write_bytes(whole[: len(whole) // 2])
    alone = tmp_path / "alone"
    toy.save_run(alone, "random", 0.01, seed=1)
    (alone / "config.json").unlink()
    for argv, words in [
        ([str(empty), out], "no codec.npz"),
        ([str(tmp_path / "nowhere"), out], "does not exist"),
        ([str(damaged), out], "truncated"),
        ([str(alone), out], "--config=FILE"),
        ([str(runs), out, "--anchors=avfi"], "did you mean 'avif'"),
        ([str(runs), out, "--frames=-1"], "--frames=-1"),
        ([str(runs), out, "--config.data.heigth=3"], "data.height"),
        ([str(runs), out, f"--detector={empty}"], "no weights"),
        ([out], "folders of trained codecs"),
    ]:
        assert cli.main(["evaluate", *argv]) == 1, words
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_runs_of_different_data_are_not_mixed(tmp_path, data_folder):
    toy.save_run(tmp_path / "1", "random", 0.01, seed=1)
    toy.save_run(tmp_path / "2", "random", 0.02, seed=2)
    file = tmp_path / "2" / "config.json"
    content = json.loads(file.read_text())
    content["data"]["height"] = 128
    file.write_text(json.dumps(content))
    points = point_systems.find_points([tmp_path], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"data\.height"):
        rate_accuracy.comparison_config(points, Options())
    settled = rate_accuracy.comparison_config(points, Options(overrides=("data.height=64",)))
    assert settled.data.height == 64


def test_a_codec_of_another_detector_is_refused(tmp_path, data_folder):
    toy.save_run(tmp_path / "1", "random", 0.01, seed=1)
    codec = loaders.load_codec(tmp_path / "1")
    tree = loaders.codec_tree(*_parts(codec))
    meta = {**codec.meta, "detector_digest": "f" * 64}
    loaders.save_codec(tmp_path / "1" / "codec.npz", tree, meta)
    with pytest.raises(CheckpointError, match="another detector"):
        rate_accuracy.compare([tmp_path], tmp_path / "out", Options(anchors=()))


def _parts(codec):
    (first, *others) = codec.coder.models.values()
    stats = [m.variables["stats"] for m in (first, *others)]
    stacked = {k: np.stack([np.asarray(s[k]) for s in stats]) for k in ("mean", "scale")}
    return {**first.variables, "stats": dict(stats[0]) | stacked}, first.tables


def test_mode_eval_compares_a_folder_of_runs(runs, done, monkeypatch):
    seen = {}

    def run(dirs, out, **options):
        seen.update(dirs=dirs, out=out, **options)

    monkeypatch.setattr(comparing, "run", run)
    assert main_module.main(["--mode=eval", f"--workdir={runs}", "--config.data.dir=X"]) == 0
    assert seen["out"] == runs / "comparison" and seen["overrides"] == ("data.dir=X",)
    assert seen["dirs"] == [runs]


def test_the_documents_names_are_understood(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        comparing, "run", lambda dirs, out, **o: seen.update(dirs=dirs, out=out, **o)
    )
    argv = ["evaluate", "--checkpoint_dir", "A", "--output_dir=B", "--detection_model=C.npz"]
    assert cli.main([*argv, "--test_data=D"]) == 0
    assert (seen["dirs"], seen["out"], seen["detector"]) == ([Path("A")], Path("B"), "C.npz")
    assert seen["overrides"] == ("data.dir=D",) and seen["config"] is None


def test_the_page_is_made_again(done, capsys):
    (done / "index.html").unlink()
    assert cli.main(["report", str(done)]) == 0
    assert "comparison" in capsys.readouterr().out and (done / "index.html").exists()
    saved = (done / comparison.RESULTS).read_text()
    (done / comparison.RESULTS).write_text(saved[:100])
    assert cli.main(["report", str(done)]) == 1
    assert "run the evaluation again" in capsys.readouterr().err
    (done / comparison.RESULTS).write_text(saved)


def test_real_frames_pass_with_kittis_own_numbers(shared, tmp_path):
    """Two held-out frames of 375 x 1242, stretched to a small network input."""
    toy.save_run(tmp_path / "run", "joint", 0.01, seed=1)
    out = tmp_path / "out"
    argv = ["evaluate", str(tmp_path / "run"), f"--out={out}", "--anchors=webp,boxes"]
    argv += ["--frames=2", "--bootstrap=10", f"--config.data.dir={shared / 'data' / 'kitti'}"]
    argv += ["--config.data.name=kitti", "--config.data.resize=stretch"]
    argv += ["--config.data.train_size=0", "--config.data.val_size=0"]
    assert cli.main(argv) == 0
    found = results(out)
    assert found["frames"] == 2 and found["data"] == "kitti"
    assert found["uncompressed"]["pixels_per_frame"] > 400_000  # the images as they are stored
    for point in (found["uncompressed"], *found["points"]):
        assert set(point["kitti"]["scores"]["Car"]["2d"]["r40"]) == {"easy", "moderate", "hard"}
        assert point["kitti"]["intervals"]["replicates"] == 10
    (joint,) = [p for p in found["points"] if p["kind"] == "learned"]
    assert set(joint["stream_bytes_per_frame"]) == {"joint"}
    assert set(joint["level_relative_mse"]) == set(LEVELS)
    assert "heat_joint" in comparison.stored_arrays(out, joint["name"])
    names = (out / "results" / "frames.txt").read_text().split()
    assert all((out / "results" / "boxes" / f"{name}.txt").exists() for name in names)
    assert "KITTI Car moderate" in (out / "index.html").read_text()
    images = [p["bytes_per_frame"] for p in found["points"] if p["kind"] == "image"]
    assert images == sorted(images) and images[0] > 5000
