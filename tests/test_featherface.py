"""The light face detectors: sizes, split, training mode, anchors, weights in and out."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError
from jaxcomp.interop.featherface_names import abstract_variables, face_table, mobilenet_table
from jaxcomp.interop.featherface_weights import (
    face_from_torch,
    face_to_torch,
    guess_face_config,
    load_face_weights,
    mobilenet_from_torch,
    mobilenet_to_torch,
    with_body,
)
from jaxcomp.interop.torch_weights import read_weights, write_torch
from jaxcomp.models import featherface
from jaxcomp.models.featherface import (
    PARAMETERS,
    VARIANTS,
    FaceConfig,
    FaceDetector,
    face_config,
    normalise_face_image,
)
from jaxcomp.models.featherface_context import Context
from jaxcomp.models.featherface_layers import shuffle_channels, unshuffle_channels
from jaxcomp.models.featherface_pyramid import pool_same
from jaxcomp.models.mobilenet import MobileNetClassifier
from jaxcomp.ops import nms_host, priors

LIGHT = face_config("v2")


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        k: (1 + 0.1 * rng.standard_normal(v.shape)).astype(np.float32)
        if k.endswith(("var", "scale"))
        else (0.2 * rng.standard_normal(v.shape)).astype(np.float32)
        for k, v in shapes.items()
    }


@functools.cache
def variables(cfg=LIGHT):
    flat = draw(abstract_variables(FaceDetector(cfg)))
    return featherface_tree(flat)


def featherface_tree(flat):
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def images(*shape):
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters(name):
    shapes = abstract_variables(FaceDetector(face_config(name)))
    count = sum(np.prod(v.shape, dtype=int) for k, v in shapes.items() if k.startswith("params/"))
    assert count == PARAMETERS[name]
    body = [v for k, v in shapes.items() if k.startswith("params/body/")]
    assert sum(np.prod(v.shape, dtype=int) for v in body) == 213_072


def test_parameters_of_the_classifier():
    shapes = abstract_variables(MobileNetClassifier())
    count = sum(np.prod(v.shape, dtype=int) for k, v in shapes.items() if k.startswith("params/"))
    assert count == 470_072


@pytest.mark.parametrize("size", [(45, 33), (1, 1)])
def test_split_law_and_shapes(size):
    model, x = FaceDetector(LIGHT), images(2, *size, 3)
    whole = jax.jit(model.apply)(variables(), x)
    features = jax.jit(functools.partial(model.apply, method="head"))(variables(), x)
    halves = jax.jit(functools.partial(model.apply, method="tail"))(variables(), features)
    anchors = featherface.priors(size, LIGHT)
    for name, width in {"boxes": 4, "classes": 2, "landmarks": 10}.items():
        assert whole[name].shape == (2, len(anchors), width)
        np.testing.assert_allclose(whole[name], halves[name], atol=1e-4, rtol=1e-4)
    for step, level in zip(LIGHT.steps, features.values(), strict=True):
        assert level.shape == (2, *(-(-n // step) for n in size), LIGHT.features)


def test_training_mode_gives_logits_and_moves_the_statistics():
    run = functools.partial(FaceDetector(LIGHT).apply, train=True, mutable=["batch_stats"])
    maps, new = jax.jit(run)(variables(), images(2, 32, 32, 3))
    assert maps["classes"].shape == (2, 42, 2) and (maps["classes"] < 0).any()
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), new["batch_stats"], variables()["batch_stats"]
    )
    assert min(jax.tree.leaves(moved)) > 0


def test_a_fresh_context_head_is_one_of_plain_convolutions():
    x = np.random.default_rng(2).standard_normal((1, 5, 6, 8)).astype(np.float32)
    fresh = jax.jit(Context(deformable=True).init, static_argnums=2)(jax.random.key(0), x, False)
    kept = {}
    for name, parts in fresh["params"].items():
        assert not any(np.any(v) for k in ("offset", "modulator") for v in parts[k].values())
        kept[name] = {k: v for k, v in parts.items() if k in ("kernel", "norm")}
    plain, ours = (
        jax.jit(Context(deformable).apply, static_argnums=2)(tree, x, False)
        for deformable, tree in ((False, {**fresh, "params": kept}), (True, fresh))
    )
    np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_input_is_bgr_minus_the_mean():
    x = np.array([[[[255, 0, 10]]]], np.uint8)
    wanted = [[[[10 - 104, 0 - 117, 255 - 123]]]]
    np.testing.assert_array_equal(normalise_face_image(jnp.asarray(x)), wanted)
    np.testing.assert_allclose(
        normalise_face_image(jnp.asarray(x / np.float32(255))), wanted, atol=1e-4
    )


def test_shuffles_are_inverses():
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    np.testing.assert_array_equal(shuffle_channels(x, 2).ravel(), [0, 4, 1, 5, 2, 6, 3, 7])
    np.testing.assert_array_equal(unshuffle_channels(x, 2).ravel(), [0, 2, 4, 6, 1, 3, 5, 7])
    np.testing.assert_array_equal(unshuffle_channels(shuffle_channels(x, 4), 4), x)


def test_zeros_take_part_in_the_pooling():
    for size in (4, 5):
        pooled = pool_same(-jnp.ones((1, size, size, 1)))[0, :, :, 0]
        assert pooled.shape == (-(-size // 2),) * 2
        assert pooled[-1, -1] == 0  # beside the border
        assert pooled[0, 0] == (0 if size % 2 else -1)  # even sizes are padded at the end only


def test_priors_of_the_usual_size():
    anchors = priors.make_priors(640, 640)
    assert anchors.shape == (16_800, 4)
    np.testing.assert_allclose(anchors[0], [4 / 640, 4 / 640, 16 / 640, 16 / 640], rtol=1e-6)
    np.testing.assert_allclose(anchors[1, 2:], 32 / 640, rtol=1e-6)
    np.testing.assert_allclose(anchors[2], [12 / 640, 4 / 640, 16 / 640, 16 / 640], rtol=1e-6)
    np.testing.assert_allclose(anchors[-1], [624 / 640, 624 / 640, 0.8, 0.8], rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_coding_round_trip(size):
    rng = np.random.default_rng(0)
    anchors = priors.make_priors(*size)
    boxes = np.sort(rng.random((2, len(anchors), 2, 2)), 2).reshape(2, -1, 4)
    boxes[..., 2:] += 0.1
    points = rng.random((2, len(anchors), 10))
    ours = priors.decode_boxes(priors.encode_boxes(boxes, anchors), anchors)
    np.testing.assert_allclose(ours, boxes, atol=2e-4)
    ours = priors.decode_landmarks(priors.encode_landmarks(points, anchors), anchors)
    np.testing.assert_allclose(ours, points, atol=2e-4)


def test_suppression_in_the_graph_and_on_the_host_agree():
    cfg = dataclasses.replace(LIGHT, score_threshold=0.5, max_detections=20)
    size, rng = (64, 64), np.random.default_rng(3)
    count = len(featherface.priors(size, cfg))
    maps = {k: rng.normal(size=(2, count, n)).astype(np.float32) for k, n in
            {"boxes": 4, "classes": 2, "landmarks": 10}.items()}  # fmt: skip
    maps["boxes"][0, :5] = np.nan  # gives no detection
    maps["classes"][0, :5] = [-9, 9]
    run = {f.__name__: jax.jit(functools.partial(f, size=size, cfg=cfg))
           for f in (featherface.candidates, featherface.decode)}  # fmt: skip
    before, after = run["candidates"](maps), run["decode"](maps)
    for i in range(2):
        own = int(before["valid"][i].sum())
        assert before["valid"][i][:own].all() and (np.diff(before["scores"][i][:own]) <= 0).all()
        boxes = np.asarray(before["boxes"][i][:own])
        keep = np.flatnonzero(nms_host.suppress(boxes, cfg.nms_iou))[: cfg.max_detections]
        assert after["valid"][i].sum() == len(keep)
        for name in ("boxes", "landmarks", "scores"):
            np.testing.assert_array_equal(after[name][i][: len(keep)], before[name][i][keep])


def test_voting():
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60], [80, 80, 90, 90.0]])
    scores = np.array([0.6, 0.3, 0.2, 0.1])
    merged, best, points = nms_host.vote(boxes, scores, boxes[:, :2], 0.4)
    np.testing.assert_allclose(merged, [[2 / 3, 0, 32 / 3, 10], [80, 80, 90, 90]])
    np.testing.assert_allclose(best, [0.6, 0.1])  # the lone box in the middle is gone
    np.testing.assert_allclose(points, [[2 / 3, 0], [80, 80]])
    empty = nms_host.vote(boxes[:0], scores[:0], boxes[:0, :2], 0.4)
    assert [len(x) for x in empty] == [0, 0, 0]


def test_bad_configs():
    for bad in ({"features": 6}, {"pyramid": "none"}, {"cells": 0}, {"steps": (8, 16)},
                {"min_sizes": ((16,), (64, 128), (256, 512))}):  # fmt: skip
        with pytest.raises(ConfigError):
            FaceConfig(**bad)
    with pytest.raises(ConfigError, match="v1_24"):
        face_config("v3")


# Weights


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_through_torch_names(name, tmp_path):
    cfg = face_config(name)
    tree = variables(cfg)
    path = tmp_path / "x.pth"
    write_torch(path, face_to_torch(tree, cfg))
    ours, guessed = load_face_weights(path)
    assert guessed == cfg
    jax.tree.map(np.testing.assert_array_equal, ours, tree)


@pytest.mark.parametrize("file", ["featherface_v1_489015.pth", "retinaface_mobilenet0.25.pth"])
def test_real_weights_come_back_equal(shared, file):
    state = read_weights(shared / "weights" / file)
    cfg = guess_face_config(state)
    back = face_to_torch(face_from_torch(state, cfg), cfg)
    back = {k: v for k, v in back.items() if not k.endswith("num_batches_tracked")}
    assert list(back) == list(state)  # in PyTorch's order
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_imagenet_body(shared):
    state = read_weights(shared / "weights" / "mobilenetv1_0.25_imagenet.tar")
    tree = mobilenet_from_torch(state)
    back = mobilenet_to_torch(tree)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    started = with_body(variables(), tree)
    kernel = started["params"]["body"]["stem"]["kernel"]
    np.testing.assert_array_equal(kernel, state["stage1.0.0.weight"].transpose(2, 3, 1, 0))
    assert jax.tree.structure(started) == jax.tree.structure(variables())
    # What it was trained for: the classes of ImageNet, told apart with confidence.
    x = np.zeros((1, 64, 64, 3), np.float32)
    assert np.isfinite(jax.jit(MobileNetClassifier().apply)(tree, x)).all()


def test_bad_weights():
    state = face_to_torch(variables(), LIGHT)
    names = [e.name for e in face_table(LIGHT)]
    first = names[0]
    missing = {k: v for k, v in state.items() if k != first}
    with pytest.raises(CheckpointError, match=r"1 names are missing \(body.stage1.0.0.weight"):
        face_from_torch(missing, LIGHT)
    with pytest.raises(CheckpointError, match=r"1 are left over \(fc.weight"):
        face_from_torch({**state, "fc.weight": state[first]}, LIGHT)
    with pytest.raises(CheckpointError, match=r"needed \[8, 3, 3, 3\]"):
        face_from_torch({**state, first: np.zeros((8, 3, 3))}, LIGHT)
    with pytest.raises(NonFiniteError, match=first):
        face_from_torch({**state, first: np.full((8, 3, 3, 3), np.nan)}, LIGHT)
    with pytest.raises(CheckpointError, match="no face detector"):
        guess_face_config({"x": np.zeros(3)})
    with pytest.raises(ShapeError, match="differ"):
        face_to_torch({"params": {}}, LIGHT)
    with pytest.raises(ShapeError, match="fc/bias"):
        mobilenet_to_torch({"params": {}})
    assert len(mobilenet_table()) == 137
    counters = {"ssh1.total_ops": np.zeros(1), "ssh1.total_params": np.zeros(1)}
    face_from_torch({**state, **counters}, LIGHT)
