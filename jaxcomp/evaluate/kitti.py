"""KITTI's object benchmark: average precision in the image, from above and in 3-D, orientation.

    truth, found ──► overlaps of pairs ──► by class, metric and difficulty:
                                           matches ──► curves at 41 recalls ──► AP at 40 and 11

The rules are those of the benchmark's development kit (Geiger et al., "Are we ready for autonomous
driving? The KITTI vision benchmark suite", 2012); docs/kitti_evaluation.md tells them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.evaluate import kitti_rules as rules
from jaxcomp.evaluate import kitti_scores as scoring
from jaxcomp.evaluate.kitti_curve import SAMPLES, Curves, curves
from jaxcomp.evaluate.kitti_frames import KittiFrame, Objects
from jaxcomp.evaluate.kitti_match import COUNTS, match
from jaxcomp.evaluate.kitti_overlap import Pairs, coverage_2d, overlap_2d, overlaps_bev_3d
from jaxcomp.evaluate.kitti_rules import CLASSES, DIFFICULTIES, METRICS, MIN_HEIGHTS, Overlaps

__all__ = ["CLASSES", "METRICS", "KittiFrame", "evaluate", "text_table"]


def evaluate(
    truth: Sequence[KittiFrame],
    found: Sequence[KittiFrame],
    classes: Sequence[str] = CLASSES,
    metrics: Sequence[str] = METRICS,
    overlaps: Overlaps | None = None,
    *,
    min_heights: Sequence[float] = MIN_HEIGHTS,
    bootstrap: int = 0,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Average precision and orientation similarity in percent by class, metric and difficulty.

    Args:
      truth: ground truth of each frame, with its DontCare regions and all types.
      found: detections of the same frames in the same order; empty frames where there are none.
      classes: what to evaluate.
      metrics: of "2d", "bev", "3d". Orientation ("aos") comes with "2d".
      overlaps: other limits by class, {"Car": 0.5} or {"Car": {"bev": 0.5, "3d": 0.25}}.
      min_heights: of a box by difficulty, pixels; KITTI's hold for its images of 375 rows.
      bootstrap: number of resampled sets of frames for confidence intervals; 0 for none.
      seed: of the resampling.
      groups: a key of each frame, as its drive: whole groups are resampled, since frames of one
        drive are much alike.

    Returns:
      A JSON-ready tree. None stands for what does not exist, and the notes say why.
      {"frames", "classes", "metrics", "overlaps", "min_heights",
      "objects": {class: {difficulty: how many count}},
      "scores": {class or "mean": {metric or "aos": {"r40", "r11": {difficulty: percent}}}},
      "curves": {class: {metric: {difficulty: {"recall", "threshold", "precision" and, in 2d,
      "orientation": 41 numbers}}}}, "notes": [text], and with bootstrap
      "intervals": {"level", "replicates", "seed", "units", "scores": as above, [low, high]}}

    Raises:
      DataError: frames are missing or in another order, a detection has no score or is of a type
        that is unknown, or a class to evaluate is unknown.
      ConfigError: an option is out of range.
    """
    rules.check_options(classes, metrics, min_heights, bootstrap)
    limits = rules.limits(classes, metrics, overlaps)
    rules.check_frames(truth, found)
    scene = _Scene.build(truth, found, metrics)
    rules.check_classes(classes, scene.every, found)
    missing = rules.unavailable(scene.truth, scene.found, classes, metrics)
    weights, units = scoring.draw_weights(len(truth), bootstrap, seed, groups)

    results = {
        name: _evaluate_class(
            scene, name, [m for m in limits[name] if (name, m) not in missing],
            limits[name], min_heights, weights,
        )
        for name in classes
    }  # fmt: skip
    samples = _samples(results, metrics, missing)
    out: dict[str, Any] = {
        "frames": len(truth),
        "classes": list(classes),
        "metrics": list(metrics),
        "overlaps": limits,
        "min_heights": [float(h) for h in min_heights],
        "objects": {name: _by_difficulty(r.counts[0]) for name, r in results.items()},
        "scores": scoring.tree(samples, scoring.point),
        "curves": {name: _drawings(r, missing, name) for name, r in results.items()},
        "notes": _notes(results, missing),
    }
    if bootstrap:
        out["intervals"] = {
            "level": scoring.LEVEL,
            "replicates": int(bootstrap),
            "seed": int(seed),
            "units": units,
            "scores": scoring.tree(samples, scoring.interval),
        }
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class _Scene:
    """All frames in arrays, and the overlaps of what is in the same frame."""

    every: Objects  # ground truth with DontCare
    truth: Objects  # without
    found: Objects
    base: np.ndarray
    overlap: dict[str, np.ndarray]
    coverage: np.ndarray

    @classmethod
    def build(
        cls, truth: Sequence[KittiFrame], found: Sequence[KittiFrame], metrics: Sequence[str]
    ) -> _Scene:
        every, detections = Objects.gather(truth), Objects.gather(found)
        region = every.is_kind(rules.REGION)
        objects = every.select(~region)
        pairs = Pairs.same_frame(objects, detections)
        overlap = {"2d": overlap_2d(objects, detections, pairs)}
        if set(metrics) != {"2d"}:
            overlap["bev"], overlap["3d"] = overlaps_bev_3d(objects, detections, pairs)
        coverage = coverage_2d(detections, every.select(region))
        return cls(every, objects, detections, pairs.base, overlap, coverage)


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    """Of one class: objects that count [R, 3], and three `Curves` for each metric."""

    counts: np.ndarray
    curves: dict[str, list[Curves]]


