"""Targets, losses and detections of PointPillars at a small size, against plain forms."""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.models import pointpillars
from jaxcomp.models.pointpillars import PointPillarsConfig
from jaxcomp.ops import anchors3d, rotated
from jaxcomp.tasks.pointpillars_loss import (
    PointPillarsLossConfig,
    assign_batch,
    pointpillars_losses,
    yaw_error,
)

CFG = PointPillarsConfig(
    low=(0.0, -5.12, -3.0), high=(10.24, 5.12, 1.0), cell=(0.32, 0.32, 4.0), max_points=5,
    max_pillars=64, encoder_features=8, block_features=(8, 16), block_convs=(1, 1),
    block_strides=(2, 2), neck_features=(8, 8), candidates=50, max_detections=20,
)  # fmt: skip
LOSS = PointPillarsLossConfig()


def equal(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# --- anchors, coder, assignment -------------------------------------------------------------------


def test_order_of_anchors_and_of_channels_agree():
    grid = pointpillars.anchors(CFG)
    assert grid.shape == (16, 16, 3, 2, 7) and grid.dtype == np.float32
    np.testing.assert_allclose(grid[3, 5, 1, 1], [3.52, -2.88, -0.6, 0.6, 1.76, 1.73, 1.57])
    maps = {"classes": 18, "boxes": 42, "directions": 12}
    maps = {k: np.zeros((1, 16, 16, n), np.float32) for k, n in maps.items()}
    a = 1 * 2 + 1  # class 1, yaw 1
    maps["classes"][0, 3, 5, a * 3 + 2] = maps["boxes"][0, 3, 5, a * 7 + 6] = 1
    maps["directions"][0, 3, 5, a * 2 + 1] = 1
    flat = pointpillars.per_anchor(maps, CFG)
    row = ((3 * 16 + 5) * 3 + 1) * 2 + 1
    np.testing.assert_array_equal(flat["classes"][0, row], [0, 0, 1])
    assert flat["boxes"][0, row, 6] == 1 and flat["directions"][0, row, 1] == 1
    assert sum(v.sum() for v in flat.values()) == 3


angles = st.floats(-20, 20, allow_subnormal=False)


@settings(max_examples=100, deadline=None)
@given(angles, st.integers(0, 1))
def test_wrapped_and_directed_angles(angle, direction):
    turned = float(anchors3d.wrap(np.float32(angle), 0.5, 2 * math.pi))
    assert -math.pi - 1e-4 <= turned <= math.pi + 1e-4
    assert abs(math.sin(turned - angle)) < 1e-4 and math.cos(turned - angle) > 0
    directed = float(anchors3d.directed_yaw(np.float32(angle), direction))
    low = 0.0 if direction == 0 else -math.pi
    assert low - 1e-4 <= directed <= low + math.pi + 1e-4
    assert abs(math.sin(directed - angle)) < 1e-4


def test_direction_survives_the_coder():
    yaw = np.linspace(-3.1, 3.1, 63, dtype=np.float32)
    label = anchors3d.direction_labels(yaw)
    back = anchors3d.directed_yaw(yaw + math.pi, label)  # the net knows yaw up to a half turn
    np.testing.assert_allclose(np.cos(back - yaw), 1.0, atol=1e-5)


def random_boxes(rng, count):
    low, high = [0.5, -4.5, -2, 0.4, 0.6, 1, -3.1], [9.5, 4.5, 0, 2, 4.5, 2, 3.1]
    return rng.uniform(low, high, (count, 7)).astype(np.float32)


def test_coder_is_inverted():
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 200), random_boxes(rng, 200)
    deltas = anchors3d.encode(boxes, anchors)
    np.testing.assert_allclose(anchors3d.decode(deltas, anchors), boxes, atol=1e-4)
    assert np.isfinite(anchors3d.encode(np.zeros((1, 7), np.float32), anchors[:1])).all()
    assert np.isfinite(anchors3d.decode(np.full((1, 7), 1e4, np.float32), anchors[:1])).all()


