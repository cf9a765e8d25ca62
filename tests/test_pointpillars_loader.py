"""The lidar detector from a file: split law, any input, shipped weights."""

import importlib.resources
import json

import flax.traverse_util
import jax
import lidar_toy as toy
import numpy as np
import pytest

import jaxcomp
from jaxcomp import weights_file
from jaxcomp.data.lidar_records import LidarFrame, LidarRecords
from jaxcomp.data.scenes_frame import SceneSettings, render_frame
from jaxcomp.errors import CheckpointError, DataError, ShapeError
from jaxcomp.interop.pointpillars_weights import abstract_variables, pointpillars_to_torch
from jaxcomp.interop.torch_weights import write_torch
from jaxcomp.jobs.pointpillars import evaluate_lidar_detector
from jaxcomp.loaders_lidar import KIND, load_lidar_detector
from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig
from jaxcomp.models.pointpillars_layers import scatter
from jaxcomp.tasks.pointpillars import init_variables


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file as training exports it, with scores high enough to detect something."""
    variables = init_variables(PointPillars(toy.CFG), jax.random.key(1))
    bias = variables["params"]["outputs"]["classes_bias"]
    variables["params"]["outputs"]["classes_bias"] = np.zeros_like(bias)
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), variables["params"])
    file = tmp_path_factory.mktemp("lidar") / "pointpillars.npz"
    meta = {"kind": KIND, "model": json.loads(json.dumps(toy.SIZES)), "classes": toy.CFG.classes}
    weights_file.export_npz(file, {**variables, "params": half}, meta)
    return file


@pytest.fixture(scope="module")
def detector(path):
    return load_lidar_detector(path)


def same(a, b):
    for name in ("boxes", "scores", "labels", "valid"):
        np.testing.assert_array_equal(a[name], b[name])


def test_the_halves_are_the_whole(detector):
    sweeps = [toy.sweep(60, 1), toy.sweep(80, 2)]
    whole = detector.detect(sweeps)
    features = detector.head(sweeps)
    same(detector.tail(features), whole)
    same(detector.tail(np.asarray(features["bev"])), whole)
    assert whole["valid"].any(1).all() and whole["boxes"].shape[::2] == (2, 7)
    direct = jax.jit(detector.model.apply)(detector.variables, detector.pillars(sweeps))
    for name, value in detector.maps(features).items():
        np.testing.assert_allclose(value, direct[name], rtol=1e-4, atol=1e-5)


def test_one_sweep_a_list_and_a_file_are_the_same(detector, tmp_path):
    points = toy.sweep(70, 3)
    points.tofile(tmp_path / "a.bin")
    one = detector.detect(points)
    same(detector.detect([points]), one)
    same(detector.detect(tmp_path / "a.bin"), one)
    same(detector.detect(str(tmp_path / "a.bin")), one)
    same(detector.detect(detector.pillars(points)), one)


def test_occupancy_says_where_features_are(detector):
    found = detector.head([toy.sweep(60, 1), np.zeros((0, 4), np.float32)])
    full = np.asarray(found["occupancy"])
    assert full.dtype == bool and full.shape == (2, *toy.CFG.grid.shape)
    assert 0 < full[0].sum() <= 60 and not full[1].any()
    assert not np.asarray(found["bev"])[~full].any()
    pillars, where = detector.encode(toy.sweep(60, 1))
    np.testing.assert_array_equal(scatter(pillars, where.cells, toy.CFG.grid), found["bev"][:1])


BAD = toy.sweep(40)
BAD[:7, 2] = np.nan


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(np.zeros((0, 4), np.float32), id="empty"),
        pytest.param(np.full((30, 4), np.nan, np.float32), id="nan"),
        pytest.param(np.full((30, 4), np.inf, np.float32), id="inf"),
        pytest.param(toy.sweep(50) - np.float32(900), id="out-of-range"),
    ],
)
def test_sweeps_without_a_usable_point_have_an_empty_canvas(detector, points):
    features = detector.head(points)
    assert not np.asarray(features["bev"]).any() and not np.asarray(features["occupancy"]).any()
    assert np.isfinite(detector.tail(features)["boxes"]).all()


def test_bad_points_are_as_if_they_were_not_there(detector):
    same(detector.detect(BAD), detector.detect(BAD[7:]))


def test_large_sweeps_overflow_loudly(detector, caplog):
    before = detector.voxelise.counts()["dropped_pillars"]
    found = detector.detect(toy.sweep(200_000))
    assert np.isfinite(found["scores"]).all()
    lost = detector.voxelise.counts()["dropped_pillars"] - before
    assert lost == toy.CFG.grid.cells - toy.CFG.max_pillars_eval
    assert "no room for" in caplog.text


def test_features_that_are_not_finite_give_no_detection(detector):
    canvas = np.asarray(detector.head(toy.sweep(60))["bev"]) * np.nan
    found = detector.tail(canvas)
    assert not found["valid"].any() and not found["boxes"].any()


def test_what_is_no_sweep_is_refused(detector, tmp_path):
    (tmp_path / "cut.bin").write_bytes(b"\0" * 50)
    with pytest.raises(DataError, match=r"cut\.bin: 50 bytes.*truncated"):
        detector.detect(tmp_path / "cut.bin")
    with pytest.raises(ShapeError):
        detector.detect(np.zeros((5, 3), np.float32))
    with pytest.raises(ShapeError, match="give"):
        detector.detect(7)
    with pytest.raises(ShapeError, match=r"needs \[B, 16, 16, 8\]"):
        detector.tail(np.zeros((1, 16, 16, 9), np.float32))
    with pytest.raises(ShapeError, match="one or more"):
        detector.detect([])


def test_files_that_are_no_detector_are_refused(path, tmp_path):
    tree, meta = weights_file.load_npz(path)
    cases = {
        "other kind": (tree, {**meta, "kind": "detector"}, "'detector'.*lidar detector is needed"),
        "no model": (tree, {k: v for k, v in meta.items() if k != "model"}, "not a complete"),
        "other sizes": (
            tree,
            {**meta, "model": {**meta["model"], "encoder_features": 9}},
            "of another model",
        ),
        "no stats": ({"params": tree["params"]}, meta, "missing"),
    }
    for name, (content, record, words) in cases.items():
        weights_file.export_npz(tmp_path / "x.npz", content, record)
        with pytest.raises(CheckpointError, match=words):
            load_lidar_detector(tmp_path / "x.npz")
            pytest.fail(name)
    (tmp_path / "x.npz").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError):
        load_lidar_detector(tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match="no weights"):
        load_lidar_detector(tmp_path / "nowhere")


def test_the_package_offers_it(path):
    detector = jaxcomp.load_lidar_detector(path.parent)
    assert detector.classes == toy.CFG.classes and len(detector.digest) == 64


# --- the file that ships --------------------------------------------------------------------------


def test_the_shipped_detector_is_small_and_says_what_it_is():
    detector = jaxcomp.load_lidar_detector()
    folder = importlib.resources.files("jaxcomp") / "weights"
    size = len((folder / "pointpillars_scenes.npz").read_bytes())
    assert size <= 3_000_000
    assert detector.classes == ("Pedestrian", "Cyclist", "Car")
    assert detector.meta["config"]["profile"] == "embedded"
    found = detector.detect(np.zeros((0, 4), np.float32))
    assert found["valid"].shape == (1, 50) and not found["valid"].any()


def scene(settings, i):
    """A held-out scene as a lidar frame."""
    made = render_frame(settings, "validation", i)
    size = (settings.height, settings.width, settings.height)
    return LidarFrame(f"{i:06d}", lambda: made.points, made.calibration, tuple(made.objects), *size)


@pytest.mark.slow
def test_the_shipped_lidar_detector_has_its_accuracy():
    """The held-out scenes are rendered anew; the numbers are those in the file."""
    detector = jaxcomp.load_lidar_detector()
    data = detector.meta["config"]["data"]
    settings = SceneSettings(**{k: data[k] for k in ("height", "width", "beams", "azimuths")})
    frames = [scene(settings, i) for i in range(data["val_size"])]
    records = LidarRecords(frames, detector.classes, 32)
    metrics, _ = evaluate_lidar_detector(detector, records, batch_size=4)
    stored = detector.meta["metrics"]
    assert {"map_3d_moderate_r40", "map_bev_moderate_r40"} <= set(stored)
    for name, value in stored.items():
        assert metrics[name] == pytest.approx(value, abs=0.5), name


def test_the_originals_weights_are_read_as_they_are(tmp_path):
    cfg = PointPillarsConfig()
    shapes = abstract_variables(cfg)
    rng = np.random.default_rng(0)
    flat = {k: rng.normal(0, 0.02, v.shape).astype(np.float32) for k, v in shapes.items()}
    variables = flax.traverse_util.unflatten_dict(flat, sep="/")
    write_torch(tmp_path / "epoch_160.pth", pointpillars_to_torch(variables, cfg))
    detector = load_lidar_detector(tmp_path / "epoch_160.pth")
    assert detector.cfg == cfg and detector.meta["source"] == "epoch_160.pth"
    jax.tree.map(np.testing.assert_array_equal, detector.variables, variables)
