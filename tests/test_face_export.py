"""Face detectors in other runtimes: the graph against JAX, the folder to ship, bad input."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import flax.traverse_util
import jax
import numpy as np
import pytest
from PIL import Image

from jaxcomp.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from jaxcomp.interop.featherface_names import abstract_variables
from jaxcomp.interop.onnx_face import face_onnx
from jaxcomp.jobs import deploying, exporting
from jaxcomp.loaders_face import LoadedFaceDetector
from jaxcomp.models.featherface import VARIANTS, FaceConfig, FaceDetector, decode

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# Each part of the five networks is in one of these, with few channels.
HEAVY = dataclasses.replace(
    VARIANTS["v1_original"], features=16, cells=2, score_threshold=0.3, max_detections=20
)
LIGHT = dataclasses.replace(VARIANTS["v2"], features=16, cells=1)
PLAIN = dataclasses.replace(VARIANTS["retinaface"], features=16, mixer="shuffle")


def make(cfg: FaceConfig) -> LoadedFaceDetector:
    rng, model = np.random.default_rng(0), FaceDetector(cfg)
    flat = {}
    for name, leaf in abstract_variables(model).items():
        x = 0.15 * rng.standard_normal(leaf.shape)
        positive = name.endswith(("var", "scale", "_weights"))
        flat[name] = (1 + x if positive else x).astype(np.float32)
    return LoadedFaceDetector(model, flax.traverse_util.unflatten_dict(flat, sep="/"), {})


@pytest.fixture(scope="module")
def plain():
    return make(PLAIN)


SIZE = (40, 72)  # no multiples of 32: borders and sizes come from the shapes


@functools.cache
def computed(cfg):
    """(input, outputs of JAX, the detector)."""
    detector = make(cfg)
    x = exporting.sample_input(SIZE, 2)
    run = jax.jit(exporting.raw_outputs, static_argnums=0)
    ours = jax.device_get(run(detector.model, detector.variables, x))
    return x, ours, detector


@pytest.mark.parametrize("cfg", [HEAVY, LIGHT, PLAIN], ids=["heavy", "light", "plain"])
def test_one_graph_for_every_size_agrees_with_jax(cfg):
    x, ours, detector = computed(cfg)
    one = exporting.session(face_onnx(detector.variables, cfg).SerializeToString())
    theirs = exporting.run_session(one, x)
    assert list(theirs) == ["bbox_regressions", "classifications", "landmarks"]
    assert [i.name for i in one.get_inputs()] == ["input"]
    for name, value in theirs.items():
        assert value.shape == ours[name].shape and value.shape[:2] == (2, 132)
        np.testing.assert_allclose(value, ours[name], atol=1e-4)
        assert np.ptp(value) > 0.01
    alone = exporting.run_session(one, x[1:])
    for name, value in alone.items():
        np.testing.assert_allclose(value[0], theirs[name][1], atol=1e-5)
    assert exporting.run_session(one, x[:, :, :32, :32])["landmarks"].shape == (2, 42, 10)


def test_decoding_in_the_graph_is_that_of_jax():
    x, raw, detector = computed(HEAVY)
    content = face_onnx(detector.variables, HEAVY, decode=True).SerializeToString()
    found = exporting.run_session(exporting.session(content), x)
    maps = {"boxes": raw["bbox_regressions"], "landmarks": raw["landmarks"]}
    maps["classes"] = np.log(np.maximum(raw["classifications"], 1e-30))
    wanted = jax.device_get(jax.jit(lambda m: decode(m, SIZE, HEAVY))(maps))
    valid = wanted["valid"]
    assert valid.sum() > 4
    np.testing.assert_array_equal(np.bincount(found["batch_index"], minlength=2), valid.sum(1))
    for name in ("boxes", "landmarks", "scores"):
        np.testing.assert_allclose(found[name], wanted[name][valid], atol=2e-3)


def test_nothing_is_written_that_differs(plain, tmp_path):
    with pytest.raises(NonFiniteError, match="differs"):
        exporting.export_onnx(plain, tmp_path / "a.onnx", sizes=[(32, 32)], tolerance=0.0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"\.onnx"):
        exporting.export_onnx(plain, tmp_path / "a.bin", sizes=[])


def test_stablehlo_reads_back(plain, tmp_path):
    row = exporting.export_stablehlo(plain, tmp_path / "a.stablehlo", (32, 64))
    assert row["max_abs_difference"] == 0 and row["bytes"] > 1000


@pytest.fixture(scope="module")
def package(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    photos = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(2):
        picture = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(picture).save(photos / f"{i}.png")
    deploying.write_package(plain, folder, sizes=[], int8=True, calibration=photos, images=2)
    return folder


def test_a_package_is_whole(package):
    assert deploying.sums_hold(package)
    config = json.loads((package / "deployment_config.json").read_text())
    assert config["mean_bgr"] == [104.0, 117.0, 123.0] and config["nms_threshold"] == 0.4
    assert config["int8"]["bytes"] < 0.7 * config["int8"]["fp32_bytes"]
    assert len((package / "usage_example.py").read_text().splitlines()) <= 46
    with pytest.raises(DataError, match="calibrate"):
        list(deploying._calibration(package))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_example_runs_without_jaxcomp(package, tmp_path, mode):
    text = (package / "usage_example.py").read_text()
    assert "jax" not in text
    size = (1, 1) if mode == "L" else (50, 70)
    Image.new(mode, size).save(tmp_path / "photo.png")
    shutil.copytree(package, tmp_path / "package")
    command = [
        sys.executable,
        "-I",
        str(tmp_path / "package" / "usage_example.py"),
        "photo.png",
        "0",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "faces.png") as picture:
        assert picture.size == size


def test_sizes_from_words():
    assert exporting.parse_sizes("320,480x640") == [(320, 320), (480, 640)]
    assert exporting.parse_sizes("none") == []
    for wrong in ("333", "0", "64x", "a", "320x100"):
        with pytest.raises(ConfigError):
            exporting.parse_sizes(wrong)


def test_the_command_says_what_is_wrong(capsys, tmp_path):
    from jaxcomp import cli

    (tmp_path / "bad.npz").write_bytes(b"no weights")
    for words in (["bad.npz", "--sizes=333"], ["bad.npz"], ["bad.npz", "--int8"], ["none.npz"]):
        assert cli.main(["export", str(tmp_path / words[0]), *words[1:]]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(CheckpointError):
        from jaxcomp.loaders_face import load_face_detector

        load_face_detector(tmp_path / "bad.npz")


@pytest.mark.parametrize("cfg", [HEAVY, PLAIN], ids=["deformable", "plain"])
def test_integers_stay_away_from_what_moves_boxes(cfg):
    import onnx

    detector = make(cfg)
    content = face_onnx(detector.variables, cfg).SerializeToString()
    delicate = deploying.delicate_nodes(content)
    assert len(delicate) == 9  # boxes, classes and landmarks of three levels
    x = exporting.sample_input((64, 64))
    coarse = deploying.quantise(content, [x])
    graph = onnx.load_from_string(coarse).graph
    convs = {node.name: node for node in graph.node if node.op_type == "Conv"}
    kept = {name for name, node in convs.items() if "Dequantize" not in node.input[1]}
    assert kept == set(delicate) and len(kept) < len(convs)
    exact, found = (exporting.run_session(exporting.session(c), x) for c in (content, coarse))
    for name, value in found.items():
        assert (
            np.isfinite(value).all() and np.corrcoef(value.ravel(), exact[name].ravel())[0, 1] > 0.9
        )
