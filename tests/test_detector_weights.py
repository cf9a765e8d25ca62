"""Our detector's variables against torchvision's names, axes and values."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest

import jaxcomp
from jaxcomp import cli
from jaxcomp.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError
from jaxcomp.interop.detector_names import abstract_variables, tensor_table
from jaxcomp.interop.detector_weights import detector_from_torch, detector_to_torch
from jaxcomp.interop.torch_weights import read_weights, write_torch
from jaxcomp.jobs import weights
from jaxcomp.loaders import load_detector
from jaxcomp.models.faster_rcnn import DetectorConfig

SHIPPED = Path(jaxcomp.__file__).parent / "weights" / "detector_scenes.npz"

PREDICTOR = "roi_heads.box_predictor"
NARROW = DetectorConfig(
    stem_features=8,
    stage_blocks=(1, 2, 1, 1),
    stage_features=(16, 16, 32, 32),
    fpn_features=8,
    anchor_ratios=(0.5, 2.0),
    rpn_convs=1,
    pool_size=3,
    box_convs=2,
    box_conv_features=12,
    box_fc=16,
)


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )


def flat(variables):
    return flax.traverse_util.flatten_dict(variables, sep="/")


@pytest.fixture(scope="module")
def state():
    """A state dictionary of the narrow detector with distinct values everywhere."""
    rng = np.random.default_rng(0)
    table = tensor_table(NARROW)
    out = {e.name: rng.standard_normal(e.shape).astype(np.float32) for e in table}
    norms = [k.removesuffix("running_var") for k in out if k.endswith("running_var")]
    return out | {f"{k}num_batches_tracked": np.int64(7) for k in norms}


@pytest.fixture(scope="module")
def oracle(shared):
    return oracle_files.read(shared / "oracles", "fasterrcnn_r50_fpn_v2")


def test_names_shapes_and_order_are_torchvisions(oracle):
    wanted = [(e["name"], tuple(e["shape"])) for e in oracle.meta["manifest"]]
    wanted = [e for e in wanted if not e[0].endswith("num_batches_tracked")]
    assert [(e.name, e.shape) for e in tensor_table(DetectorConfig())] == wanted


def test_full_size_round_trip_is_exact(oracle):
    state = oracle.recipe.state_dict(oracle.meta["manifest"], oracle.meta["seed"])
    variables, report = detector_from_torch(state, DetectorConfig())
    assert report.parameters == 43_261_278
    assert (report.file_classes, report.replaced, report.converted) == (3, (), {})
    assert report.tensors + report.ignored == len(state)
    back = detector_to_torch(variables, DetectorConfig())
    assert list(back) == list(state)
    assert same(back, state)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"box_convs": 0, "rpn_convs": 3},
        {"stem_features": 16, "stage_features": (16, 16, 16, 16), "stage_blocks": (2, 1, 3, 1)},
        {"num_classes": 6, "pool_size": 5, "anchor_ratios": (1.0,)},
    ],
)
def test_other_sizes_cover_every_variable_and_come_back(change):
    cfg = dataclasses.replace(NARROW, **change)
    rng = np.random.default_rng(1)
    wanted = abstract_variables(cfg)
    leaves = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in wanted.items()}
    variables = flax.traverse_util.unflatten_dict(leaves, sep="/")
    back, _ = detector_from_torch(detector_to_torch(variables, cfg), cfg)
    assert same(flat(back), leaves)


def test_kernels_compute_the_same_convolution(state):
    name, path = "backbone.body.layer2.0.conv2.weight", "body/stage2_block1/conv2/conv/kernel"
    x = np.random.default_rng(2).standard_normal((2, 4, 9, 7)).astype(np.float32)
    variables, _ = detector_from_torch(state, NARROW)
    kernel = flat(variables)[f"params/{path}"]
    pad = ((1, 1), (1, 1))
    theirs = jax.lax.conv(x, jnp.asarray(state[name]), (1, 1), pad)
    ours = jax.lax.conv_general_dilated(
        x.transpose(0, 2, 3, 1), kernel, (1, 1), pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, rtol=1e-5, atol=1e-5)


def test_hidden_layer_sees_the_map_that_torch_flattens_channels_first(state):
    name, path = "roi_heads.box_head.3.weight", "params/box_head/hidden/kernel"
    pooled = np.random.default_rng(3).standard_normal((5, 12, 3, 3)).astype(np.float32)
    variables, _ = detector_from_torch(state, NARROW)
    theirs = pooled.reshape(5, -1) @ state[name].T
    ours = pooled.transpose(0, 2, 3, 1).reshape(5, -1) @ flat(variables)[path]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_predictor_and_statistics_go_where_they_belong(state):
    params, stats = (detector_from_torch(state, NARROW)[0][k] for k in ("params", "batch_stats"))
    boxes = params["box_head"]["boxes"]["kernel"].reshape(16, NARROW.num_classes, 4)
    theirs = state[f"{PREDICTOR}.bbox_pred.weight"]
    assert np.array_equal(boxes[:, 2, 1], theirs[2 * 4 + 1])
    norm = "backbone.body.layer1.0.downsample.1"
    ours = stats["body"]["stage1_block1"]["downsample"]["norm"]
    assert np.array_equal(ours["mean"], state[f"{norm}.running_mean"])
    assert np.array_equal(ours["var"], state[f"{norm}.running_var"])
    scale = params["body"]["stage1_block1"]["downsample"]["norm"]["scale"]
    assert np.array_equal(scale, state[f"{norm}.weight"])


def test_arrays_are_the_callers_own_no_more(state):
    variables, _ = detector_from_torch(state, NARROW)
    exported = detector_to_torch(variables, NARROW)
    for leaves in (flat(variables), exported):
        assert not any(np.shares_memory(v, w) for v in leaves.values() for w in state.values())
        assert all(v.flags.c_contiguous for v in leaves.values())


def test_another_class_count_is_refused_or_replaced(state):
    cfg = dataclasses.replace(NARROW, num_classes=5)
    with pytest.raises(CheckpointError, match=r"'w.pth' has 3 classes.* has 5.*--replace-head"):
        detector_from_torch(state, cfg, source="'w.pth'")
    variables, report = detector_from_torch(state, cfg, replace_head=True, seed=1)
    head = variables["params"]["box_head"]
    assert head["classes"]["kernel"].shape == (16, 5) and head["boxes"]["bias"].shape == (20,)
    assert report.file_classes == 3
    assert set(report.replaced) == {
        f"{PREDICTOR}.{m}.{v}" for m in ("cls_score", "bbox_pred") for v in ("weight", "bias")
    }
    drawn = np.concatenate([x.ravel() for x in jax.tree.leaves([head["classes"], head["boxes"]])])
    assert 0.2 < np.abs(drawn).max() <= 0.25  # U(-1/sqrt(16), 1/sqrt(16))
    again, _ = detector_from_torch(state, cfg, replace_head=True, seed=1)
    other, _ = detector_from_torch(state, cfg, replace_head=True, seed=2)
    assert same(flat(again), flat(variables)) and not same(flat(other), flat(variables))
    rest = {k: v for k, v in flat(variables).items() if "classes" not in k and "boxes" not in k}
    kept = flat(detector_from_torch(state, NARROW)[0])
    assert same(rest, {k: kept[k] for k in rest})


def test_an_equal_class_count_keeps_the_predictor(state):
    variables, report = detector_from_torch(state, NARROW, replace_head=True)
    assert report.replaced == ()
    assert same(flat(variables), flat(detector_from_torch(state, NARROW)[0]))


def test_missing_and_left_over_names_are_listed(state):
    bad = {k: v for k, v in state.items() if "layer1" not in k}
    bad["roi_heads.mask_head.0.0.weight"] = np.zeros(3, np.float32)
    words = r"20 names are missing \(backbone.body.layer1.0.conv1.weight, .* and 17 more\), 1 are "
    with pytest.raises(CheckpointError, match=words + r"left over \(roi_heads.mask_head"):
        detector_from_torch(bad, NARROW)
    with pytest.raises(CheckpointError, match="are missing"):
        detector_from_torch({}, NARROW, replace_head=True)


def test_a_wrong_shape_is_named(state):
    name = "backbone.fpn.inner_blocks.1.0.weight"
    with pytest.raises(CheckpointError, match=rf"{name} is \[8, 16, 1\], needed \[8, 16, 1, 1\]"):
        detector_from_torch(state | {name: state[name][..., 0]}, NARROW)


def test_half_precision_is_converted_and_said(state):
    name = "rpn.head.cls_logits.weight"
    variables, report = detector_from_torch(state | {name: state[name].astype(np.float16)}, NARROW)
    assert report.converted == {"float16": 1}
    assert {v.dtype for v in flat(variables).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(state, value):
    name = "backbone.body.bn1.running_var"
    bad = state[name].astype(np.float64)
    bad[3] = value
    with pytest.raises(NonFiniteError, match=name):
        detector_from_torch(state | {name: bad}, NARROW)


def test_basic_blocks_have_no_counterpart(state):
    cfg = dataclasses.replace(NARROW, bottleneck=False)
    with pytest.raises(ConfigError, match="bottleneck=False"):
        detector_from_torch(state, cfg)
    with pytest.raises(ConfigError, match="bottleneck=False"):
        detector_to_torch({}, cfg)


def test_export_refuses_variables_of_another_detector(state):
    variables, _ = detector_from_torch(state, NARROW)
    with pytest.raises(ShapeError, match="rpn/Conv_1"):
        detector_to_torch(variables, dataclasses.replace(NARROW, rpn_convs=2))
    with pytest.raises(ShapeError, match=r"box_head/classes/kernel has shape \[16, 3\].*\[16, 4\]"):
        detector_to_torch(variables, dataclasses.replace(NARROW, num_classes=4))


# --- the commands ----------------------------------------------------------------------------


@pytest.fixture
def narrow_file(state, tmp_path, monkeypatch):
    """A .pth of the narrow detector; the commands take that size for torchvision's."""
    monkeypatch.setattr(weights, "DetectorConfig", functools.partial(dataclasses.replace, NARROW))
    names = {f"module.{name}": value for name, value in state.items()}
    write_torch(tmp_path / "run.pth", names)
    return tmp_path / "run.pth"


