"""Bootstrap by weights equals evaluating the drawn lists; intervals of cases with known answers."""

import numpy as np
import pytest

from jaxcomp.errors import ConfigError
from jaxcomp.evaluate import bootstrap
from jaxcomp.evaluate.detection import Frame, voc_metrics

CLASSES = ("Car", "Pedestrian", "Cyclist")


def scene(rng, objects, alarms):
    """Objects, most of them found a little off, false alarms, and an ignored region."""
    corners = rng.uniform(0, 300, (objects, 2))
    truth = np.concatenate([corners, corners + rng.uniform(10, 60, (objects, 2))], 1)
    labels = rng.integers(1, 3, objects)  # the third class never has objects
    found = rng.random(objects) < 0.8
    wild = rng.uniform(0, 300, (alarms, 2))
    boxes = np.concatenate(
        [truth[found] + rng.normal(0, 3, (found.sum(), 4)), np.concatenate([wild, wild + 30], 1)]
    )
    own = np.concatenate([labels[found], rng.integers(1, 4, alarms)])
    return Frame(boxes, rng.random(len(own)), own, truth, labels, wild[:1].repeat(2, 1) + 9)


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(3)
    sizes = [(5, 3), (0, 4), (7, 0), (0, 0), (2, 6), (9, 2), (1, 1)]
    return [scene(rng, *size) for size in sizes]


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_weighted_counts_equal_evaluating_the_drawn_lists(frames, threshold):
    weights = bootstrap.frame_weights(len(frames), 40, seed=5)
    samples = bootstrap.detection_samples(frames, CLASSES, weights, threshold)
    full = 0
    for row, times in enumerate(weights):
        drawn = [f for f, n in zip(frames, times, strict=True) for _ in range(n)]
        held = {int(label) for f in drawn for label in f.truth_labels}
        full += held == {1, 2}  # the third class has no objects in any frame, and counts 0
        expected = voc_metrics(drawn, CLASSES, threshold)
        for label in {1, 2} - held:
            expected[f"ap{round(threshold * 100)}_{CLASSES[label - 1]}"] = np.nan
        for name in ("map50", "map50_allpoint", "map75", "map75_allpoint"):
            if name in expected:
                expected[name] *= 3 / (1 + len(held))
        got = {k: v[row] for k, v in samples.items()}
        assert got == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert 20 < full < 41


def test_a_class_that_a_set_misses_by_chance_is_not_counted_as_zero():
    box, none = np.array([[10.0, 10, 30, 30]]), np.zeros((0, 4))
    one, two = (Frame(box, np.ones(1), np.full(1, c), box, np.full(1, c)) for c in (1, 2))
    empty = Frame(none, np.zeros(0), np.zeros(0, int), none, np.zeros(0, int))
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0], [0, 0, 3]])
    samples = bootstrap.detection_samples([one, two, empty], ("Car", "Pedestrian"), weights)
    assert samples["map50"].tolist() == pytest.approx([1, 1, 1, np.nan], nan_ok=True)
    assert samples["ap50_Car"].tolist() == pytest.approx([1, 1, np.nan, np.nan], nan_ok=True)
    assert bootstrap.interval(samples["map50"]) == (1.0, 1.0)
    with_absent = bootstrap.detection_samples([one, two, empty], CLASSES, weights)["map50"]
    assert with_absent[0] == pytest.approx(2 / 3)  # the third class has no objects at all


def test_the_first_row_is_the_set_itself(frames):
    weights = bootstrap.frame_weights(len(frames), 3)
    assert weights.shape == (4, len(frames)) and (weights[0] == 1).all()
    assert (weights.sum(1) == len(frames)).all()


def test_blocks_of_sets_change_nothing(frames, monkeypatch):
    weights = bootstrap.frame_weights(len(frames), 11)
    whole = bootstrap.detection_samples(frames, CLASSES, weights)
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    for name, values in bootstrap.detection_samples(frames, CLASSES, weights).items():
        np.testing.assert_array_equal(values, whole[name])


def test_interval_of_map_holds_the_value_and_follows_the_seed(frames):
    value = voc_metrics(frames, CLASSES)["map50"]
    low, high = bootstrap.bootstrap_map(frames, CLASSES, 300, seed=1)
    assert low < value < high
    assert (low, high) == bootstrap.bootstrap_map(frames, CLASSES, 300, seed=1)
    assert (low, high) != bootstrap.bootstrap_map(frames, CLASSES, 300, seed=2)
    narrow = bootstrap.bootstrap_map(frames, CLASSES, 300, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_equal_frames_have_no_spread(frames):
    low, high = bootstrap.bootstrap_map([frames[0]] * 6, CLASSES, 50)
    assert low == pytest.approx(high, abs=1e-12)
    assert low == pytest.approx(voc_metrics([frames[0]], CLASSES)["map50"], abs=1e-12)


def test_no_detections_and_no_frames_are_zero():
    empty = np.zeros((0, 4))
    nothing = [Frame(empty, np.zeros(0), np.zeros(0, int), empty, np.zeros(0, int))] * 3
    assert bootstrap.bootstrap_map(nothing, CLASSES, 20) == (0.0, 0.0)


def test_mean_of_bytes_has_the_interval_of_the_normal_law():
    values = np.random.default_rng(0).normal(5000, 700, 400)
    low, high = bootstrap.bootstrap(lambda w: bootstrap.mean_samples(values, w), 400, 4000, seed=2)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=6)
    table = bootstrap.mean_samples(np.stack([values, 2 * values], 1), np.ones((1, 400)))
    assert table[0] == pytest.approx([values.mean(), 2 * values.mean()])


def test_whole_groups_are_drawn():
    weights = bootstrap.frame_weights(6, 50, groups=["a", "a", "a", "b", "b", "c"])
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 3] == weights[:, 4]).all()
    with pytest.raises(ConfigError, match="2 groups for 6 frames"):
        bootstrap.frame_weights(6, 5, groups=["a", "b"])


def test_sets_without_a_value_are_left_out_of_the_interval():
    assert bootstrap.interval(np.array([1.0, np.nan, 2.0, 2.0])) == (2.0, 2.0)
    assert np.isnan(bootstrap.interval(np.array([1.0, np.nan]))).all()
