"""KITTI's precision and orientation curves at 41 recalls, and average precision from them.

Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite", 2012; the
40-point form is that of Simonelli et al., "Disentangling monocular 3D object detection", 2019.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxcomp.evaluate.kitti_match import Matches
from jaxcomp.ops.native import compiled

SAMPLES = 41
_SIGNATURE = (
    "void(i8[::1], f8[::1], i8[::1], f8[::1], i8[::1], f8[:, ::1], i4[:, ::1], f8[:, ::1],"
    " f8[:, :, ::1])"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """Curves of R weightings of the frames at recall 0, 1/40, ..., 1.

    Attributes:
      threshold: [R, 41] scores, falling; NaN from the first recall that is not reached.
      precision: [R, 41] best precision at this or a higher recall; 0 where it is not reached.
      orientation: [R, 41] the same of the orientation similarity.
    """

    threshold: np.ndarray
    precision: np.ndarray
    orientation: np.ndarray


def curves(matches: Matches, weights: np.ndarray) -> Curves:
    """Curves of the set in which frame f is there weights[r, f] times, weights [R, F] int32."""
    threshold = np.full((len(weights), SAMPLES), np.nan)
    counts = np.zeros((len(weights), SAMPLES, 3))
    m = matches
    compiled(_curve_loop, _SIGNATURE)(
        m.objects, m.hit_score, m.hit_frame, m.event_score, m.event_frame, m.event,
        np.ascontiguousarray(weights, np.int32), threshold, counts,
    )  # fmt: skip
    # A threshold without right or wrong detections is possible (all of them ignored): 0, not 0/0.
    total = np.maximum(counts[..., 0] + counts[..., 1], 1.0)
    precision, orientation = counts[..., 0] / total, counts[..., 2] / total
    return Curves(threshold, _envelope(precision), _envelope(orientation))


def _envelope(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values[:, ::-1], 1)[:, ::-1]


def average(values: np.ndarray, points: int) -> np.ndarray:
    """Mean of a curve in percent, [R, 41] -> [R]: at 40 recalls (without 0) or at 11 (with 0)."""
    chosen = {40: values[:, 1:], 11: values[:, :: (SAMPLES - 1) // 10]}[points]
    return 100.0 * chosen.mean(1)


def _curve_loop(
    objects, hit_score, hit_frame, event_score, event_frame, event, weights, threshold, counts
):
    """Fills the thresholds, and the sums of events at or above each.

    A threshold is the score whose recall is nearest to the next of 41 equal steps; the last score
    always is one.
    """
    samples = threshold.shape[1]
    for r in range(len(weights)):
        total, hits = 0, 0
        for f in range(len(objects)):
            total += weights[r, f] * objects[f]
        for h in range(len(hit_frame)):
            hits += weights[r, hit_frame[h]]
        used, seen, wanted = 0, 0, 0.0
        for h in range(len(hit_frame)):
            for _ in range(weights[r, hit_frame[h]]):
                seen += 1
                left = seen / total
                right = (seen + 1) / total
                if seen < hits and right - wanted < wanted - left:
                    continue
                if used < samples:
                    threshold[r, used] = hit_score[h]
                    used += 1
                wanted += 1.0 / (samples - 1.0)
        right_sum, wrong_sum, similar_sum, e = 0.0, 0.0, 0.0, 0
        for k in range(used):
            while e < len(event_score) and event_score[e] >= threshold[r, k]:
                weight = weights[r, event_frame[e]]
                right_sum += weight * event[e, 0]
                wrong_sum += weight * event[e, 1]
                similar_sum += weight * event[e, 2]
                e += 1
            counts[r, k, 0] = right_sum
            counts[r, k, 1] = wrong_sum
            counts[r, k, 2] = similar_sum
