"""The detector: documented sizes, the split law, finite losses and gradients, padding rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.evaluate.detection import image_sizes
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN
from jaxcomp.tasks.detect import DetectTask, SamplingConfig, detector_config

SMALL = DetectorConfig(
    num_classes=3, stem_features=8, stage_blocks=(1, 1, 1, 1), stage_features=(8, 8, 16, 16),
    bottleneck=False, fpn_features=8, anchor_sizes=(8, 16, 32, 64, 128), rpn_convs=1,
    rpn_pre_nms=50, rpn_post_nms=20, rpn_post_nms_train=30, canonical_size=32.0, box_convs=1,
    box_conv_features=8, box_fc=16, max_detections=10,
)  # fmt: skip


def batch(size=(64, 96), count=2):
    rng = np.random.default_rng(0)
    boxes = np.tile(
        np.array([[4, 4, 30, 30], [40, 20, 80, 60], [0, 0, 0, 0.0]], "f4"), (count, 1, 1)
    )
    return {
        "image": rng.integers(0, 256, (count, *size, 3)).astype(np.uint8),
        "boxes": boxes,
        "labels": np.tile(np.array([[1, 2, 0]]), (count, 1)),
        "valid": np.tile(np.array([[True, True, False]]), (count, 1)),
        "ignore": np.zeros((count, 3), bool),
        "mask": np.ones(count, np.float32),
    }


@pytest.fixture(scope="module")
def trained():
    task = DetectTask(FasterRCNN(SMALL), SamplingConfig(anchors=32, regions=16), (64, 96))
    params, stats, _ = task.init(jax.random.key(0), batch())
    return task, params, stats


@pytest.fixture(scope="module")
def losses(trained):
    """((loss, aux), gradients) as a function of what `task.loss` takes; compiled once."""
    return jax.jit(jax.value_and_grad(trained[0].loss, has_aux=True))


def test_full_size_has_the_documented_parameters_and_shapes():
    model = FasterRCNN(DetectorConfig())
    image = jax.ShapeDtypeStruct((1, 416, 1344, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=True), jax.random.key(0), image, size
    )
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(shapes["params"])) == 43_261_278
    pyramid = jax.eval_shape(functools.partial(model.apply, method="features"), shapes, image)
    assert [v.shape[1:3] for v in pyramid.values()] == [
        (104, 336), (52, 168), (26, 84), (13, 42), (7, 21)
    ]  # fmt: skip


def test_tail_of_head_is_the_model(trained):
    task, params, stats = trained
    variables = {"params": params, **stats}
    data = batch()
    size = image_sizes(data)
    model = jax.jit(task.model.apply)(variables, data["image"], size)
    head = jax.jit(functools.partial(task.model.apply, method="features"))
    features = head(variables, data["image"])
    split = jax.jit(functools.partial(task.model.apply, method="detect"))(variables, features, size)
    for name in model:
        np.testing.assert_allclose(model[name], split[name], atol=1e-5)


def test_losses_and_gradients_are_finite_also_without_objects(trained, losses):
    _, params, stats = trained
    for empty in (False, True):
        data = batch()
        if empty:
            data |= {"valid": np.zeros_like(data["valid"])}
        (value, aux), grads = losses(params, stats, {}, data, jax.random.key(1), 0)
        assert np.isfinite(value) and value > 0
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
        assert set(aux.metrics) == {"rpn_class", "rpn_box", "box_class", "box_regression", "total"}
        if empty:
            assert aux.metrics["rpn_box"] == aux.metrics["box_regression"] == 0


def test_training_moves_the_statistics_of_every_part(trained, losses):
    _, params, stats = trained
    (_, aux), _ = losses(params, stats, {}, batch(), jax.random.key(1), 0)
    for part in ("body", "fpn", "box_head"):
        before = jax.tree.leaves(stats["batch_stats"][part])
        after = jax.tree.leaves(aux.stats["batch_stats"][part])
        assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_detections_are_sorted_inside_the_image_and_padded(trained):
    task, params, stats = trained
    data = batch()
    size = jnp.array([[50.0, 70.0], [64.0, 96.0]])
    out = jax.jit(task.model.apply)({"params": params, **stats}, data["image"], size)
    assert out["boxes"].shape == (2, 10, 4)
    assert (np.diff(out["scores"], axis=1) <= 0).all()
    assert (out["boxes"][0, :, 2] <= 70).all() and (out["boxes"][0, :, 3] <= 50).all()
    padding = ~np.asarray(out["valid"])
    assert (np.asarray(out["labels"])[padding] == 0).all()


def test_validation_loss_leaves_padding_rows_out(trained):
    task, params, stats = trained
    data = batch(count=2)
    noisy = dict(data, mask=np.array([1.0, 0.0], "f4"))
    noisy["image"] = noisy["image"].copy()
    evaluate = jax.jit(task.eval_loss)
    one = evaluate(params, stats, {}, noisy)
    noisy["image"][1] = 0
    two = evaluate(params, stats, {}, noisy)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    assert one["count"] == 1


def test_config_section_becomes_sizes():
    got = detector_config({"num_classes": 4, "stage_blocks": [1, 1, 1, 1], "name": "faster_rcnn"})
    assert got.num_classes == 4 and got.stage_blocks == (1, 1, 1, 1)
