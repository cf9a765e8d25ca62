"""Boxes, suppression, pooling and matching against plain loops and known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.ops import boxes, matching, nms, roi_align


def random_boxes(rng, count, limit=60.0):
    corner = rng.uniform(0, limit, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(2, limit / 2, (count, 2))], 1).astype("f4")


def test_base_anchors_are_torchvisions():
    expected = {
        32: [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]],
        512: [[-362, -181, 362, 181], [-256, -256, 256, 256], [-181, -362, 181, 362]],
    }
    for size, rows in expected.items():
        np.testing.assert_array_equal(boxes.base_anchors(size, (0.5, 1, 2)), rows)


def test_grid_step_of_an_odd_level_is_the_integer_quotient():
    (anchors,) = boxes.grid_anchors([(7, 21)], (416, 1344), [512], [1.0])
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    np.testing.assert_array_equal(centres[0], [0, 0])
    np.testing.assert_array_equal(centres[21], [0, 59])
    np.testing.assert_array_equal(centres[1], [64, 0])


def test_encode_then_decode_is_identity():
    rng = np.random.default_rng(0)
    truth, anchors = random_boxes(rng, 50), random_boxes(rng, 50)
    weights = (10.0, 10.0, 5.0, 5.0)
    back = boxes.decode(boxes.encode(truth, anchors, weights), anchors, weights)
    np.testing.assert_allclose(back, truth, atol=1e-3)


def test_decode_clamps_the_size():
    anchor = jnp.array([[0.0, 0, 10, 10]])
    out = boxes.decode(jnp.array([[0.0, 0, 100, 100]]), anchor, (1, 1, 1, 1))
    np.testing.assert_allclose(out[0, 2] - out[0, 0], 625.0, rtol=1e-5)


def plain_nms(box, score, group, threshold):
    overlap = np.asarray(boxes.iou(box, box))
    kept = []
    for i in np.argsort(-score, kind="stable"):
        if all(group[i] != group[j] or overlap[i, j] <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_nms_equals_the_plain_loop(seed):
    rng = np.random.default_rng(seed)
    box, score = random_boxes(rng, 40), rng.permutation(40).astype("f4")
    group = rng.integers(0, 3, 40)
    expected = plain_nms(box, score, group, 0.4)
    got, got_scores, _, valid = nms.top_detections(
        box, score, group, np.ones(40, bool), iou_threshold=0.4, pre=40, post=64
    )
    assert int(valid.sum()) == len(expected)
    np.testing.assert_array_equal(got[: len(expected)], box[expected])
    np.testing.assert_array_equal(got_scores[len(expected) :], 0)


def test_nms_ignores_invalid_rows():
    box = np.array([[0, 0, 10, 10], [0, 0, 10, 10.0]], "f4")
    out = nms.top_detections(
        box, np.array([2.0, 1.0]), np.zeros(2, int), np.array([False, True]),
        iou_threshold=0.5, pre=2, post=2,
    )  # fmt: skip
    assert out[3].tolist() == [True, False] and out[1][0] == 1.0


def plain_roi_align(feature, box, stride, size, ratio):
    height, width, channels = feature.shape
    x1, y1, x2, y2 = box / stride
    step_y, step_x = max(y2 - y1, 1.0) / size, max(x2 - x1, 1.0) / size
    out = np.zeros((size, size, channels))
    for i in range(size):
        for j in range(size):
            for a in range(ratio):
                for b in range(ratio):
                    y = y1 + (i + (a + 0.5) / ratio) * step_y
                    x = x1 + (j + (b + 0.5) / ratio) * step_x
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    y0, x0 = int(y), int(x)
                    y1_, x1_ = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                    fy, fx = y - y0, x - x0
                    top = feature[y0, x0] * (1 - fx) + feature[y0, x1_] * fx
                    low = feature[y1_, x0] * (1 - fx) + feature[y1_, x1_] * fx
                    out[i, j] += top * (1 - fy) + low * fy
    return out / ratio**2


def test_roi_align_equals_the_plain_loop():
    rng = np.random.default_rng(1)
    maps = [rng.standard_normal(s).astype("f4") for s in ((16, 20, 3), (8, 10, 3))]
    box = np.array([[-9, -9, 30, 20], [3, 5, 3.5, 5.5], [40, 30, 90, 80], [0, 0, 64, 64]], "f4")
    level = np.array([0, 0, 0, 1])
    got = roi_align.roi_align(maps, box, level, strides=(4, 8), output_size=3)
    for i in range(len(box)):
        expected = plain_roi_align(maps[level[i]], box[i], (4, 8)[level[i]], 3, 2)
        np.testing.assert_allclose(got[i], expected, atol=1e-5)


def test_levels_follow_the_pyramid_rule():
    side = np.array([1.0, 111, 112, 224, 448, 2000])
    box = np.stack([0 * side, 0 * side, side, side], 1).astype("f4")
    assert roi_align.assign_level(box, 4).tolist() == [0, 0, 1, 2, 3, 3]


def test_assignment_rules():
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [30, 30, 40, 40], [50, 50, 60, 60]], "f4")
    truth = np.array([[0, 0, 10, 10], [32, 30, 52, 40], [50, 50, 61, 61], [0, 0, 9, 9]], "f4")
    found = matching.assign(
        anchors, truth, np.array([True, True, False, False]), np.array([False, False, True, False]),
        positive_iou=0.7, negative_iou=0.3, low_quality=True,
    )  # fmt: skip
    # The third is the best of its object (low quality), the fourth lies in an ignored region.
    assert found.positive.tolist() == [True, False, True, False]
    assert found.negative.tolist() == [False, False, False, False]


def test_sampling_respects_counts_and_share():
    positive = np.zeros(100, bool)
    positive[:40] = True
    rows, is_positive, drawn = matching.sample(jax.random.key(0), positive, ~positive, 32, 0.25)
    assert len(set(rows.tolist())) == 32 and drawn.all()
    assert is_positive.sum() == 8
    few = np.zeros(100, bool)
    few[:3] = True
    _, is_positive, drawn = matching.sample(jax.random.key(0), few, np.zeros(100, bool), 32, 0.5)
    assert is_positive.sum() == drawn.sum() == 3


def test_sampling_more_than_there_are_pads():
    positive = np.array([True, False, False, True, False])
    rows, is_positive, drawn = matching.sample(jax.random.key(0), positive, ~positive, 8, 0.5)
    assert rows.shape == is_positive.shape == drawn.shape == (8,)
    assert sorted(rows[drawn].tolist()) == [0, 1, 2, 3, 4] and drawn[:5].all()
    assert is_positive.sum() == 2 and not is_positive[5:].any()
    assert ((rows >= 0) & (rows < 5)).all()
