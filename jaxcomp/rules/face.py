"""The light face detectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Range, Workload

_SHARE: Range = (float, 0, 1, True)
_WEIGHT: Range = (float, 0, math.inf, True)
_COUNT: Range = (int, 0, math.inf, True)
_NUMBER: Range = (int, 1, math.inf, True)


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    get = leaves.get
    features, least = get("model.features", 16), 16 if get("model.context") == "grouped" else 4
    if features % least:
        yield (
            f"config.model.features={features} is no multiple of {least}; the branches need that."
        )
    if get("data.smallest", 0) > get("data.largest", math.inf):
        yield (
            f"config.data.smallest={get('data.smallest')} is above "
            f"config.data.largest={get('data.largest')}; exchange them."
        )
    start, end = (get(f"training.smart_stopping.window_{k}", 0) for k in ("start", "end"))
    if start > end:
        yield (
            f"config.training.smart_stopping.window_start={start} is after window_end={end}; "
            "exchange them."
        )
    if get("regularise.block", 3) % 2 == 0:
        yield f"config.regularise.block={get('regularise.block')} is even; give an odd number."
    if get("distil.strategy") == "exponential" and not get("distil.alpha_final", 1):
        yield "config.distil.alpha_final=0 is never reached exponentially; use 'cosine'."


FACE = Workload(
    models=("v1", "v2", "v1_original", "v1_24", "retinaface"),
    stride=32,
    ranges={
        "model.features": (int, 4, math.inf, True),
        **{f"model.{name}": _NUMBER for name in ("cells", "candidates", "max_detections")},
        "model.steps": _NUMBER,
        "model.variances": (float, 0, math.inf, False),
        "model.score_threshold": _SHARE,
        "model.nms_iou": _SHARE,
        **{f"loss.{name}_weight": _WEIGHT for name in ("box", "class", "landmark")},
        "loss.positive_iou": _SHARE,
        "loss.forced_iou": _SHARE,
        "loss.negatives": _WEIGHT,
        "augment.scales": (float, 0, 1, False),
        "augment.tries": _NUMBER,
        "augment.colours": _SHARE,
        "augment.brightness": (float, 0, 255, True),
        "augment.contrast": (float, 0, math.inf, False),
        "augment.hue": (float, 0, 90, True),
        "augment.mirror": _SHARE,
        "data.smallest": (float, 4, math.inf, True),
        "data.largest": (float, 4, math.inf, True),
        "distil.alpha_initial": _SHARE,
        "distil.alpha_final": _SHARE,
        "distil.temperature": (float, 0, math.inf, False),
        "distil.feature_weight": _WEIGHT,
        "regularise.mixup": _WEIGHT,
        "regularise.cutmix": _SHARE,
        "regularise.dropblock": _SHARE,
        "regularise.block": _NUMBER,
        **{
            f"training.smart_stopping.{name}": _COUNT
            for name in ("patience", "min_epoch", "window_start", "window_end")
        },
        "training.smart_stopping.min_delta": _WEIGHT,
        "training.one_cycle.peak_at": (float, 0, 1, False),
        "evaluation.ap_every": _COUNT,
        "evaluation.ap_images": _NUMBER,
        "evaluation.heights": (float, 0, math.inf, True),
    },
    choices={
        "model.pyramid": ("fpn", "bifpn", "bifpn_light"),
        "model.body_gates": ("none", "cbam", "shared"),
        "model.pyramid_gates": ("none", "cbam", "shared"),
        "model.context": ("plain", "deformable", "grouped"),
        "model.mixer": ("none", "shuffle", "unshuffle", "unshuffle_conv", "shuffle_grouped"),
        "distil.strategy": ("linear", "cosine", "exponential", "adaptive"),
        "evaluation.protocol": ("vga640", "original", "resize1600", "multiscale_flip"),
    },
    lengths={
        "model.steps": 3,
        "model.min_sizes": 3,
        "model.variances": 2,
        "augment.contrast": 2,
        "evaluation.heights": 3,
    },
    contradictions=_contradictions,
)
