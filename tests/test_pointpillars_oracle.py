"""The full-size PointPillars against numbers of the original network with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest
from oracle_files import nchw

from jaxcomp.data import kitti_format, lidar_files
from jaxcomp.data.lidar_boxes import lidar_objects
from jaxcomp.interop.pointpillars_weights import pointpillars_from_torch
from jaxcomp.models import pointpillars, pointpillars_layers
from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig
from jaxcomp.ops import voxelise
from jaxcomp.ops.compiling import inference_options
from jaxcomp.tasks import pointpillars_loss
from jaxcomp.tasks.pointpillars_loss import PointPillarsLossConfig

CFG = PointPillarsConfig()
MODEL = PointPillars(CFG)


@pytest.fixture(scope="module")
def oracle(shared):
    found = oracle_files.read(shared / "oracles", "pointpillars")
    found.points = lidar_files.read_sweep(shared / "oracles" / found.meta["input"]["file"])
    return found


@pytest.fixture(scope="module")
def variables(oracle):
    state = oracle.recipe.state_dict(oracle.meta["manifest"], oracle.meta["seed"])
    found = pointpillars_from_torch(state, CFG)
    assert sum(x.size for x in jax.tree.leaves(found["params"])) == oracle.meta["parameter_count"]
    return jax.tree.map(jnp.asarray, found)


@pytest.fixture(scope="module")
def pillars(oracle):
    found, _ = voxelise.voxelise_batch(
        [oracle.points], CFG.grid, max_points=CFG.max_points, max_pillars=CFG.max_pillars_eval
    )
    return found


@pytest.fixture(scope="module")
def network(variables, pillars):
    """Every map of both halves."""

    def run(model, pillars):
        features = model.encode(pillars)
        canvas = pointpillars_layers.scatter(features, pillars.cells, CFG.grid)
        blocks = model.backbone(canvas, False)
        neck = model.neck(blocks, False)
        return features, canvas, blocks, neck, model.outputs(neck)

    run = functools.partial(MODEL.apply, method=run)
    return jax.jit(run, compiler_options=inference_options())(variables, pillars)


def close(oracle, name, ours, noise):
    noise = oracle.meta["fp32_vs_fp64_maxabs"][noise]
    oracle_files.close(oracle, name, ours, noise=noise, rtol=1e-4, atol=1e-6)


def test_encoder_input(oracle, pillars):
    features = np.asarray(pointpillars_layers.point_features(pillars, CFG.grid, CFG.max_points))
    wanted = oracle.arrays["pillar_input9_first20"]
    got = np.zeros_like(wanted)
    counts = pillars.counts[0]
    starts = np.cumsum(counts) - counts
    for i in range(len(wanted)):
        got[i, : counts[i]] = features[0, starts[i] : starts[i] + counts[i]]
    np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=0)


def test_head(oracle, network):
    features, canvas, *_ = network
    count = int(oracle.arrays["n_pillars"])
    close(oracle, "pillar_features", features[0, :count], "pillar_features")
    assert not np.asarray(features[0, count:]).any()
    close(oracle, "canvas", nchw(canvas), "canvas")


def test_tail(oracle, network):
    _, _, blocks, neck, maps = network
    for i, block in enumerate(blocks):
        close(oracle, f"backbone_{i}", nchw(block), f"backbone{i}")
    close(oracle, "neck", nchw(neck), "neck")
    for name, theirs in {"classes": "cls", "boxes": "reg", "directions": "dir"}.items():
        close(oracle, f"{theirs}_map", nchw(maps[name]), theirs)


def test_anchors(oracle):
    ours = pointpillars.anchors(CFG)
    info = oracle.meta["arrays"]["anchors"]
    assert ours.shape == tuple(info["full_shape"])
    slices = oracle.recipe.take(ours, info["slice"])
    np.testing.assert_allclose(slices, oracle.arrays["anchors"], atol=1e-4)
    edges = ours[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(edges, oracle.arrays["anchors_corner"], atol=1e-4)


def test_candidates(oracle, network):
    found = jax.jit(functools.partial(pointpillars.candidates, cfg=CFG))(network[-1])
    ours = {k: np.asarray(v[0]) for k, v in found.items()}
    wanted = {int(i): row for row, i in enumerate(oracle.arrays["top100_index"])}
    pairs = [(row, wanted[i]) for row, i in enumerate(ours["index"].tolist()) if i in wanted]
    assert len(pairs) >= 97
    mine, its = np.array(pairs).T
    for name in ("scores", "boxes"):
        np.testing.assert_allclose(
            ours[name][mine], oracle.arrays[f"top100_{name}"][its], atol=1e-3
        )
    np.testing.assert_array_equal(ours["directions"][mine], oracle.arrays["top100_dir"][its])


def test_detections(oracle, network):
    found = jax.jit(functools.partial(pointpillars.decode, cfg=CFG))(network[-1])
    assert found["valid"].all() and found["valid"].shape == (1, CFG.max_detections)
    np.testing.assert_allclose(found["boxes"][0], oracle.arrays["final_boxes"], atol=1e-3)
    np.testing.assert_allclose(found["scores"][0], oracle.arrays["final_scores"], atol=1e-3)
    np.testing.assert_array_equal(found["labels"][0], oracle.arrays["final_labels"])


def test_labels_become_the_reference_boxes(oracle, shared):
    folder = shared / "oracles" / "inputs"
    objects = kitti_format.parse_labels((folder / "000134_gt.txt").read_text())
    calibration = kitti_format.parse_calibration((folder / "000134.txt").read_text())
    ours = lidar_objects(objects, calibration, CFG.classes)
    np.testing.assert_allclose(ours.boxes, oracle.arrays["gt_boxes"], atol=1e-4)
    np.testing.assert_array_equal(ours.labels, oracle.arrays["gt_labels"])


@pytest.fixture(scope="module")
def batch(oracle):
    boxes, labels = oracle.arrays["gt_boxes"], oracle.arrays["gt_labels"]
    room = 5  # padding
    return {
        "boxes": np.pad(boxes, ((0, room), (0, 0)))[None],
        "labels": np.pad(labels, (0, room)).astype(np.int32)[None],
        "valid": np.pad(np.ones(len(boxes), bool), (0, room))[None],
    }


def test_assignment(oracle, batch):
    target = jax.jit(lambda b: pointpillars_loss.assign_batch(b, CFG))(batch)
    labels, matched = np.asarray(target.labels[0]), np.asarray(target.matched[0])
    ignored = np.flatnonzero(~np.asarray(target.counts[0]))
    np.testing.assert_array_equal(
        [(labels == k).sum() for k in (-1, 0, 1, 2, 3)], oracle.arrays["label_counts_m1_0_1_2_3"]
    )
    np.testing.assert_array_equal(np.flatnonzero(matched), oracle.arrays["positive_index"])
    np.testing.assert_array_equal(labels[matched], oracle.arrays["positive_labels"])
    np.testing.assert_array_equal(ignored, oracle.arrays["ignored_index"])
    rows = np.flatnonzero(matched)
    own = batch["boxes"][0][np.asarray(target.index[0])[rows]]
    prior = pointpillars.anchors(CFG).reshape(-1, 7)[rows]
    deltas = pointpillars.anchors3d.encode(own, prior)
    np.testing.assert_allclose(deltas, oracle.arrays["positive_reg_targets"], atol=1e-4)
    directions = pointpillars.anchors3d.direction_labels(own[:, 6])
    np.testing.assert_array_equal(directions, oracle.arrays["positive_dir"])


@pytest.mark.parametrize("original", [False, True])
def test_losses(oracle, network, batch, original):
    how = PointPillarsLossConfig(original_sine=original)

    @jax.jit
    def run(m, b):
        sums = pointpillars_loss.loss_sums(m, b, CFG, how)
        return sums, pointpillars_loss.pointpillars_losses(m, b, CFG, how)

    sums, losses = run(network[-1], batch)
    near, positive = oracle.arrays["loss_normalisers"]
    assert (sums["class"][1][0], sums["box"][1][0]) == (near, positive)
    wanted = dict(zip(("class", "box", "direction", "total"), oracle.arrays["losses"], strict=True))
    if original:
        wanted["box"] = float(oracle.arrays["reg_loss_with_original_bug"])
        del wanted["total"]
    for name, value in wanted.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-4, err_msg=name)