def run(capsys, *words):
    status = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_import_makes_a_detector_and_export_gives_the_file_back(narrow_file, state, capsys):
    out, back = narrow_file.with_name("d.npz"), narrow_file.with_name("back.safetensors")
    words = (
        "import-weights",
        narrow_file,
        "--model",
        "faster_rcnn",
        "--classes",
        "Car, Pedestrian",
    )
    status, text, _ = run(capsys, *words, "--out", out)
    assert status == 0 and "tensors" in text and "new" not in text
    detector = load_detector(out)
    wanted, report = detector_from_torch(state, NARROW)
    assert same(flat(jax.tree.map(np.asarray, detector.variables)), flat(wanted))
    assert detector.classes == ("Car", "Pedestrian") and detector.model.cfg == NARROW
    meta = detector.meta
    assert (meta["resize"], meta["min_side"], meta["max_side"]) == ("shortest", 800, 1333)
    assert (meta["height"], meta["width"]) == (416, 1344)
    assert meta["source"]["file"] == "run.pth"
    assert meta["source"]["sha256"] == hashlib.sha256(narrow_file.read_bytes()).hexdigest()
    assert meta["source"]["parameters"] == report.parameters
    assert run(capsys, "export-weights", out, back)[0] == 0
    weights_back = read_weights(back)
    assert same(dict(sorted(weights_back.items())), without_counters(state))


