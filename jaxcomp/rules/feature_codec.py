"""Codecs for the levels of a feature pyramid."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Workload

# Keys of the training section that say what the loss is.
LOSS = {
    "training.task_weight": (float, 0, math.inf, True),
    "training.feature_weight": (float, 0, math.inf, True),
    "training.prior_lr_factor": (float, 0, math.inf, False),
    "training.task_regions": (int, 1, 1000, True),
}


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    if leaves.get("training.task_weight") == leaves.get("training.feature_weight") == 0:
        yield (
            "config.training.task_weight=0 and config.training.feature_weight=0 leave nothing to "
            "learn from; set one of them to 1."
        )


FEATURE_CODEC = Workload(
    models=(
        "factorized_prior_specific_level",
        "factorized_prior_joint",
        "factorized_prior_random_level",
    ),
    ranges=LOSS,
    contradictions=_contradictions,
    stride=32,  # of the detector down to P5: images of other sizes would be padded
)
