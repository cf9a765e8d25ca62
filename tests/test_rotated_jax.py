"""Rotated rectangles inside jit: against float64, known areas, greedy suppression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.ops import rotated, rotated_jax

iou = jax.jit(rotated_jax.iou)
nms_keep = jax.jit(rotated_jax.nms_keep)


def test_reference_pairs(shared):
    oracle = np.load(shared / "oracles" / "pointpillars.npz", allow_pickle=False)
    a, b = (oracle[k].astype(np.float32) for k in ("riou_boxes_a", "riou_boxes_b"))
    np.testing.assert_allclose(iou(a, b), oracle["riou"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("away", [0.0, 60.0])
def test_float64_reference(away):
    rng = np.random.default_rng(0)
    low, high = [-2, -2, 0.05, 0.05, -7], [2, 2, 5, 5, 7]
    a, b = (rng.uniform(low, high, (3000, 5)).astype(np.float32) for _ in range(2))
    b[::5, 4] = a[::5, 4]  # parallel sides
    b[::7] = a[::7]  # the same rectangle
    a[:, :2] += away
    b[:, :2] += away
    np.testing.assert_allclose(iou(a, b), rotated.iou(a, b), atol=1e-4, rtol=0)


def test_known_values():
    square = [0, 0, 2, 2, 0]
    cases = [
        (square, square, 1.0),
        (square, [0, 0, 2, 2, np.pi / 2], 1.0),
        (square, [2, 0, 2, 2, 0], 0.0),
        (square, [9, 0, 2, 2, 1], 0.0),
        (square, [0, 0, 1, 1, 0.3], 0.25),
        (square, [0, 0, 0, 2, 0], 0.0),
        (square, [0, 0, -1, -1, 0], 0.0),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], 0.0),
    ]
    a, b, expected = (np.array(x, np.float32) for x in zip(*cases, strict=True))
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-6)


def test_matrix_is_every_pair():
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(0.5, 3, (n, 5)).astype(np.float32) for n in (4, 6))
    found = rotated_jax.iou_matrix(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, rotated.iou_matrix(a, b), atol=1e-5)


def greedy(overlap, order, valid, threshold):
    keep = np.zeros(len(order), bool)
    for i in order:
        keep[i] = valid[i] and not (keep & (overlap[i] > threshold)).any()
    return keep


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.9])
def test_suppression_is_greedy(threshold):
    rng = np.random.default_rng(2)
    for _ in range(20):
        boxes = rng.uniform([0, 0, 0.5, 0.5, 0], [8, 8, 4, 4, 6], (40, 5))
        overlap = rotated.iou_matrix(boxes, boxes).astype(np.float32)
        order, valid = rng.permutation(40), rng.random(40) < 0.7
        wanted = greedy(overlap, order, valid, threshold)
        np.testing.assert_array_equal(nms_keep(overlap, order, valid, threshold), wanted)


def test_suppression_of_nothing():
    none = np.zeros(6, bool)
    assert not nms_keep(np.ones((6, 6), np.float32), np.arange(6), none, 0.1).any()
