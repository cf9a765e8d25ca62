"""The full-size detector against numbers of torchvision's with the same weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest
from oracle_files import close, nchw

from jaxcomp.data.images import read_image
from jaxcomp.data.resize import ResizeRule
from jaxcomp.interop.detector_weights import detector_from_torch
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN
from jaxcomp.models.fpn import LEVELS
from jaxcomp.models.transform import Frames, network_input
from jaxcomp.ops import matching
from jaxcomp.tasks import detection_loss
from jaxcomp.tasks.detection_loss import SamplingConfig

MODEL = FasterRCNN(DetectorConfig())
CANVAS = (416, 1344)


@pytest.fixture(scope="module")
def oracle(shared):
    found = oracle_files.read(shared / "oracles", "fasterrcnn_r50_fpn_v2")
    found.image = read_image(shared / "oracles" / found.meta["input"]["file"])
    return found


@pytest.fixture(scope="module")
def variables(oracle):
    state = oracle.recipe.state_dict(oracle.meta["manifest"], oracle.meta["seed"])
    return jax.tree.map(jnp.asarray, detector_from_torch(state, MODEL.cfg)[0])


@pytest.fixture(scope="module")
def frames(oracle):
    native = oracle.image.shape[:2]
    size = ResizeRule("shortest", *CANVAS).size(*native)
    assert list(size) == oracle.meta["image_size_after_resize_hw"]
    return Frames(
        oracle.image[None], np.array([native], np.float32), np.array([size], np.float32), CANVAS
    )


@pytest.fixture(scope="module")
def network(variables, frames):
    """Every map of the head and of the proposal network."""

    def run(model, images):
        x = network_input(images)
        stages = model.body(x, False)
        pyramid = model.fpn(stages, False)
        return x, stages, pyramid, model.rpn(pyramid)[:2]

    return jax.jit(functools.partial(MODEL.apply, method=run))(variables, frames)


@pytest.fixture(scope="module")
def pyramid(network):
    return network[2]


@functools.cache
def method(name, *static):
    return jax.jit(lambda v, *a: MODEL.apply(v, *a, *static, method=name))


def test_parameter_count(variables):
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 43_261_278


def test_transform(oracle, network):
    close(oracle, "transformed", nchw(network[0]))
    assert not np.asarray(network[0])[:, 402:].any()
    assert not np.asarray(network[0])[:, :, 1332:].any()


def test_stages_and_pyramid(oracle, network):
    _, stages, pyramid, _ = network
    for i, stage in enumerate(stages):
        close(oracle, f"body_{i}", nchw(stage))
    for name in LEVELS:
        close(oracle, name, nchw(pyramid[name]))


def test_proposal_network(oracle, network):
    *_, pyramid, (logits, deltas) = network
    for name, logit, delta in zip(LEVELS, logits, deltas, strict=True):
        height, width = pyramid[name].shape[1:3]
        close(oracle, f"rpn_objectness_{name}", nchw(logit.reshape(1, height, width, 3)))
        close(oracle, f"rpn_deltas_{name}", nchw(delta.reshape(1, height, width, 12)))


def test_anchors_are_exact(oracle, pyramid):
    anchors = MODEL.anchors(pyramid)
    assert [len(a) for a in anchors] == oracle.arrays["anchor_counts"].tolist()
    for name, ours in zip(LEVELS, anchors, strict=True):
        np.testing.assert_array_equal(ours[:10], oracle.arrays[f"anchors_first10_{name}"])
        np.testing.assert_array_equal(ours[-10:], oracle.arrays[f"anchors_last10_{name}"])


def partners(ours, expected, limit):
    """Share of the expected boxes that have a box of ours on top of them."""
    size = np.minimum(ours[:, None, 2:], expected[None, :, 2:]) - np.maximum(
        ours[:, None, :2], expected[None, :, :2]
    )
    both = np.prod(np.maximum(size, 0), -1)
    area = [np.prod(b[:, 2:] - b[:, :2], -1) for b in (ours, expected)]
    return (both / (area[0][:, None] + area[1][None] - both) > limit).any(0).mean()


@pytest.mark.parametrize(("train", "key"), [(False, "proposals"), (True, "train_proposals")])
def test_proposals(oracle, variables, pyramid, frames, train, key):
    expected = oracle.arrays[key]
    _, _, boxes, valid = method("propose", len(expected), train)(
        variables, pyramid, frames.image_size
    )
    assert np.asarray(valid).all()
    assert partners(np.asarray(boxes[0]), expected, 0.99) >= 0.97


def test_regions(oracle, variables, pyramid):
    """RoIAlign, hidden layer, class logits and box deltas for the oracle's own proposals."""

    def run(model, features, boxes):
        seen = {}

        def keep(next_function, args, kwargs, context):
            out = next_function(*args, **kwargs)
            if context.module.name == "box_head" and context.method_name == "__call__":
                seen["pooled"] = args[0]
            if context.module.name == "hidden" and context.method_name == "__call__":
                seen["hidden"] = jax.nn.relu(out)
            return out

        with nn.intercept_methods(keep):
            logits, deltas = model.classify(features, boxes)
        return seen["pooled"], seen["hidden"], logits, deltas

    boxes = oracle.arrays["proposals"][None]
    pooled, hidden, logits, deltas = jax.jit(functools.partial(MODEL.apply, method=run))(
        variables, pyramid, boxes
    )
    close(oracle, "roi_features", nchw(pooled)[:100])
    close(oracle, "box_head_features", np.asarray(hidden))
    close(oracle, "class_logits", np.asarray(logits[0]))
    close(oracle, "box_regression", np.asarray(deltas[0]).reshape(1000, 12))


