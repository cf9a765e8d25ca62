"""Percentile bootstrap over frames, of means of frames and of average precision.

Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13. A set of frames drawn
with replacement is a row of weights: how often each frame is in it. Detections match objects of
their own frame alone, so matching is done once and every set only counts it anew. Two methods that
are compared get the same rows (the same seed): then the interval of their difference leaves out
what is hard for both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from jaxcomp.evaluate.detection import Frame, PrecisionRecall, match_class
from jaxcomp.evaluate.kitti_scores import draw_weights

LEVEL = 0.95
_TENTHS = np.arange(11) / 10 - 1e-12  # as in `detection.average_precision`
_BLOCK = 1 << 22  # weights that are looked at together: some 200 MB at the peak


def frame_weights(
    frames: int, replicates: int = 1000, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> np.ndarray:
    """How often each frame is in each set, [1 + replicates, frames] int32; row 0 is the set itself.

    Args:
      frames: number of frames.
      replicates: sets that are drawn.
      seed: of the drawing.
      groups: a key of each frame (its sequence, say); whole groups are drawn.

    Raises:
      ConfigError: there is not one key for each frame.
    """
    return draw_weights(frames, replicates, seed, groups)[0]


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) of the drawn sets, samples [1 + R] with the set itself first; NaN if none.

    Sets without a value (NaN) are left out.
    """
    drawn = np.asarray(samples, np.float64)[1:]
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return np.nan, np.nan
    low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)]).tolist()
    return low, high