def plain_assign(boxes, labels):
    """Anchor after anchor, as the description says it; the overlaps are the library's."""
    grid, out = pointpillars.anchors(CFG), []
    for k, kind in enumerate(CFG.kinds):
        own = grid[:, :, k].reshape(-1, 7)
        overlap = np.asarray(jax.jit(anchors3d.nearest_iou)(own, boxes))
        state = np.full(len(own), -2)  # between the thresholds
        best = overlap.max(1)
        state[best < kind.negative_iou] = -1
        state[best >= kind.positive_iou] = overlap.argmax(1)[best >= kind.positive_iou]
        for g in range(len(boxes)):
            if overlap[:, g].max() >= kind.negative_iou:
                state[overlap[:, g] == overlap[:, g].max()] = g
        out.append(state.reshape(16, 16, 1, 2))
    state = np.concatenate(out, 2).ravel()
    return np.where(state >= 0, labels[state], 3), state


def one_row(boxes, labels, room=12):
    extra = room - len(boxes)
    return {
        "boxes": np.pad(boxes, ((0, extra), (0, 0)))[None],
        "labels": np.pad(labels, (0, extra)).astype(np.int32)[None],
        "valid": (np.arange(room) < len(boxes))[None],
    }


assign = jax.jit(lambda b: assign_batch(b, CFG))


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_a_plain_form(seed):
    rng = np.random.default_rng(seed)
    boxes, labels = random_boxes(rng, 9), rng.integers(-1, 3, 9)
    anchors = pointpillars.anchors(CFG).reshape(-1, 7)
    near = anchors[rng.integers(0, len(anchors), 6)]
    boxes[:6] = near + rng.normal(0, 0.03, near.shape) * (seed > 1)  # exact ones make ties
    wanted, state = plain_assign(boxes, labels)
    got = assign(one_row(boxes, labels))
    matched = np.asarray(got.matched[0])
    np.testing.assert_array_equal(matched, state >= 0)
    np.testing.assert_array_equal(got.index[0][matched], state[matched])
    np.testing.assert_array_equal(got.labels[0], wanted)
    np.testing.assert_array_equal(got.counts[0], state != -2)


def test_without_objects_everything_is_background():
    got = assign(one_row(np.zeros((0, 7), np.float32), np.zeros(0, int)))
    assert (np.asarray(got.labels) == 3).all() and np.asarray(got.counts).all()


def test_nearest_overlap_turns_to_the_axes():
    box = np.float32([[5, 0, -1, 1.6, 3.9, 1.5, 0]])
    turned = np.repeat(box, 4, 0)
    turned[:, 6] = [0.7, math.pi / 2, math.pi, -2.2]
    swapped = np.float32([[0, 0, 1.6, 3.9, 0], [0, 0, 3.9, 1.6, 0]])
    cross = rotated.iou(*swapped)
    found = anchors3d.nearest_iou(box, turned)[0]
    np.testing.assert_allclose(found, [1, cross, 1, cross], atol=1e-5)


# --- losses ---------------------------------------------------------------------------------------


def random_maps(seed, batch=1):
    rng = np.random.default_rng(seed)
    widths = {"classes": 18, "boxes": 42, "directions": 12}
    return {k: rng.normal(0, 1, (batch, 16, 16, n)).astype(np.float32) for k, n in widths.items()}


@functools.partial(jax.jit, static_argnames="how")
def losses_and_gradient(maps, batch, how=LOSS):
    def run(maps):
        losses = pointpillars_losses(maps, batch, CFG, how)
        return losses["total"], losses

    return jax.value_and_grad(run, has_aux=True)(maps)


def test_a_perfect_prediction_costs_almost_nothing():
    rng = np.random.default_rng(0)
    boxes = pointpillars.anchors(CFG).reshape(-1, 7)[[5, 300, 900]] + 0.02
    labels = rng.permutation(3)
    batch = one_row(boxes.astype(np.float32), labels)
    target = assign(batch)
    own = batch["boxes"][0][np.asarray(target.index[0])]
    grid = pointpillars.anchors(CFG).reshape(-1, 7)
    logits = np.where(np.arange(3) == np.asarray(target.labels[0])[:, None], 12.0, -12.0)
    half = np.asarray(anchors3d.direction_labels(own[:, 6]))[:, None] == np.arange(2)
    maps = {
        "classes": logits.reshape(1, 16, 16, 18),
        "boxes": np.asarray(anchors3d.encode(own, grid)).reshape(1, 16, 16, 42),
        "directions": np.where(half, 12.0, -12.0).reshape(1, 16, 16, 12),
    }
    (total, _), _ = losses_and_gradient(jax.tree.map(np.float32, maps), batch)
    (worse, _), _ = losses_and_gradient(random_maps(0), batch)
    assert 0 <= total < 1e-3 < worse


