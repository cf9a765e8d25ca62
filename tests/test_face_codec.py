"""Codecs for the pyramid of a face detector: photos, the tail as judge, a run, a comparison."""

import dataclasses
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxcomp
from jaxcomp import cli, weights_file
from jaxcomp import main as main_module
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.config import load_config
from jaxcomp.data import make_splits, photos
from jaxcomp.errors import CheckpointError, ConfigError, DataError, ShapeError
from jaxcomp.inspecting import describe_config
from jaxcomp.interop.featherface_names import abstract_variables
from jaxcomp.jobs import frozen_features
from jaxcomp.jobs.feature_codec import network_record
from jaxcomp.jobs.found_faces import with_found
from jaxcomp.loaders import FaceSplit, load_split_detector
from jaxcomp.loaders_face import FACE_FILE, FACE_KIND, load_face_detector
from jaxcomp.models.featherface import FACE_LEVELS, VARIANTS, FaceDetector
from jaxcomp.tasks import face_distortion
from jaxcomp.tasks.feature_codec import codec_from_config

CONFIG = "configs/face_codec.py"
SMALL = dataclasses.replace(
    VARIANTS["retinaface"], features=8, max_detections=12, candidates=100, score_threshold=0.3
)


def drawn(cfg):
    """Random variables of a detector."""
    rng = np.random.default_rng(0)
    flat = {}
    for name, leaf in abstract_variables(FaceDetector(cfg)).items():
        x = 0.15 * rng.standard_normal(leaf.shape)
        positive = name.endswith(("var", "scale", "_weights"))
        flat[name] = (1 + x if positive else x).astype(np.float32)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / FACE_FILE
    weights_file.export_npz(path, drawn(SMALL), {"kind": FACE_KIND, "model": vars(SMALL)})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten small photos, one of them broken."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(10):
        coarse = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
        # Two sizes: on canvases of their own the latter has 64 rows, not 96.
        Image.fromarray(coarse).resize((90, 70 if i < 8 else 50)).save(root / f"{i:03}.png")
    (root / "broken.jpg").write_bytes(b"no picture")
    return root


def words(folder, weights, *more):
    sizes = {"data.height": 96, "data.width": 96, "data.crop": 64, "data.crops": 2}
    sizes |= {"data.around": 0, "data.found_score": 0.5}
    pairs = {**sizes, "data.dir": folder, "detector.path": weights, "model.in_channels": 8}
    return [*(f"--config.{k}={v}" for k, v in pairs.items()), *more]


def config_of(folder, weights, *more):
    return load_config(CONFIG, words(folder, weights, *more))


def test_photos_are_held_out_by_their_names(folder, weights, caplog):
    names = [p.name for p in photos.photo_files(str(folder))]
    held = [name for name in names if photos.held_out(name, 1 / 3)]
    assert 0 < len(held) < len(names)
    assert [photos.held_out(f"{i}", 0.25) for i in range(2000)].count(True) == pytest.approx(
        500, abs=80
    )
    splits = make_splits(config_of(folder, weights), 3)
    batches = list(splits.validation())
    assert sum(len(b["mask"]) for b in batches) >= len(held)
    image = batches[0]["image"][0]
    assert image.shape == (96, 96, 3) and tuple(batches[0]["image_size"][0]) == (70, 90)
    assert (image[70:] == photos.FILL).all() and (image[:, 90:] == photos.FILL).all()
    assert np.ptp(image[:70, :90]) > 50
    one, again = (list(splits.train_once()) for _ in range(2))
    assert one[0]["image"].shape == (3, 64, 64, 3)
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    masks = np.concatenate([b["mask"] for b in one + batches + again])
    assert 0 < masks.sum() < len(masks) and "broken.jpg" in caplog.text
    fatal = make_splits(config_of(folder, weights, "--config.data.on_junk=fatal"), 3)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        list(fatal.train_once()) + list(fatal.validation())


def test_photos_that_are_larger_than_the_canvas_are_shrunk():
    image = np.full((100, 300, 3), 7, np.uint8)
    canvas, size = photos.on_canvas(image, 64, 96)
    assert size == (32, 96) and (canvas[:32] == 7).all() and (canvas[32:] == photos.FILL).all()
    tiny = photos.crop_of(np.zeros((1, 1, 3), np.uint8), 32, np.random.default_rng(0))
    assert tiny.shape == (32, 32, 3)


