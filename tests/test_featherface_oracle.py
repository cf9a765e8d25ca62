"""The face detectors against numbers of the original networks with the same weights."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest
from oracle_files import close, nchw

from jaxcomp.interop.featherface_weights import face_from_torch, load_face_weights
from jaxcomp.models import featherface
from jaxcomp.models.featherface import FaceDetector, face_config, normalise_face_image

LEVELS = range(3)
close_v1 = functools.partial(close, share=1e-4)


@pytest.fixture(scope="module")
def v1(shared):
    oracle = oracle_files.read(shared / "oracles", "featherface_v1_489015")
    variables, cfg = load_face_weights(shared / "weights" / "featherface_v1_489015.pth")
    assert cfg == face_config("v1")
    oracle.cfg, oracle.variables = cfg, to_jax(variables)
    return oracle


@pytest.fixture(scope="module")
def v2(shared):
    oracle = oracle_files.read(shared / "oracles", "featherface_v2")
    oracle.cfg = face_config("v2")
    state = oracle.recipe.state_dict(oracle.meta["manifest"], oracle.meta["seed"])
    oracle.variables = to_jax(face_from_torch(state, oracle.cfg))
    return oracle


def to_jax(variables):
    return jax.tree.map(jnp.asarray, variables)


@functools.cache
def program(cfg):
    def run(model, x):
        body = model.body_maps(x)
        pyramid = model.pyramid(x)
        contexts = model.contexts(pyramid)
        return body, list(pyramid.values()), contexts, model.mixed(contexts), model.tail(pyramid)

    return jax.jit(functools.partial(FaceDetector(cfg).apply, method=run))


@pytest.fixture(scope="module", params=["a", "b"])
def photo(request, v1):
    """(name, size, every map): a square image, and one whose sides are odd."""
    bgr = v1.arrays[f"{request.param}_input_bgr_uint8"]
    x = normalise_face_image(bgr[None, ..., ::-1])
    return request.param, bgr.shape[:2], program(v1.cfg)(v1.variables, x)


def test_v1_maps(v1, photo):
    name, _, (body, pyramid, contexts, _, _) = photo
    for i in LEVELS:
        close_v1(v1, f"{name}_body_{i}", nchw(body[i]))
        close_v1(v1, f"{name}_bifpn_{i}", nchw(pyramid[i]))
        close_v1(v1, f"{name}_ssh{i + 1}_0", nchw(contexts[i]))


def test_v1_outputs(v1, photo):
    name, size, (*_, maps) = photo
    noise = v1.meta["fp32_vs_fp64_maxabs"]
    for key in ("boxes", "landmarks"):
        close_v1(v1, f"{name}_{key}", maps[key], noise=noise[f"{name}_{key}"])
    softmax = jax.nn.softmax(maps["classes"])
    close_v1(v1, f"{name}_classes_softmax", softmax, noise=noise[f"{name}_classes"])
    ours = featherface.priors(size, v1.cfg)
    close_v1(v1, f"{name}_priors", ours)
    candidates = np.asarray(softmax)[0, :, 1] > v1.cfg.score_threshold
    counts = v1.arrays[f"{name}_n_priors_and_candidates"].tolist()
    assert [len(ours), candidates.sum()] == counts


def test_v1_detections(v1, photo):
    name, size, (*_, maps) = photo
    decode = jax.jit(functools.partial(featherface.decode, size=size, cfg=v1.cfg))
    found = {k: np.asarray(v[0]) for k, v in decode(maps).items()}
    wanted = v1.arrays[f"{name}_detections"]
    count = int(found["valid"].sum())
    assert count == len(wanted)
    np.testing.assert_allclose(found["boxes"][:count], wanted[:, :4], atol=0.05, rtol=0)
    np.testing.assert_allclose(found["scores"][:count], wanted[:, 4], atol=1e-4, rtol=0)
    points = v1.arrays[f"{name}_detection_landmarks"]
    np.testing.assert_allclose(found["landmarks"][:count], points, atol=0.05, rtol=0)
    assert not found["boxes"][count:].any()


@pytest.fixture(scope="module", params=[(320, 320), (480, 640)])
def noise_image(request, v2):
    height, width = request.param
    seed = [v2.meta["seed"], zlib.crc32(f"ff_v2_input_{height}x{width}".encode())]
    x = np.random.default_rng(seed).uniform(-128, 128, (1, 3, height, width)).astype(np.float32)
    return (
        f"{height}x{width}",
        (height, width),
        program(v2.cfg)(v2.variables, x.transpose(0, 2, 3, 1)),
    )


def test_v2_maps(v2, noise_image):
    name, _, (body, pyramid, contexts, mixed, _) = noise_image
    for i in LEVELS:
        close(v2, f"{name}_body_{i}", nchw(body[i]))
        close(v2, f"{name}_bifpn_{i}", nchw(pyramid[i]))
        close(v2, f"{name}_ssh{i + 1}_cs_0", nchw(mixed[i]))
    close(v2, f"{name}_ssh1_0", nchw(contexts[0]))


def test_v2_outputs(v2, noise_image):
    name, _, (*_, maps) = noise_image
    noise = v2.meta["fp32_vs_fp64_maxabs"]
    for key, ours in {
        "boxes": "boxes",
        "class_logits": "classes",
        "landmarks": "landmarks",
    }.items():
        close(v2, f"{name}_{key}", maps[ours], noise=noise[f"{name}_{key}"])
    close(v2, f"{name}_classes_softmax", jax.nn.softmax(maps["classes"]))


def test_v2_detections(v2, noise_image):
    """Random weights see faces everywhere, which is a long list to suppress."""
    name, size, (*_, maps) = noise_image
    if name != "320x320":
        pytest.skip("the other size has no stored detections")
    cfg = dataclasses.replace(v2.cfg, score_threshold=0.5)
    decode = jax.jit(functools.partial(featherface.decode, size=size, cfg=cfg))
    found = {k: np.asarray(v[0]) for k, v in decode(maps).items()}
    wanted = v2.arrays["320x320_detections_score_gt_0.5"]
    points = v2.arrays["320x320_detection_landmarks"]
    candidates, kept = v2.arrays["320x320_detection_count"]
    scores = np.asarray(jax.nn.softmax(maps["classes"]))[0, :, 1]
    assert (scores > 0.5).sum() == candidates
    assert min(int(kept), cfg.max_detections) == found["valid"].sum()
    np.testing.assert_allclose(found["scores"][: len(wanted)], wanted[:, 4], atol=1e-4)
    # Near ties may change places.
    gaps = np.abs(found["boxes"][None, : len(wanted) + 20] - wanted[:, None, :4]).max(-1)
    partner = gaps.argmin(1)
    same = gaps.min(1) < 0.05
    assert same.mean() >= 0.97
    np.testing.assert_allclose(found["landmarks"][partner][same], points[same], atol=0.05)