def without_counters(state):
    return {k: v for k, v in sorted(state.items()) if not k.endswith("num_batches_tracked")}


def test_import_refuses_other_classes_unless_asked(narrow_file, capsys):
    out = narrow_file.with_name("d.npz")
    words = ("import-weights", narrow_file, "--model", "faster_rcnn", "--out", out, "--classes")
    status, _, err = run(capsys, *words, "A")
    assert status == 1 and "3 classes" in err and err.count("\n") == 1 and not out.exists()
    status, text, _ = run(capsys, *words, "A", "--replace-head", "--seed", 3)
    assert status == 0 and "train it first" in text
    assert load_detector(out).meta["source"]["file_classes"] == 3
    assert "different names" in run(capsys, *words, "A,A")[2]
    status, _, err = run(capsys, *words[:-2], narrow_file, "--classes", "A,B")
    assert status == 1 and "choose another --out" in err


def test_import_without_names_counts_the_classes(narrow_file, capsys):
    out = narrow_file.with_name("d.npz")
    words = ("import-weights", narrow_file, "--model", "faster_rcnn", "--out", out)
    assert run(capsys, *words)[0] == 0
    assert load_detector(out).classes == ("class_1", "class_2")


def test_export_of_the_shipped_detector_or_to_another_ending_is_refused(tmp_path, capsys):
    status, _, err = run(capsys, "export-weights", SHIPPED, tmp_path / "x.pth")
    assert status == 1 and "basic blocks" in err
    status, _, err = run(capsys, "export-weights", SHIPPED, tmp_path / "x.onnx")
    assert status == 1 and "must end in one of .pth" in err
    assert not list(tmp_path.iterdir())
