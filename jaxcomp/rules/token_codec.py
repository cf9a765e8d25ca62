"""Codecs for the tokens of an H-JEPA."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.hjepa import SETS
from jaxcomp.rules.workload import Range, Workload

_WEIGHT: Range = (float, 0, math.inf, True)
_DISTORTIONS = ("feature_weight", "whitened_weight", "pooled_weight")


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    if not leaves.get("hjepa.path"):
        yield (
            "config.hjepa.path is empty; name the network whose tokens are coded: a run of "
            "configs/hjepa.py or its hjepa.npz."
        )
    if leaves["data.name"] not in SETS:
        yield f"config.data.name={leaves['data.name']!r}; this task reads {', '.join(SETS)}."
    if not any(leaves.get(f"training.{name}", 1) for name in _DISTORTIONS):
        names = ", ".join(f"config.training.{name}" for name in _DISTORTIONS)
        yield f"{names} are all 0: there is nothing to learn from; raise one."


TOKEN_CODEC = Workload(
    models=("factorized_prior_tokens",),
    ranges={
        **{f"training.{name}": _WEIGHT for name in _DISTORTIONS},
        "training.prior_lr_factor": (float, 0, math.inf, False),
        "evaluation.probe_rows": (int, 10, math.inf, True),
        "evaluation.attentive_rows": (int, 0, math.inf, True),
    },
    contradictions=_contradictions,
)
