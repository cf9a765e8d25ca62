"""Residual vector quantisation of the lidar detector's features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Workload


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    key = "config.progressive_learning"
    enabled = leaves["progressive_learning.enabled"]
    sizes = tuple(leaves["progressive_learning.embedding_schedule"])
    epochs, stage = leaves["training.epochs"], leaves["progressive_learning.embedding_stage_epochs"]
    if any(a >= b for a, b in itertools.pairwise(sizes)):
        yield f"{key}.embedding_schedule={sizes!r} must rise: each stage adds rows."
    if not sizes:
        yield f"{key}.embedding_schedule is empty; give sizes like (16, 32, 64)."
    if leaves["progressive_learning.warmup_epochs"] > (stage if enabled else epochs):
        yield (
            f"{key}.warmup_epochs={leaves['progressive_learning.warmup_epochs']} is more than the "
            f"{stage if enabled else epochs} epochs of a stage."
        )
    total = leaves["model.n_codebook"] * len(sizes) * stage
    if enabled and epochs != total:
        yield (
            f"config.training.epochs={epochs}, but {leaves['model.n_codebook']} codebooks x "
            f"{len(sizes)} sizes x {stage} epochs make {total}; set it to that."
        )
    if leaves["training.accumulation"] > 1:
        yield (
            f"config.training.accumulation={leaves['training.accumulation']}: new rows are drawn "
            "from one batch at the first step of a stage; use 1 and a larger batch_size."
        )
    if enabled and leaves["training.on_nonfinite"] == "skip":
        yield (
            "config.training.on_nonfinite='skip' would shift the stages against the epochs; use "
            "'stop'."
        )
    if leaves["training.lr_schedule.name"] != "constant":
        yield (
            f"config.training.lr_schedule.name={leaves['training.lr_schedule.name']!r}: stages "
            "bring their own cosine; use 'constant'."
        )


RESIDUAL_VQ = Workload(
    models=("pointpillars_rq",),
    ranges={
        "model.n_codebook": (int, 1, 14, True),
        "progressive_learning.embedding_schedule": (int, 1, 4096, True),
        "progressive_learning.embedding_stage_epochs": (int, 1, math.inf, True),
        "progressive_learning.warmup_epochs": (int, 0, math.inf, True),
        "rq_model.codebook_size": (int, 1, 4096, True),
        "rq_model.decay": (float, 0, 1, True),
        "rq_model.revive": (float, 0, 1, True),
        "rq_model.candidates": (int, 1, math.inf, True),
        "loss_weights.vq_weight": (float, 0, math.inf, True),
        "loss_weights.codebook_weight": (float, 0, math.inf, True),
        "loss_weights.det_weight": (float, 0, math.inf, True),
        "evaluation.use_num_codebook": (int, 0, 14, True),
        "evaluation.use_num_embedding": (int, 0, 4096, True),
        "evaluation.stage_frames": (int, 0, math.inf, True),
        "evaluation.table_frames": (int, 1, math.inf, True),
        "logging.ckpt_freq_epoch": (int, 1, math.inf, True),
        "data.beams": (int, 2, 1024, True),
        "data.azimuths": (int, 2, 8192, True),
        "data.pad_points": (int, 1024, 4_000_000, True),
    },
    choices={"progressive_learning.previous": ("matched", "full")},
    contradictions=_contradictions,
)
