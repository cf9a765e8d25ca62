"""Codecs for the levels of a feature pyramid."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Workload

# Keys that say what the loss is.
LOSS = {
    "training.task_weight": (float, 0, math.inf, True),
    "training.feature_weight": (float, 0, math.inf, True),
    "training.prior_lr_factor": (float, 0, math.inf, False),
    "training.task_regions": (int, 1, 1000, True),
    "model.limit": (float, 0, math.inf, True),
}
# Keys of photos without labels.
PHOTOS = {
    "data.crops": (int, 1, math.inf, True),
    "data.crop": (int, 32, math.inf, True),
    "data.around": (int, 0, math.inf, True),
    "data.found_score": (float, 0, 1, True),
    "evaluation.truth_score": (float, 0, 1, True),
}


def near(crop: int) -> int:
    """The multiple of 32 that is nearest."""
    return max(32, round(crop / 32) * 32)


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    if leaves.get("training.task_weight") == leaves.get("training.feature_weight") == 0:
        yield (
            "config.training.task_weight=0 and config.training.feature_weight=0 leave nothing to "
            "learn from; set one of them to 1."
        )
    crop = leaves.get("data.crop", 32)
    if crop % 32:
        yield f"config.data.crop={crop} is not a multiple of 32; the nearest is {near(crop)}."
    if leaves.get("detector.kind") == "face" and not leaves.get("detector.path"):
        yield (
            "config.detector.path is empty; name the face detector whose features are coded: a run "
            "of configs/featherface.py, a face_detector.npz or a .pth file."
        )
    if leaves.get("detector.kind") == "face" and leaves.get("data.resize") != "none":
        yield "config.data.resize has no effect on photos; leave it 'none'."


FEATURE_CODEC = Workload(
    models=(
        "factorized_prior_specific_level",
        "factorized_prior_joint",
        "factorized_prior_random_level",
    ),
    ranges=LOSS | PHOTOS,
    choices={"detector.kind": ("faster_rcnn", "face")},
    contradictions=_contradictions,
    stride=32,  # of the detector down to P5: images of other sizes would be padded
)
