"""Learning hierarchical features without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Workload

SETS = ("textures", "digits", "pictures", "tfds")


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    patch = leaves["model.patch"]
    for key in ("data.height", "data.width"):
        if leaves[key] % patch:
            near = max(patch, round(leaves[key] / patch) * patch)
            yield (
                f"config.{key}={leaves[key]} is not a multiple of config.model.patch={patch}; the "
                f"nearest is {near}."
            )
    if leaves["data.name"] not in SETS:
        yield f"config.data.name={leaves['data.name']!r}; this task reads {', '.join(SETS)}."
    width, heads = leaves["model.width"], leaves["model.heads"]
    if width % heads:
        yield f"config.model.heads={heads} does not divide config.model.width={width}."
    dims, levels = leaves["model.fpn_level_dims"], leaves["model.num_hierarchies"]
    if dims and len(dims) != levels:
        yield f"config.model.fpn_level_dims={dims!r} needs one width for each of {levels} levels."
    if leaves["training.lr_schedule.name"] == "one_cycle":
        yield "config.training.lr_schedule.name='one_cycle' does not go with the decay schedule."


WORKLOAD_SIZES = ("toy", "tiny", "small", "base", "large", "huge")
JEPA = Workload(
    models=tuple(f"hjepa_{size}" for size in WORKLOAD_SIZES),
    ranges={
        **{
            f"model.{name}": (int, 1, math.inf, True)
            for name in ("patch", "width", "depth", "heads", "predictor_depth", "fpn_level_dims")
        },
        "model.num_hierarchies": (int, 2, 4, True),
        "model.predictor_heads": (int, 0, math.inf, True),
        "model.fpn_feature_dim": (int, 0, math.inf, True),
        "model.mlp_ratio": (float, 0, math.inf, False),
        "model.predictor_mlp_ratio": (float, 0, math.inf, False),
        "model.layer_scale": (float, 0, math.inf, True),
        "model.drop_path": (float, 0, 0.99, True),
        "masking.targets": (int, 1, math.inf, True),
        "masking.target_scale": (float, 0, 1, False),
        "masking.target_aspect": (float, 0, math.inf, False),
        "masking.context_scale": (float, 0, 1, False),
        "masking.max_masked": (float, 0, 1, False),
        "masking.max_context": (float, 0, 1, False),
        "loss.weights": (float, 0, math.inf, True),
        "loss.delta": (float, 0, math.inf, False),
        "ema.start": (float, 0, 1, True),
        "ema.end": (float, 0, 1, True),
        "ema.warmup_steps": (int, 0, math.inf, True),
        "augment.crop": (float, 0, 1, False),
        "augment.flip": (float, 0, 1, True),
        "augment.jitter": (float, 0, 1, True),
        "training.weight_decay_end": (float, 0, math.inf, True),
        "training.betas": (float, 0, 1, True),
        "alerts.target_std": (float, 0, math.inf, True),
        "alerts.target_rankme": (float, 0, math.inf, True),
        "evaluation.probe_rows": (int, 10, math.inf, True),
        "evaluation.attentive_rows": (int, 0, math.inf, True),
    },
    lengths={
        **{f"masking.{n}": 2 for n in ("target_scale", "target_aspect", "context_scale")},
        "training.betas": 2,
    },
    choices={
        "model.positions": ("learned", "sincos"),
        "model.fpn_fusion_method": ("add", "concat", "attention"),
        "model.fpn_upsampling": ("linear", "learned"),
        "model.pooling": ("1d", "2d"),
        "model.init": ("small", "glorot"),
        "model.target_norm": ("none", "token", "centred", "whitened"),
        "masking.kind": ("multiblock", "hierarchical", "random"),
        "loss.type": ("mse", "smoothl1", "huber"),
        "ema.shape": ("linear", "cosine"),
    },
    contradictions=_contradictions,
)
