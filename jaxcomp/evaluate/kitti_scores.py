"""Scores of many weightings of the frames: means, confidence intervals, trees for JSON.

Row 0 of a weighting is the set itself; the others are drawn from it with replacement, for the
percentile intervals of Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.errors import ConfigError
from jaxcomp.evaluate.kitti_curve import SAMPLES, Curves, average
from jaxcomp.evaluate.kitti_rules import DIFFICULTIES

LEVEL = 0.95
POINTS = {"r40": 40, "r11": 11}
# {"r40": [R, 3], "r11": [R, 3]} by difficulty, percent, NaN where nothing counts
Scores = dict[str, np.ndarray]


def draw_weights(
    frames: int, replicates: int, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[np.ndarray, int]:
    """How often each frame is in each set, and how many units were drawn from.

    Args:
      frames: F.
      replicates: sets beside the first.
      seed: of the drawing.
      groups: a key of each frame; whole groups are drawn.

    Returns:
      ([1 + replicates, F] int32, the first row ones; number of frames or groups).

    Raises:
      ConfigError: there is not one key for each frame.
    """
    unit, units = np.arange(frames), frames
    if groups is not None:
        if len(groups) != frames:
            raise ConfigError(f"{len(groups)} groups for {frames} frames; give each frame its key")
        index = {key: i for i, key in enumerate(dict.fromkeys(groups))}
        unit, units = np.array([index[key] for key in groups]), len(index)
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + replicates, frames), np.int32)
    for row in weights[1:]:
        row[:] = np.bincount(rng.integers(units, size=units), minlength=units)[unit]
    return weights, units


def scores(values: Sequence[np.ndarray], counts: np.ndarray) -> Scores:
    """Averages of a curve for each difficulty, three of [R, 41]; NaN where counts [R, 3] are 0."""
    table = {key: np.stack([average(v, n) for v in values], 1) for key, n in POINTS.items()}
    return {key: np.where(counts > 0, value, np.nan) for key, value in table.items()}


def means(of_classes: Sequence[Scores]) -> Scores:
    """Mean over the classes that have a score."""
    out = {}
    for key in POINTS:
        stack = np.stack([scores[key] for scores in of_classes])
        there = ~np.isnan(stack)
        total = np.where(there, stack, 0.0).sum(0)
        out[key] = np.where(there.any(0), total / np.maximum(there.sum(0), 1), np.nan)
    return out


def tree(samples: Mapping[str, Mapping[str, Scores | None]], leaf: Callable) -> dict[str, Any]:
    """{class: {measure: {"r40", "r11": {difficulty: leaf([R])}}}}; None for a missing measure."""
    return {
        name: {
            measure: table
            and {
                key: {d: leaf(values[:, i]) for i, d in enumerate(DIFFICULTIES)}
                for key, values in table.items()
            }
            for measure, table in measures.items()
        }
        for name, measures in samples.items()
    }


def point(values: np.ndarray) -> float | None:
    """The score of the set itself, None if it has none."""
    return None if np.isnan(values[0]) else float(values[0])


def interval(values: np.ndarray) -> list[float] | None:
    """Percentiles of the drawn sets, without those in which nothing counts."""
    drawn = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(drawn):
        return None
    return np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]).tolist()


def drawing(results: Sequence[Curves], *, orientation: bool) -> dict[str, Any]:
    """The curves of the set itself as lists, by difficulty; threshold None where not reached."""
    recall = (np.arange(SAMPLES) / (SAMPLES - 1)).tolist()
    out = {}
    for name, curve in zip(DIFFICULTIES, results, strict=True):
        threshold = [None if np.isnan(t) else float(t) for t in curve.threshold[0]]
        out[name] = {"recall": recall, "threshold": threshold}
        out[name]["precision"] = curve.precision[0].tolist()
        if orientation:
            out[name]["orientation"] = curve.orientation[0].tolist()
    return out