def test_detections(oracle, variables, pyramid, frames):
    out = jax.tree.map(np.asarray, method("detect")(variables, pyramid, frames.image_size))
    assert out["valid"].all()
    scale = np.tile((frames.native_size / frames.image_size)[0, ::-1], 2)
    for ours, key in (
        (out["boxes"][0], "det_boxes_resized"),
        (out["boxes"][0] * scale, "det_boxes"),
    ):
        found = 0
        for label in (1, 2):
            own, theirs = out["labels"][0] == label, oracle.arrays["det_labels"] == label
            found += partners(ours[own], oracle.arrays[key][theirs], 0.98) * theirs.sum()
        assert found >= 97
    np.testing.assert_allclose(out["scores"][0], oracle.arrays["det_scores"], atol=1e-3)


def first_rows(rng, positive, negative, count, positive_share):
    """The oracle's stand-in for the random draw: the first rows in index order."""
    del rng
    limit = min(int(count * positive_share), int(positive.sum()))
    rows = np.concatenate(
        [np.flatnonzero(positive)[:limit], np.flatnonzero(negative)[: count - limit]]
    )
    return rows, np.arange(count) < limit, np.ones(count, bool)


@pytest.fixture
def targets(oracle, frames):
    scale = np.tile((frames.image_size / frames.native_size)[0, ::-1], 2)
    boxes = oracle.arrays["gt_boxes"] * scale
    truth = {
        "boxes": boxes.astype(np.float32),
        "labels": oracle.arrays["gt_labels"].astype(np.int32),
        "valid": np.ones(len(boxes), bool),
        "ignore": np.zeros(len(boxes), bool),
    }
    return {name: jnp.asarray(value)[None] for name, value in truth.items()}


def test_anchor_targets(oracle, pyramid, targets):
    anchors = jnp.concatenate([jnp.asarray(a) for a in MODEL.anchors(pyramid)])
    truth = jax.tree.map(lambda x: x[0], targets)
    found = matching.assign(
        anchors, truth["boxes"], truth["valid"], truth["ignore"],
        positive_iou=0.7, negative_iou=0.3, low_quality=True,
    )  # fmt: skip
    positive, negative = np.asarray(found.positive), np.asarray(found.negative)
    counts = (~positive & ~negative).sum(), negative.sum(), positive.sum()
    assert counts == tuple(oracle.arrays["rpn_label_counts"])
    np.testing.assert_array_equal(np.flatnonzero(positive), oracle.arrays["rpn_positive_all"])


def test_training_losses(oracle, variables, pyramid, frames, targets, monkeypatch):
    """All four losses with stored statistics, the draw replaced by the oracle's."""
    monkeypatch.setattr(matching, "sample", _vmapped(first_rows))
    proposals = jnp.asarray(oracle.arrays["train_proposals"])[None]

    def apply(name, *args):
        if name == "propose":
            logits, deltas, _, _ = method("propose", *args[2:])(variables, *args[:2])
            return logits, deltas, proposals, jnp.ones(proposals.shape[:2], bool)
        if name == "anchors":
            return MODEL.anchors(*args)
        return method(name)(variables, *args)

    cfg = SamplingConfig()
    regions = detection_loss.sample_regions(
        proposals, jnp.ones((1, 2000), bool), targets, jax.random.key(0), cfg
    )
    order = np.lexsort(np.asarray(regions["boxes"][0]).T)
    theirs = np.lexsort(oracle.arrays["roi_sampled_boxes"].T)
    for key, name, limit in (
        ("boxes", "roi_sampled_boxes", 1e-3), ("labels", "roi_sampled_labels", 0),
    ):  # fmt: skip
        ours, expected = np.asarray(regions[key][0])[order], oracle.arrays[name][theirs]
        np.testing.assert_allclose(ours, expected, atol=limit)
    positive = np.asarray(regions["labels"][0])[order] > 0
    np.testing.assert_allclose(
        np.asarray(regions["targets"][0])[order][positive],
        oracle.arrays["roi_sampled_targets"][theirs][positive],
        atol=1e-4,
    )
    batch = {**targets, "features": pyramid, "mask": jnp.ones(1)}
    losses = detection_loss.detection_losses(
        apply, batch, frames.image_size, jax.random.key(0), cfg, 2000
    )
    for ours, theirs in (
        ("rpn_class", "loss_objectness"),
        ("rpn_box", "loss_rpn_box_reg"),
        ("box_class", "loss_classifier"),
        ("box_regression", "loss_box_reg"),
    ):
        np.testing.assert_allclose(losses[ours], oracle.arrays[theirs], rtol=1e-3, err_msg=ours)


def _vmapped(function):
    """A numpy function of concrete rows, callable inside `vmap`."""

    def call(rng, positive, negative, count, positive_share):
        shapes = (
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct((count,), bool),
            jax.ShapeDtypeStruct((count,), bool),
        )

        def host(p, n):
            rows, *rest = function(None, p, n, count, positive_share)
            return (rows.astype(np.int32), *rest)

        return jax.pure_callback(host, shapes, positive, negative, vmap_method="sequential")

    return call
