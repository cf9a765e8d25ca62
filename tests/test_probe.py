import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.errors import DataError, ShapeError
from jaxcomp.evaluate import probe
from jaxcomp.ops.ranks import entropy_rank, feature_ranks


def clusters(count=120, width=8, classes=3, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(0, classes, count)
    return centres[labels] + noise * rng.normal(size=(count, width)), labels


def test_separated_clusters_are_told_apart_and_noise_is_not():
    train, test = clusters(seed=1), clusters(seed=2)
    found = probe.probe_features(train, test)
    assert found["knn"] > 0.95 and found["linear"] > 0.95
    assert found["low_shot"]["0.1"] > 0.8
    flat = probe.flat_scores({"level0": found})
    assert flat["level0_low_shot_0.1"] == found["low_shot"]["0.1"] and flat["level0_knn"] > 0.95
    assert probe.headline_scores(train, test) == {k: found[k] for k in ("knn", "linear")}
    assert set(found["knn_sweep"]) == {"cosine", "original"}
    assert list(found["knn_sweep"]["cosine"]) == ["1", "5", "10", "20", "50", "100"]
    rng = np.random.default_rng(0)
    noise = [(rng.normal(size=(120, 8)), part[1]) for part in (train, test)]
    blind = probe.probe_features(*noise)
    assert blind["knn"] < 0.55 and blind["linear"] < 0.55


def brute(train, test, k, metric, temperature=0.07):
    x, z = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (train[0], test[0]))
    right = 0
    for row, label in zip(z, test[1], strict=True):
        distance = np.linalg.norm(x - row, axis=1)
        near = np.argsort(distance, kind="stable")[:k]
        similarity = x[near] @ row if metric == "cosine" else 1 - distance[near]
        votes = np.bincount(train[1][near], np.exp(similarity / temperature), minlength=3)
        right += votes.argmax() == label
    return right / len(z)


@pytest.mark.parametrize("metric", probe.METRICS)
def test_neighbours_vote_as_the_definition_says(metric):
    train, test = clusters(90, noise=1.0, seed=3), clusters(60, noise=1.0, seed=4)
    found = probe.knn_accuracy(train, test, (1, 7, 30, 500), metric)
    assert list(found) == [1, 7, 30]
    for k, value in found.items():
        assert value == pytest.approx(brute(train, test, k, metric))


def test_the_two_laws_of_weights_differ():
    # One near neighbour of class 0, two farther ones of class 1.
    angles = np.array([0.0, 0.45, 0.45])
    train = (np.stack([np.cos(angles), np.sin(angles)], 1), np.array([0, 1, 1]))
    test = (np.array([[np.cos(0.15), np.sin(0.15)]]), np.array([0]))
    temperature = 0.1
    results = [
        probe.knn_accuracy(train, test, (3,), metric, temperature)[3] for metric in probe.METRICS
    ]
    # exp((cos .15 - cos .30) / T) = 1.4 < 2 votes, exp((2 sin .15 - 2 sin .075) / T) = 4.5 > 2.
    assert results == [0.0, 1.0]


def test_the_ridge_minimises_its_objective_and_leaves_rows_out():
    x, y = clusters(40, width=5, noise=1.0)
    x = x - x.mean(0)
    ridge, target = probe.Ridge.fit(x, y, 3), np.eye(3)[y]
    extended = np.concatenate([x, np.ones((40, 1))], 1)

    def solve(rows):
        penalty = 0.1 * rows.size * np.diag([1.0] * 5 + [0.0])
        a = extended[rows]
        return np.linalg.solve(a.T @ a + penalty, a.T @ target[rows])

    every = np.arange(40)
    np.testing.assert_allclose(ridge.scores(x, 0.1), extended @ solve(every), atol=1e-9)
    # Without a row, the sum of squares loses a term and the penalty stays as large as it was.
    for row in (0, 17):
        a = extended[every != row]
        penalty = 0.1 * 40 * np.diag([1.0] * 5 + [0.0])
        w = np.linalg.solve(a.T @ a + penalty, a.T @ target[every != row])
        np.testing.assert_allclose(ridge.left_out(x, y, 0.1)[row], extended[row] @ w, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(5, 80), st.floats(0.01, 1.0), st.integers(0, 9))
def test_few_rows_are_balanced_distinct_and_seeded(classes, count, share, seed):
    labels = np.random.default_rng(seed).integers(0, classes, count)
    rows = probe.few_rows(labels, share, seed)
    assert len(set(rows.tolist())) == len(rows)
    for label in np.unique(labels):
        own = (labels == label).sum()
        assert (labels[rows] == label).sum() == max(1, round(share * own))
    np.testing.assert_array_equal(rows, probe.few_rows(labels, share, seed))


def test_ranks_of_known_spectra():
    assert float(entropy_rank(np.ones(5, np.float32))) == pytest.approx(5, rel=1e-5)
    assert float(entropy_rank(np.array([3.0, 0, 0]))) == pytest.approx(1)
    assert float(entropy_rank(np.zeros(3))) == 0
    same = np.ones((10, 4), np.float32)
    found = {k: float(v) for k, v in feature_ranks(same).items()}
    assert found["std"] == 0 and found["rankme"] == pytest.approx(1, rel=1e-3)
    wide = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    found = feature_ranks(wide)
    assert float(found["effective_rank"]) > 5.8 and float(found["std"]) == pytest.approx(1, abs=0.1)
    for key, value in probe.feature_spread(wide).items():
        assert float(found[key]) == pytest.approx(value, rel=1e-4)
    assert probe.feature_spread(wide.T[:, :300])["rankme"] <= 6
    padded = np.concatenate([wide, 1e3 * np.ones((20, 6), np.float32)])
    again = feature_ranks(padded, np.arange(520) < 500)
    for key, value in found.items():
        assert float(again[key]) == pytest.approx(float(value), rel=1e-4)


def test_tokens_are_pooled_and_bad_input_is_refused():
    tokens = np.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_array_equal(probe.pool_tokens(tokens), [[4, 5, 6, 7]])
    np.testing.assert_array_equal(probe.pool_tokens(tokens, "max"), [[8, 9, 10, 11]])
    with pytest.raises(ShapeError, match="mean, max"):
        probe.pool_tokens(tokens, "sum")
    with pytest.raises(ShapeError, match=r"\[N, T, D\]"):
        probe.pool_tokens(tokens[0])
    x, y = clusters(20)
    with pytest.raises(ShapeError, match="cosine, original"):
        probe.knn_accuracy((x, y), (x, y), metric="euclid")
    with pytest.raises(ShapeError, match="features"):
        probe.knn_accuracy((x, y[:3]), (x, y))
    with pytest.raises(DataError, match="not finite"):
        probe.linear_probe((x * np.inf, y), (x, y))
    with pytest.raises(ShapeError, match="whole numbers"):
        probe.linear_probe((x, y - 1), (x, y))


def test_wide_features_are_judged_in_their_span():
    train, test = clusters(30, width=50, noise=1.0), clusters(40, width=50, noise=1.0, seed=5)
    x, z = probe._standardised(train[0], test[0])
    small, few = probe._compact(x, z)
    assert small.shape == (30, 30) and few.shape == (40, 30)
    scores = [
        probe.Ridge.fit(rows, train[1], 3).scores(others, 0.1)
        for rows, others in ((x, z), (small, few))
    ]
    np.testing.assert_allclose(*scores, atol=1e-8)