def test_held_out_photos_are_measured_at_their_own_size(folder, weights):
    config = config_of(folder, weights, "--config.data.height=128", "--config.data.width=160")
    splits = make_splits(config, 3)
    whole = list(splits.validation())
    assert {b["image"].shape for b in whole} == {(3, 128, 160, 3)}
    alone = list(frozen_features.held_out_batches(splits))
    assert {b["image"].shape for b in alone} == {(1, 96, 96, 3), (1, 64, 96, 3)}
    masks = np.concatenate([b["mask"] for b in whole])
    assert len(alone) == masks.sum() < len(masks)
    ids = np.concatenate([b["image_id"] for b in whole])[masks > 0]
    assert [int(b["image_id"][0]) for b in alone] == ids.tolist()
    np.testing.assert_array_equal(alone[0]["image"][0], whole[0]["image"][0][:96, :96])
    (again,) = photos.at_own_size(alone[0])
    np.testing.assert_array_equal(again["image"], alone[0]["image"])


@pytest.mark.parametrize("box", [(30, 20, 50, 44), (0, 0, 30, 30), (95, 65, 120, 90)])
def test_a_crop_around_an_object_shows_all_of_it(box):
    image = np.zeros((90, 120, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    sides = []
    for seed in range(40):
        crop = photos.crop_of(image, 64, np.random.default_rng(seed), box)
        rows, columns = np.nonzero((crop[..., 0] > 150) & (crop[..., 2] > 150))
        wide, high = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert wide / high == pytest.approx((box[2] - box[0]) / (box[3] - box[1]), abs=0.4)
        sides.append(high)
    low, high = (scale * (box[3] - box[1]) for scale in photos.SCALES)
    assert low - 2 < min(sides) < max(sides) < high + 2
    whole = photos.crop_of(image, 32, np.random.default_rng(0), (0, 0, 120, 90))
    assert whole.shape == (32, 32, 3)


def test_training_photos_give_crops_around_what_is_found_in_them(folder, weights):
    more = ("--config.data.around=3", "--config.data.found_score=0.3")
    config = config_of(folder, weights, *more)
    detector = load_split_detector(weights, "face")
    copy = with_found(config, detector)
    kept, _ = photos.photo_parts(config.data)
    assert {len(row) for row in copy.data.found} == {5}
    assert all(0 <= row[0] < len(kept) for row in copy.data.found)
    plain, more = make_splits(config, 1), make_splits(copy, 1)
    extra = more.steps_per_epoch - plain.steps_per_epoch
    assert extra == 3 * len(copy.data.found) and more.fingerprint != plain.fingerprint
    rows = list(more.train_once())
    assert rows[-1]["image"].shape == (1, 64, 64, 3)
    assert "found" not in with_found(config_of(folder, weights), detector).data


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("data.crop=70", "multiple of 32"),
        ("detector.path=", "detector.path is empty"),
        ("detector.kind=lidar", "detector.kind"),
        ("evaluation.truth_score=2.0", "truth_score"),
    ],
)
def test_bad_values_are_named(folder, weights, wrong, what):
    with pytest.raises(ConfigError, match=what):
        config_of(folder, weights, f"--config.{wrong}")


def test_a_folder_without_photos_and_a_wrong_detector_are_told(tmp_path, folder, weights):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="photo"):
            make_splits(config_of(place, weights), 2)
    with pytest.raises(CheckpointError, match="no weights"):
        load_split_detector(tmp_path / "none.npz", "face")
    argv = [f"--config={CONFIG}", *words(folder, weights, "--config.model.in_channels=6")]
    assert main_module.main([*argv, f"--workdir={tmp_path / 'run'}"]) == 1


def test_the_detector_cut_in_two_is_the_detector(weights):
    whole = load_face_detector(weights)
    split = FaceSplit(whole)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
    found = split.tail(split.head(images), None)
    assert found["valid"].sum() > 2
    for i in range(2):
        alone = whole.detect(images[i])
        count = int(found["valid"][i].sum())
        assert count == len(alone["scores"])
        np.testing.assert_allclose(found["boxes"][i, :count], alone["boxes"], atol=1e-2)
        np.testing.assert_allclose(found["scores"][i, :count], alone["scores"], atol=1e-4)
    assert split.digest == whole.digest


@pytest.mark.parametrize("variant", ["retinaface", "v2"])
def test_one_level_of_the_tail_is_that_of_the_whole(variant):
    model = FaceDetector(dataclasses.replace(VARIANTS[variant], features=16, cells=1))
    variables = drawn(model.cfg)
    rng = np.random.default_rng(2)
    sizes = {"p3": (8, 6), "p4": (4, 3), "p5": (2, 2)}
    pyramid = {k: rng.normal(0, 1, (2, *s, 16)).astype(np.float32) for k, s in sizes.items()}

    def both(pyramid):
        outputs = face_distortion.level_outputs
        levels = [outputs(model, variables, name, pyramid[name]) for name in FACE_LEVELS]
        return levels, model.apply(variables, pyramid, method="tail")

    levels, whole = jax.jit(both)(pyramid)
    for name, wanted in whole.items():
        np.testing.assert_allclose(
            np.concatenate([one[name] for one in levels], 1), wanted, atol=1e-5
        )


