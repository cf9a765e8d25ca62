"""How much frozen features know: nearest neighbours, linear probes and few labels. Numpy, exact.

Features are [N, D], one row for an image; `pool_tokens` makes them of tokens. Every result depends
on the arguments alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from jaxcomp.errors import DataError, ShapeError

POOLINGS = ("mean", "max")
METRICS = ("cosine", "original")
KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
SHARES = (0.01, 0.1)
_ROWS = 512  # test rows at a time


def pool_tokens(tokens: np.ndarray, how: str = "mean") -> np.ndarray:
    """[N, T, D] to float32 [N, D] by the mean or the maximum over tokens."""
    if how not in POOLINGS:
        raise ShapeError(f"pooling {how!r} is none of {', '.join(POOLINGS)}")
    tokens = np.asarray(tokens, np.float32)
    if tokens.ndim != 3 or not tokens.shape[1]:
        raise ShapeError(f"tokens have shape {list(tokens.shape)}; [N, T, D] is needed")
    return tokens.mean(1) if how == "mean" else tokens.max(1)


def _check(features: np.ndarray, labels: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ShapeError(
            f"{name} features {list(features.shape)} and labels {list(labels.shape)}: give "
            "[N, D] and [N], N at least 1"
        )
    if not np.isfinite(features).all():
        raise DataError(f"{name} features are not finite; the network has diverged")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ShapeError(f"{name} labels must be whole numbers from 0")
    return features, labels.astype(np.int64)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norm; zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def knn_accuracy(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    ks: Sequence[int] = KS,
    metric: str = "cosine",
    temperature: float = TEMPERATURE,
) -> dict[int, float]:
    """Share of test rows that a weighted vote of the nearest training rows gets right.

    Args:
      train: ([N, D] features, [N] labels).
      test: the same of the rows to judge.
      ks: numbers of neighbours; those above N are left out.
      metric: "cosine" weighs a neighbour by exp(similarity / temperature) (Wu et al., 2018,
        arXiv:1805.01978); "original" by exp((1 - d) / temperature) with the Euclidean distance d of
        unit vectors, which is another law: the similarity is 1 - d^2 / 2. The neighbours are the
        same.
      temperature: of the weights.

    Returns:
      k to accuracy. Equal votes go to the class of the lower number.
    """
    if metric not in METRICS:
        raise ShapeError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    x, y = _check(*train, "training")
    z, wanted = _check(*test, "test")
    x, z = unit(x), unit(z)
    ks = [k for k in ks if 1 <= k <= len(x)]
    classes = int(max(y.max(), wanted.max())) + 1
    right = dict.fromkeys(ks, 0)
    for start in range(0, len(z), _ROWS):
        similarity = z[start : start + _ROWS] @ x.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, : max(ks, default=0)]
        near = np.take_along_axis(similarity, order, 1)
        if metric == "original":
            near = 1 - np.sqrt(np.maximum(2 - 2 * near, 0))
        weights = np.exp((near - 1) / temperature)  # a factor that all share cancels
        one_hot = np.eye(classes)[y[order]] * weights[..., None]
        votes = one_hot.cumsum(1)
        for k in ks:
            right[k] += int((votes[:, k - 1].argmax(1) == wanted[start : start + _ROWS]).sum())
    return {k: right[k] / len(z) for k in ks}


def _standardised(x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    mean, std = x.mean(0), x.std(0)
    return [(y - mean) / np.where(std > 1e-8, std, 1.0) for y in (x, *others)]


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Least squares from features to one-hot labels with a penalty: a linear classifier.

    Minimises the mean over rows of ||W x + b - y||^2 plus penalty ||W||^2 in closed form (Hoerl and
    Kennard, 1970), for any penalty after one eigendecomposition.

    Attributes:
      mean: [C] of the one-hot labels; b, since the features are centred.
      vectors: [D, K] eigenvectors of the covariance.
      values: [K] eigenvalues.
      products: [K, C] covariances of features in that basis with labels.
    """

    mean: np.ndarray
    vectors: np.ndarray
    values: np.ndarray
    products: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, classes: int) -> Ridge:
        """From centred features [N, D] and labels [N]."""
        one_hot = np.eye(classes)[y]
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        products = (x @ vectors).T @ (one_hot - one_hot.mean(0)) / len(x)
        return cls(one_hot.mean(0), vectors, np.maximum(values, 0), products)

    def scores(self, x: np.ndarray, penalty: float) -> np.ndarray:
        """[N, C]; the largest names the class."""
        return (x @ self.vectors / (self.values + penalty)) @ self.products + self.mean

    def left_out(self, x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
        """Scores [N, C] of training rows, each from a fit without it (Allen, 1974, PRESS)."""
        leverage = (np.square(x @ self.vectors) / (self.values + penalty)).sum(1) / len(x)
        leverage = np.minimum(leverage + 1 / len(x), 1 - 1e-9)[:, None]
        one_hot = np.eye(len(self.mean))[y]
        return (self.scores(x, penalty) - leverage * one_hot) / (1 - leverage)


def _compact(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same rows in the directions that training rows span, if these are fewer than channels.

    The penalty sees lengths only, so the best classifier has no part outside of that span: the
    predictions stay what they were, at the cost of [N, N] instead of [N, D].
    """
    if x.shape[1] <= x.shape[0]:
        return x, z
    basis = np.linalg.qr(x.T)[0]
    return x @ basis, z @ basis


def linear_probe(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    penalties: Sequence[float] = PENALTIES,
) -> dict[str, float]:
    """Accuracy of a ridge classifier on standardised features.

    The penalty is the one with the best leave-one-out accuracy on the training rows; the test rows
    take no part in the choice. The larger of equals wins.

    Args:
      train: ([N, D] features, [N] labels).
      test: the same of the rows to judge.
      penalties: to choose from.

    Returns:
      {"accuracy", "penalty"}.
    """
    x, y = _check(*train, "training")
    z, wanted = _check(*test, "test")
    x, z = _compact(*_standardised(x, z))
    ridge = Ridge.fit(x, y, int(max(y.max(), wanted.max())) + 1)
    ordered = sorted(penalties, reverse=True)
    scores = [float((ridge.left_out(x, y, p).argmax(1) == y).mean()) for p in ordered]
    chosen = ordered[int(np.argmax(scores))]
    right = ridge.scores(z, chosen).argmax(1) == wanted
    return {"accuracy": float(right.mean()), "penalty": float(chosen)}


def few_rows(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows of a share of the labels, the same number of each class (at least one), sorted."""
    rng = np.random.default_rng([seed, 11])
    rows: list[np.ndarray] = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rows.append(rng.permutation(own)[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(rows))


def low_shot(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    shares: Sequence[float] = SHARES,
    draws: int = 3,
) -> dict[float, float]:
    """Linear-probe accuracy with few labels, mean over draws of the labelled rows, by share."""
    x, y = _check(*train, "training")
    found = {}
    for share in shares:
        accuracies = []
        for draw in range(draws):
            rows = few_rows(y, share, draw)
            probe = linear_probe((x[rows], y[rows]), test)
            accuracies.append(probe["accuracy"])
        found[share] = float(np.mean(accuracies))
    return found


def feature_spread(x: np.ndarray) -> dict[str, float]:
    """{"rankme", "effective_rank", "std"} of features [N, D], as `ops.ranks` defines them.

    Singular values come from the smaller of the two Gram matrices, in double precision.
    """
    x = np.asarray(x, np.float64)
    centred = x - x.mean(0)

    def rank(y: np.ndarray) -> float:
        gram = y @ y.T if y.shape[0] <= y.shape[1] else y.T @ y
        singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
        p = singular / max(singular.sum(), 1e-300)
        return float(np.exp(special.entr(p).sum())) if singular.any() else 0.0

    return {"rankme": rank(x), "effective_rank": rank(centred), "std": float(x.std(0).mean())}


def probe_features(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    ks: Sequence[int] = KS,
    headline: int = 20,
) -> dict[str, Any]:
    """Everything about one set of features, as JSON values.

    Args:
      train: ([N, D] features, [N] labels).
      test: the same of the rows to judge.
      ks: numbers of neighbours of the sweep.
      headline: the k of "knn" (the largest possible below it, if there are too few rows).

    Returns:
      {"knn", "linear": accuracies, "knn_sweep": {metric: {k: accuracy}}, "low_shot": {share:
      accuracy}, "rankme", "effective_rank", "std": of the test features}.
    """
    sweep = {metric: knn_accuracy(train, test, ks, metric) for metric in METRICS}
    near = max((k for k in sweep["cosine"] if k <= headline), default=min(sweep["cosine"]))
    spread = feature_spread(test[0])
    return {
        "knn": sweep["cosine"][near],
        "linear": linear_probe(train, test)["accuracy"],
        "knn_sweep": {m: {str(k): v for k, v in found.items()} for m, found in sweep.items()},
        "low_shot": {f"{share:g}": v for share, v in low_shot(train, test).items()},
        **spread,
    }


def headline_scores(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], k: int = 20
) -> dict[str, float]:
    """{"knn", "linear"} of `probe_features` alone: k nearest neighbours (fewer rows: all)."""
    k = min(k, len(train[0]))
    return {
        "knn": knn_accuracy(train, test, (k,))[k],
        "linear": linear_probe(train, test)["accuracy"],
    }


def flat_scores(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Named results by one key each, for tables.

    Returns:
      {"NAME_knn", "NAME_linear", "NAME_attentive", "NAME_rankme", "NAME_low_shot_0.01"}, one of the
      last kind for each share of the labels.
    """
    keys = ("knn", "linear", "attentive", "rankme")
    named = {f"{name}_{key}": one.get(key) for name, one in found.items() for key in keys}
    for name, one in found.items():
        named |= {f"{name}_low_shot_{k}": v for k, v in one.get("low_shot", {}).items()}
    return {name: float(value) for name, value in named.items() if value is not None}
