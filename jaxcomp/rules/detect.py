"""The camera detector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Workload

_COUNTS = (
    *("stem_features", "stage_blocks", "stage_features", "fpn_features"),
    *("rpn_pre_nms", "rpn_post_nms", "rpn_pre_nms_train", "rpn_post_nms_train"),
    *("pool_size", "box_conv_features", "box_fc", "max_detections", "detection_pre_nms"),
)


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    count, classes = leaves.get("model.num_classes"), leaves.get("classes")
    if count is not None and classes is not None and count != len(classes) + 1:
        yield (
            f"config.model.num_classes={count}, but config.classes={tuple(classes)!r} and the "
            f"background make {len(classes) + 1}; set it to that."
        )


DETECT = Workload(
    models=("faster_rcnn_small_fpn_v2", "faster_rcnn_resnet50_fpn_v2"),
    stride=32,  # of the network down to P5: images of other sizes would be padded
    ranges={
        **{f"model.{name}": (int, 1, math.inf, True) for name in _COUNTS},
        "model.num_classes": (int, 2, math.inf, True),
        "model.rpn_convs": (int, 0, math.inf, True),
        "model.box_convs": (int, 0, math.inf, True),
        "model.anchor_sizes": (float, 1, math.inf, True),
        "model.anchor_ratios": (float, 0, math.inf, False),
        "model.canonical_size": (float, 1, math.inf, True),
        "model.rpn_iou": (float, 0, 1, True),
        "model.detection_iou": (float, 0, 1, True),
        "model.score_threshold": (float, 0, 1, True),
        "model.frozen_stages": (int, 0, 5, True),
        "model.freeze_norm": (bool, 0, 1, True),
        "sampling.anchors": (int, 1, math.inf, True),
        "sampling.regions": (int, 1, math.inf, True),
        "sampling.anchor_positive_iou": (float, 0, 1, True),
        "sampling.anchor_negative_iou": (float, 0, 1, True),
        "sampling.region_iou": (float, 0, 1, True),
        "sampling.region_positive_share": (float, 0, 1, True),
    },
    lengths={
        "model.stage_blocks": 4,
        "model.stage_features": 4,
        "model.anchor_sizes": 5,  # one for each level
    },
    contradictions=_contradictions,
)