def test_the_judge_wants_faces_and_forgives_background():
    rng = np.random.default_rng(3)
    classes = np.zeros((1, 32, 2), np.float32)
    classes[0, :, 0], classes[0, :4, 1] = 6, 12  # the first four anchors are sure of a face
    target = {
        "hidden": rng.normal(0, 1, (1, 4, 4, 3)), "classes": classes,
        "boxes": rng.normal(0, 1, (1, 32, 4)), "landmarks": rng.normal(0, 1, (1, 32, 10)),
    }  # fmt: skip
    target = {k: jnp.asarray(v, jnp.float32) for k, v in target.items()}
    distance = jax.jit(face_distortion.distance)
    assert float(distance(target, target)[0]) == pytest.approx(0, abs=1e-5)

    def moved(anchor, shift=1.0):
        return {**target, "boxes": target["boxes"].at[0, anchor].add(shift)}

    def rated(anchor, face):
        return {**target, "classes": target["classes"].at[0, anchor, 1].set(face)}

    assert distance(target, moved(1))[0] > 1.9
    assert distance(target, moved(20, 300.0))[0] < 0.02  # no one reads a background's box
    lost, invented = rated(1, 0.0), rated(20, 12.0)
    assert distance(target, lost)[0] > 3 and distance(target, invented)[0] > 3
    assert distance(target, rated(20, 3.0))[0] < 0.1 * distance(target, invented)[0]