def _evaluate_class(
    scene: _Scene,
    name: str,
    metrics: Sequence[str],
    limits: Mapping[str, float],
    min_heights: Sequence[float],
    weights: np.ndarray,
) -> _Result:
    frames, found_curves = weights.shape[1], {}
    states = [rules.states(scene.truth, scene.found, name, i, min_heights) for i in range(3)]
    in_frames = [np.bincount(scene.truth.frame[s == COUNTS], minlength=frames) for s, _ in states]
    for metric in metrics:
        limit = limits[metric]
        # DontCare regions have no extent on the ground.
        covered = (scene.coverage > limit) & (metric == "2d")
        args = (scene.overlap[metric], scene.base, limit, covered)
        matches = [match(scene.truth, scene.found, state, *args) for state in states]
        found_curves[metric] = [curves(m, weights) for m in matches]
    return _Result(np.stack([weights @ n for n in in_frames], 1), found_curves)


def _samples(
    results: Mapping[str, _Result], metrics: Sequence[str], missing: Mapping[tuple[str, str], str]
) -> dict[str, dict[str, scoring.Scores | None]]:
    """Scores of all weightings by class and measure, None if missing; "mean" is the last class."""
    out: dict[str, dict[str, scoring.Scores | None]] = {}
    for name, result in results.items():
        out[name] = dict.fromkeys(metrics)
        for metric, parts in result.curves.items():
            out[name][metric] = scoring.scores([c.precision for c in parts], result.counts)
        if "2d" in metrics:
            turned = [c.orientation for c in result.curves["2d"]]
            there = (name, "aos") not in missing
            out[name]["aos"] = scoring.scores(turned, result.counts) if there else None
    mean = {}
    for measure in next(iter(out.values())):
        tables = [table for values in out.values() if (table := values[measure]) is not None]
        mean[measure] = scoring.means(tables) if tables else None
    return {**out, "mean": mean}


def _drawings(result: _Result, missing: Mapping[tuple[str, str], str], name: str) -> dict[str, Any]:
    turned = (name, "aos") not in missing
    return {
        metric: scoring.drawing(parts, orientation=metric == "2d" and turned)
        for metric, parts in result.curves.items()
    }


def _by_difficulty(counts: np.ndarray) -> dict[str, int]:
    return dict(zip(DIFFICULTIES, counts.tolist(), strict=True))


def _notes(results: Mapping[str, _Result], missing: Mapping[tuple[str, str], str]) -> list[str]:
    """What is not there or should not be trusted, in sentences."""
    by_reason: dict[str, dict[str, list[str]]] = {}
    for (name, measure), why in missing.items():
        by_reason.setdefault(why, {}).setdefault(name, []).append(measure)
    notes = []
    for why, measures in by_reason.items():
        what = "; ".join(f"{name}: {', '.join(m)}" for name, m in measures.items())
        notes.append(f"not computed, because {why}: {what}")
    few = [
        f"{name} {level} {count}"
        for name, result in results.items()
        for level, count in _by_difficulty(result.counts[0]).items()
        if count < SAMPLES
    ]
    if few:
        notes.append(
            f"fewer than {SAMPLES} objects count, so that not even perfect detections reach 100 "
            f"(without any there is no score): {', '.join(few)}"
        )
    return notes


def text_table(result: Mapping[str, Any]) -> str:
    """What `evaluate` returns as text: a table at 40 recalls and one at 11, then the notes."""
    blocks = [
        _block(result, key, f"AP in percent at {points} recalls")
        for key, points in scoring.POINTS.items()
    ]
    notes = [f"note: {note}" for note in result["notes"]]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])]) + "\n"


def _block(result: Mapping[str, Any], key: str, title: str) -> str:
    intervals = result.get("intervals")
    if intervals:
        title += f", with {intervals['level']:.0%} intervals"
    width = 25 if intervals else 10
    lines = [title, f"{'':<22}" + "".join(f"{d:>{width}}" for d in DIFFICULTIES)]
    for name, measures in result["scores"].items():
        for measure, table in measures.items():
            limit = result["overlaps"].get(name, {}).get("2d" if measure == "aos" else measure)
            at = "" if limit is None else f"{limit:g}"
            ranges = intervals and intervals["scores"][name][measure]
            cells = [
                _cell(table and table[key][d], ranges and ranges[key][d]) for d in DIFFICULTIES
            ]
            row = f"{name:<14} {measure:<4}{at:<3}"
            lines.append(row + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def _cell(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