def mean_samples(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of a number of each frame (bytes, error) in every set.

    Args:
      values: [F] or [F, ...].
      weights: [R, F], from `frame_weights`.

    Returns:
      [R] or [R, ...] float64.
    """
    total = weights.sum(1, dtype=np.float64).reshape(-1, *[1] * (np.ndim(values) - 1))
    return np.tensordot(weights.astype(np.float64), values, 1) / total


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    frames: int,
    replicates: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """(low, high) of any metric that counts frames by weights, [R, F] -> [R]."""
    return interval(statistic(frame_weights(frames, replicates, seed)), level)


def bootstrap_map(
    frames: Sequence[Frame],
    classes: Sequence[str],
    replicates: int = 1000,
    seed: int = 0,
    *,
    iou_threshold: float = 0.5,
    level: float = LEVEL,
) -> tuple[float, float]:
    """(low, high) of the 11-point mean AP that `detection.voc_metrics` gives.

    Args:
      frames: the data set, matched once.
      classes: names of labels 1, 2, ...
      replicates: sets that are drawn.
      seed: of the drawing.
      iou_threshold: overlap of a right detection.
      level: share of the sets inside the interval.
    """
    weights = frame_weights(len(frames), replicates, seed)
    samples = detection_samples(frames, classes, weights, iou_threshold)
    return interval(samples[f"map{round(iou_threshold * 100)}"], level)


def detection_samples(
    frames: Sequence[Frame], classes: Sequence[str], weights: np.ndarray, iou_threshold: float = 0.5
) -> dict[str, np.ndarray]:
    """Every number of `detection.voc_metrics` in every set, without matching again.

    Equal to evaluating a list in which frame f stands weights[r, f] times in a row, unless one
    frame has two detections of one class with the very same score. One thing differs: where a set
    happens to hold no object of a class that the data have, its AP is NaN and the mean is over the
    other classes. Counting it 0 would draw the lower end of an interval down by the luck of the
    draw alone. A class without any objects in the data counts 0, as in `voc_metrics`.

    Args:
      frames: the data set, F of them.
      classes: names of labels 1, 2, ...
      weights: [R, F], from `frame_weights`.
      iou_threshold: overlap of a right detection.

    Returns:
      The names of `voc_metrics` with [R] float64 each.
    """
    per_class = [
        [match_class([frame], label, iou_threshold) for frame in frames]
        for label in range(1, len(classes) + 1)
    ]
    lists = [_Matches.of(results) for results in per_class]
    step = max(1, _BLOCK // max(1, sum(len(m.scores) for m in lists)))
    blocks = [weights[start : start + step] for start in range(0, len(weights), step)]
    suffix = f"{round(iou_threshold * 100)}"
    done = [_samples(lists, block, classes, suffix) for block in blocks]
    return {name: np.concatenate([block[name] for block in done]) for name in done[0]}


def _samples(
    lists: Sequence[_Matches], weights: np.ndarray, classes: Sequence[str], suffix: str
) -> dict[str, np.ndarray]:
    points = np.stack([np.stack(m.average_precision(weights)) for m in lists])  # [classes, 2, R]
    # Not measured in a set that happens to hold none of a class, but 0 by convention of the whole.
    missed = np.stack([(weights @ m.truth == 0) & (m.truth.sum() > 0) for m in lists])
    points = np.where(missed[:, None], np.nan, points)
    eleven, area = _mean_where_measured(points)
    out = {f"map{suffix}": eleven, f"map{suffix}_allpoint": area}
    out |= {f"ap{suffix}_{name}": p for name, p in zip(classes, points[:, 0], strict=True)}
    out[f"f1_{suffix}"] = _Matches.pooled(lists).best_f1(weights)
    return out


def _mean_where_measured(points: np.ndarray) -> np.ndarray:
    """[classes, 2, R] to [2, R] over the classes that are not NaN; NaN where all are."""
    there = ~np.isnan(points)
    total, count = np.where(there, points, 0.0).sum(0), there.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class _Matches:
    """Detections of a data set, best score first, with the frame that each is of."""

    def __init__(self, scores: np.ndarray, right: np.ndarray, frame: np.ndarray, truth: np.ndarray):
        order = np.argsort(-scores, kind="stable")
        self.scores, self.right, self.frame = scores[order], right[order], frame[order]
        self.truth = truth  # [F] objects

    @classmethod
    def of(cls, per_frame: Sequence[PrecisionRecall]) -> _Matches:
        counts = [len(r.scores) for r in per_frame]
        return cls(
            np.concatenate([np.zeros(0), *(r.scores for r in per_frame)]),
            np.concatenate([np.zeros(0, bool), *(r.true_positive for r in per_frame)]),
            np.repeat(np.arange(len(per_frame)), counts),
            np.array([r.truth_count for r in per_frame], np.int64),
        )

    @classmethod
    def pooled(cls, lists: Sequence[_Matches]) -> _Matches:
        scores, right, frame = (
            np.concatenate([getattr(m, field) for m in lists])
            for field in ("scores", "right", "frame")
        )
        return cls(scores, right, frame, np.sum([m.truth for m in lists], 0))

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(right, all) detections down to each, [R, D], and objects [R, 1], in every set."""
        times = weights[:, self.frame]
        hits, found = np.cumsum(times * self.right, 1), np.cumsum(times, 1)
        return hits, found, (weights @ self.truth)[:, None]

    def average_precision(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(11-point, all-point) AP of every set, [R] each."""
        hits, found, truth = self.counts(weights)
        if not hits.shape[1]:
            return np.zeros(len(weights)), np.zeros(len(weights))
        precision, recall = hits / np.maximum(found, 1), hits / np.maximum(truth, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        padded = np.concatenate([envelope, np.zeros((len(weights), 1))], 1)
        first = np.stack([(recall < tenth).sum(1) for tenth in _TENTHS], 1)
        eleven = np.take_along_axis(padded, first, 1).mean(1)
        area = (envelope * np.diff(recall, axis=1, prepend=0.0)).sum(1)
        return eleven, area

    def best_f1(self, weights: np.ndarray) -> np.ndarray:
        """Best F1 over score thresholds in every set, [R]."""
        hits, found, truth = self.counts(weights)
        return (2 * hits / np.maximum(found + truth, 1)).max(1, initial=0.0)
