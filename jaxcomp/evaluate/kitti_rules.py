"""KITTI's rules: which objects count for a class and difficulty, and what input is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxcomp.errors import ConfigError, DataError
from jaxcomp.evaluate.kitti_frames import KittiFrame, Objects
from jaxcomp.evaluate.kitti_match import COUNTS, IGNORED, OTHER

CLASSES = ("Car", "Pedestrian", "Cyclist")
METRICS = ("2d", "bev", "3d")
DIFFICULTIES = ("easy", "moderate", "hard")
MIN_HEIGHTS = (40.0, 25.0, 25.0)  # pixels
MAX_OCCLUDED = (0, 1, 2)
MAX_TRUNCATED = (0.15, 0.3, 0.5)
# A detection of a class may well be on its neighbour, which makes it neither right nor wrong.
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}
REGION = "DontCare"
TYPES = (*CLASSES, "Van", "Truck", "Person_sitting", "Tram", "Misc", REGION)
NO_ANGLE = -10.0

Overlaps = Mapping[str, float | Mapping[str, float]]


def default_overlap(name: str) -> float:
    """The overlap that a match must exceed: 0.7 for Car, 0.5 for all others."""
    return 0.7 if name.lower() == "car" else 0.5


def states(
    truth: Objects, found: Objects, name: str, level: int, min_heights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """What each object is to a class at a difficulty: [G] and [D] int8, see `kitti_match`.

    Detections that are too low are ignored whatever their type, as in the development kit: an
    object whose best match is such a one gives no score threshold.
    """
    own = truth.is_kind(name)
    near = truth.is_kind(NEIGHBOURS.get(name.lower(), name))
    hard = (
        (truth.occluded > MAX_OCCLUDED[level])
        | (truth.truncated > MAX_TRUNCATED[level])
        | (truth.height <= min_heights[level])
    )
    low = found.height < min_heights[level]
    of_truth = np.where(own, np.where(hard, IGNORED, COUNTS), np.where(near, IGNORED, OTHER))
    of_found = np.where(low, IGNORED, np.where(found.is_kind(name), COUNTS, OTHER))
    return of_truth.astype(np.int8), of_found.astype(np.int8)


def unavailable(
    truth: Objects, found: Objects, classes: Sequence[str], metrics: Sequence[str]
) -> dict[tuple[str, str], str]:
    """(class, measure) that cannot be computed, and why; measures are metrics and "aos".

    Detections without 3-D boxes (of this class, or at all) have no BEV and 3-D results; without
    detections the result is 0 instead. One detection without an angle takes the orientation from
    all classes, as in the development kit.
    """
    out: dict[tuple[str, str], str] = {}
    angles = not (found.alpha == NO_ANGLE).any()
    relevant = found.is_kind(*classes)
    flat = relevant.any() and not found.has_3d[relevant].any()
    for name in classes:
        own, objects = found.is_kind(name), truth.is_kind(name)
        why = None
        if flat or (own.any() and not found.has_3d[own].any()):
            why = "the detections have no 3-D boxes"
        elif objects.any() and not truth.has_3d[objects].any():
            why = "the ground truth has no 3-D boxes"
        out |= {(name, m): why for m in metrics if why and m != "2d"}
        if not angles:
            out[name, "aos"] = "there are detections without an observation angle (alpha is -10)"
        elif (truth.alpha[objects] == NO_ANGLE).any():
            out[name, "aos"] = "the ground truth has no observation angles (alpha is -10)"
        if "2d" not in metrics:
            out.pop((name, "aos"), None)
    return out


def limits(
    classes: Sequence[str], metrics: Sequence[str], overlaps: Overlaps | None
) -> dict[str, dict[str, float]]:
    """The limit of every class and metric: what `overlaps` says, else KITTI's.

    Raises:
      ConfigError: a class or metric is unknown, or a limit is not in [0, 1).
    """
    given = {name.lower(): value for name, value in (overlaps or {}).items()}
    stray = set(given) - {name.lower() for name in classes}
    if stray:
        raise ConfigError(f"overlaps name {sorted(stray)}; the classes are {list(classes)}")
    out: dict[str, dict[str, float]] = {}
    for name in classes:
        value = given.get(name.lower(), {})
        own = dict(value) if isinstance(value, Mapping) else dict.fromkeys(METRICS, value)
        if set(own) - set(METRICS):
            raise ConfigError(f"overlaps of {name} name {sorted(own)}; metrics are {METRICS}")
        out[name] = {metric: float(own.get(metric, default_overlap(name))) for metric in metrics}
        for metric, limit in out[name].items():
            if not 0 <= limit < 1:
                raise ConfigError(f"overlap of {name} in {metric} is {limit}; give 0 <= x < 1")
    return out


def check_options(
    classes: Sequence[str], metrics: Sequence[str], min_heights: Sequence[float], bootstrap: int
) -> None:
    """Refuses options out of range.

    Raises:
      ConfigError: it names the option, its value and the range.
    """
    if not metrics or len(set(metrics)) < len(metrics) or set(metrics) - set(METRICS):
        raise ConfigError(f"metrics are {list(metrics)}; choose of {list(METRICS)}")
    names = [name.lower() for name in classes]
    if not names or len(set(names)) < len(names) or REGION.lower() in names or "mean" in names:
        raise ConfigError(f"classes are {list(classes)}; give different names, as {CLASSES}")
    if len(min_heights) != 3 or not all(0 <= h < np.inf for h in min_heights):
        raise ConfigError(f"min_heights are {list(min_heights)}; give three numbers of pixels")
    if bootstrap != int(bootstrap) or not (bootstrap == 0 or bootstrap >= 10):
        raise ConfigError(f"bootstrap is {bootstrap}; give 0 for none, or at least 10 (say 1000)")


def check_frames(truth: Sequence[KittiFrame], found: Sequence[KittiFrame]) -> None:
    """Refuses frames that do not belong together, and detections without scores.

    Raises:
      DataError: it names the frame.
    """
    if len(truth) != len(found):
        raise DataError(
            f"{len(truth)} frames of ground truth but {len(found)} of detections; "
            "give an empty frame where nothing was detected"
        )
    if not truth:
        raise DataError("there are no frames to evaluate")
    for i, (a, b) in enumerate(zip(truth, found, strict=True)):
        if a.name and b.name and a.name != b.name:
            raise DataError(
                f"frame {i} is {a.name!r} in the ground truth and {b.name!r} in the detections; "
                "give both in the same order"
            )
        if len(b) and not b.scored:
            raise DataError(f"the detections of frame {b.name or i} have no scores; give them")


def check_classes(classes: Sequence[str], truth: Objects, found: Sequence[KittiFrame]) -> None:
    """Refuses types that are neither KITTI's nor in the ground truth, most likely misspelt.

    Raises:
      DataError: it names the class, or the detection and its frame.
    """
    known = {name.lower() for name in TYPES} | set(np.unique(truth.kind).tolist())
    for name in classes:
        if name.lower() not in known:
            raise DataError(f"class {name!r} is unknown; the types are {sorted(known)}")
    for i, frame in enumerate(found):
        for row, name in enumerate(frame.type):
            if name.lower() not in known:
                raise DataError(
                    f"frame {frame.name or i}, detection {row}: type {name!r} is unknown; "
                    f"the types are {sorted(known)}"
                )