def test_the_judge_passes_deformable_convolutions_in_loops_and_inference_does_not(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    model = FaceDetector(dataclasses.replace(VARIANTS["v1"], features=8, cells=1))
    variables = drawn(model.cfg)
    rng = np.random.default_rng(4)
    x, moved = (rng.normal(0, 1, (2, 6, 5, 8)).astype(np.float32) for _ in range(2))
    judge = face_distortion.FaceDistortion(model, 1.0)

    def seen(y):
        return judge.level(variables, "p3", x, y, jnp.zeros((2, 0, 4))).sum()

    def plainly(y):
        before, after = (face_distortion.level_outputs(model, variables, "p3", f) for f in (x, y))
        return face_distortion.distance(before, after).sum() / 30

    programs = [jax.jit(jax.value_and_grad(f)).lower(moved) for f in (seen, plainly)]
    assert ["jaxcomp_gather_sum" in p.as_text() for p in programs] == [True, False]
    (loss, gradient), (wanted, slope) = (p.compile()(moved) for p in programs)
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    np.testing.assert_allclose(gradient, slope, atol=1e-4 * np.abs(slope).max())


def test_the_limit_is_on_record_beside_the_network():
    config = load_config(CONFIG, ["detector.path=x", "data.dir=y"])
    codec = codec_from_config(config.model)
    record = network_record(config, codec)["model"]
    assert codec.limit == record["limit"] == FactorisedCodec(**record).limit == 12


def test_what_a_config_builds():
    more = ["detector.path=x", "data.dir=y"]
    for treatment, channels in (("joint", 192), ("random", 64)):
        found = describe_config(load_config(f"{CONFIG}:{treatment}", more))
        assert found["feature_shape"] == [80, 80, channels]


def _files(run, photo, weights, folder):
    """A photo to a stream and back to faces, by the commands."""
    stream, boxes = folder / "one.jxc", folder / "one.json"
    given = ["--codec", str(run), "--detector", str(weights)]
    assert cli.main(["compress", str(photo), *given, "--out", str(stream)]) == 0
    argv = ["detect", str(photo), "--stream", str(stream), *given, "--score=0.1", "--no-pictures"]
    assert cli.main([*argv, "--out", str(boxes)]) == 0
    record = json.loads(boxes.read_text())
    assert record["image_size"] == [70, 90] and len(record["detections"]) > 0
    assert {row["label"] for row in record["detections"]} == {"Face"}


def test_photos_of_any_size_reach_the_network(weights):
    split = load_split_detector(weights, "face")
    image, meta = split.prepare(np.zeros((100, 300, 3), np.uint8), {"height": 64, "width": 96})
    assert image.shape == (1, 32, 96, 3) and meta["image_size"].tolist() == [[32, 96]]
    np.testing.assert_allclose(meta["scale"], [[0.32, 0.32]])
    with pytest.raises(ShapeError, match="p5"):
        split.detect_from_features({"p3": np.zeros((1, 4, 12, 8), "f4")})


@pytest.mark.slow
@pytest.mark.parametrize("treatment", ["joint", "random"])
def test_a_run_and_its_comparison(treatment, tmp_path, folder, weights, capsys):
    run = tmp_path / "run"
    argv = [
        f"--config={CONFIG}:{treatment}", f"--workdir={run}",
        *words(folder, weights, "--config.model.n_hidden=4", "--config.model.n_channels=4"),
        "--config.model.stages=1", "--config.training.epochs=2", "--config.training.batch_size=2",
        "--config.log.progress=False", "--config.evaluation.truth_score=0.4",
    ]  # fmt: skip
    assert main_module.main(argv) == 0, capsys.readouterr()
    summary = json.loads((run / "summary.json").read_text())
    held = [p for p in photos.photo_files(str(folder)) if photos.held_out(p.name, 1 / 3)]
    held = [p for p in held if p.suffix == ".png"]
    files = sorted((run / "streams").glob("*.jxc"))
    assert summary["frames"] == len(files) == len(held) and summary["treatment"] == treatment
    assert tuple(summary["levels"]) == FACE_LEVELS
    assert summary["map50_uncompressed"] == pytest.approx(1.0)
    assert "P3-P5" in (run / "index.html").read_text()
    codec, detector = jaxcomp.load_codec(run), load_face_detector(weights)
    assert next(iter(codec.coder.models.values())).codec.limit == 12
    assert max(level["shape"][0] for level in summary["levels"].values()) == 12  # of 96 rows
    assert "up to 12×12×8" in (run / "index.html").read_text()  # noqa: RUF001
    codec.check_detector(detector)
    features = detector.get_features(held[0])
    blob = codec.compress(features)
    restored = codec.decompress(blob)
    assert {k: x.shape for k, x in restored.items()} == {k: x.shape for k, x in features.items()}
    found = detector.detect_from_features(restored, (70, 90))
    assert found["landmarks"].shape[1:] == (5, 2)
    if treatment == "random":
        return
    _files(run, held[0], weights, tmp_path)
    out = tmp_path / "comparison"
    argv = ["evaluate", str(run), f"--out={out}", "--anchors=detections,jpeg", "--frames=2"]
    assert cli.main([*argv, "--bootstrap=10"]) == 0
    results = json.loads((out / "rate_accuracy.json").read_text())
    assert results["classes"] == ["Face"] and results["uncompressed"]["accuracy"]["map50"] == 1
    by_kind = {point["kind"]: point for point in results["points"]}
    assert by_kind["learned"]["whole"] and by_kind["local"]["accuracy"]["map50"] == 1
    assert by_kind["image"]["bytes_per_frame"] > 100


class Fake:
    """A detector whose scores are the features themselves."""

    levels = ("p3",)

    def head(self, images):
        return {"p3": np.asarray(images)[:, :1, :1, :1] / np.float32(255)}

    def tail(self, features, image_size):
        scores = np.asarray(features["p3"], np.float32).reshape(-1, 1)
        boxes = np.tile(np.asarray([[[0, 0, 5, 5]]], np.float32), (len(scores), 1, 1))
        ones = np.ones(scores.shape, np.int32)
        return {"boxes": boxes, "scores": scores, "labels": ones, "valid": ones > 0}


def test_crops_with_and_without_objects_are_as_many(folder, weights):
    config = config_of(folder, weights)
    scores = np.linspace(0, 1, 50, dtype="f4").reshape(-1, 1, 1, 1) ** 3
    rows = frozen_features.balanced(config, Fake(), {"p3": scores, "row": np.arange(50)})
    assert (rows["p3"] >= 0.5).sum() == (scores >= 0.5).sum() == len(rows["row"]) / 2
    np.testing.assert_array_equal(rows["p3"], scores[rows["row"]])
    none = {"p3": 0 * scores}
    assert frozen_features.balanced(config, Fake(), none) is none
    off = config_of(folder, weights, "--config.data.balanced=False")
    assert frozen_features.balanced(off, Fake(), {"p3": scores})["p3"] is scores


def test_the_truth_of_photos_is_the_detector_itself(folder, weights):
    config = config_of(folder, weights)
    image = np.zeros((2, 4, 4, 3), np.uint8)
    image[1] = 200
    batch = {"image": image, "mask": np.ones(2, "f4")}
    (labelled,) = frozen_features.with_truth(config, Fake(), [batch])
    np.testing.assert_array_equal(labelled["valid"], [[False], [True]])
    assert not labelled["ignore"].any() and labelled["boxes"].shape == (2, 1, 4)
    assert next(frozen_features.with_truth(config, Fake(), [labelled])) is labelled
