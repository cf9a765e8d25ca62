"""The lidar detector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Range, Workload

_COUNTS = (
    *("max_points", "max_pillars", "max_pillars_eval", "encoder_features"),
    *("block_features", "block_strides", "neck_features", "candidates", "max_detections"),
)
_PER_CLASS = ("positive_iou", "negative_iou", "anchor_bottoms", "anchor_sizes")
_BLOCKS = ("block_features", "block_convs", "block_strides", "neck_features")

LIDAR_RANGES: Mapping[str, Range] = {
    "data.beams": (int, 2, 1024, True),
    "data.azimuths": (int, 2, 8192, True),
    "data.pad_points": (int, 1024, 4_000_000, True),
    "augment.fill": (int, 0, 100, True),
    "augment.fill_points": (int, 0, math.inf, True),
    "augment.shift": (float, 0, math.inf, True),
    "augment.object_turn": (float, 0, math.pi, True),
    "augment.tries": (int, 1, 10_000, True),
    "augment.flip": (float, 0, 1, True),
    "augment.turn": (float, 0, math.pi, True),
    "augment.scale": (float, 0, math.inf, False),
}


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    classes = leaves.get("classes", ())
    for key in (*(f"model.{n}" for n in _PER_CLASS), "augment.fill", "augment.fill_points"):
        if key in leaves and len(leaves[key]) != len(classes):
            yield (
                f"config.{key}={leaves[key]!r} has {len(leaves[key])} values for the "
                f"{len(classes)} classes {tuple(classes)!r}; give one for each."
            )
    lengths = {n: len(leaves[f"model.{n}"]) for n in _BLOCKS if f"model.{n}" in leaves}
    if len(set(lengths.values())) > 1:
        yield f"config.model: {lengths} values; give each block one value of each."
    for low, high in zip(
        leaves.get("model.negative_iou", ()), leaves.get("model.positive_iou", ()), strict=False
    ):
        if low > high:
            yield (
                f"config.model.negative_iou={low:g} is above positive_iou={high:g}; an anchor "
                "would be both."
            )


POINTPILLARS = Workload(
    models=("pointpillars_small", "pointpillars"),
    ranges={
        **{f"model.{name}": (int, 1, math.inf, True) for name in _COUNTS},
        "model.block_convs": (int, 0, math.inf, True),
        "model.low": (float, -1e4, 1e4, True),
        "model.high": (float, -1e4, 1e4, True),
        "model.cell": (float, 0, 1e4, False),
        "model.positive_iou": (float, 0, 1, True),
        "model.negative_iou": (float, 0, 1, True),
        "model.score_threshold": (float, 0, 1, True),
        "model.nms_iou": (float, 0, 1, True),
        "model.norm_momentum": (float, 0, 1, True),
        "loss.class_weight": (float, 0, math.inf, True),
        "loss.box_weight": (float, 0, math.inf, True),
        "loss.direction_weight": (float, 0, math.inf, True),
        "loss.alpha": (float, 0, 1, True),
        "loss.gamma": (float, 0, math.inf, True),
        "loss.beta": (float, 0, math.inf, False),
        "training.one_cycle.peak_at": (float, 0, 1, False),
        "training.one_cycle.start_div": (float, 1, math.inf, True),
        "training.one_cycle.end_div": (float, 1, math.inf, True),
        "training.one_cycle.high": (float, 0, 1, True),
        "training.one_cycle.low": (float, 0, 1, True),
        "training.one_cycle.b2": (float, 0, 1, True),
        **LIDAR_RANGES,
    },
    lengths={
        **{f"model.{name}": 3 for name in ("low", "high", "cell")},
        "augment.shift": 3,
        "augment.scale": 2,
    },
    contradictions=_contradictions,
)