@pytest.mark.parametrize("kind", ["none", "no class", "outside", "junk padding", "empty box"])
def test_losses_stay_finite_without_anything_to_match(kind):
    boxes, labels = random_boxes(np.random.default_rng(1), 2), np.array([0, 2])
    if kind == "none":
        boxes, labels = boxes[:0], labels[:0]
    if kind == "no class":
        labels = np.array([-1, -1])
    if kind == "outside":
        boxes[:, 0] = 500.0
    if kind == "empty box":
        boxes[:, 3:6] = 0.0
    batch = one_row(boxes, labels)
    if kind == "junk padding":
        batch["boxes"][0, 2:] = np.inf
    (total, losses), gradient = losses_and_gradient(random_maps(1), batch)
    assert np.isfinite(total) and all(np.isfinite(g).all() for g in gradient.values())
    if kind != "junk padding":
        assert losses["box"] == losses["direction"] == 0 and losses["class"] > 0


def test_masked_rows_do_not_count():
    rng = np.random.default_rng(2)
    rows = [one_row(random_boxes(rng, 5), rng.integers(0, 3, 5)) for _ in range(2)]
    both = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    maps = random_maps(2, 2)
    masked = losses_and_gradient(maps, {**both, "mask": np.float32([1, 0])})[0][1]
    alone = losses_and_gradient({k: v[:1] for k, v in maps.items()}, rows[0])[0][1]
    equal(masked, alone, rtol=1e-5)


def test_yaw_error_is_the_sine_of_the_difference():
    a, b = np.random.default_rng(3).uniform(-6, 6, (2, 50)).astype(np.float32)
    np.testing.assert_allclose(yaw_error(a, b), np.sin(a - b), atol=1e-5)
    wrong = np.sin(a) * np.cos(b)
    wrong = wrong - np.cos(wrong) * np.sin(b)
    np.testing.assert_allclose(yaw_error(a, b, True), wrong, atol=1e-5)


# --- decoding -------------------------------------------------------------------------------------

decode = jax.jit(functools.partial(pointpillars.decode, cfg=CFG))


def test_detections_follow_a_plain_form():
    maps = random_maps(5)
    found = {k: np.asarray(v[0]) for k, v in decode(maps).items()}
    best = jax.jit(functools.partial(pointpillars.candidates, cfg=CFG))(maps)
    best = {k: np.asarray(v[0]) for k, v in best.items()}
    overlap = rotated.iou_matrix(*(best["boxes"][:, [0, 1, 3, 4, 6]],) * 2)
    kept = []
    for label in range(3):
        chosen = []
        for i in np.argsort(-best["scores"][:, label], kind="stable"):
            if best["scores"][i, label] > 0.1 and not (overlap[i, chosen] > 0.01).any():
                chosen.append(i)
        kept += [(best["scores"][i, label], label, i) for i in chosen]
    kept = sorted(kept, key=lambda row: -row[0])[:20]
    count = len(kept)
    assert found["valid"].sum() == count and not found["boxes"][count:].any()
    np.testing.assert_allclose(found["scores"][:count], [row[0] for row in kept], atol=1e-6)
    np.testing.assert_array_equal(found["labels"][:count], [row[1] for row in kept])
    rows = [row[2] for row in kept]
    np.testing.assert_allclose(found["boxes"][:count, :6], best["boxes"][rows, :6], atol=1e-5)
    turned = found["boxes"][:count, 6] - best["boxes"][rows, 6]
    np.testing.assert_allclose(np.sin(turned), 0, atol=1e-4)


def test_low_scores_and_broken_maps_give_no_detection():
    low = random_maps(6)
    low["classes"] = np.full_like(low["classes"], -9.0)
    broken = {k: np.full_like(v, np.nan) for k, v in low.items()}
    for maps in (low, broken):
        found = decode(maps)
        assert not found["valid"].any() and not np.asarray(found["boxes"]).any()
