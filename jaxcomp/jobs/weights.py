"""Detectors of other frameworks' files as our `detector.npz`, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcomp import checkpoint
from jaxcomp.errors import CheckpointError, ConfigError, DataError
from jaxcomp.interop.detector_weights import (
    CLASS_BIAS,
    Report,
    detector_from_torch,
    detector_to_torch,
)
from jaxcomp.interop.torch_weights import read_weights, write_safetensors, write_torch
from jaxcomp.loaders import load_detector
from jaxcomp.models.faster_rcnn import DetectorConfig

WRITERS = {".pth": write_torch, ".pt": write_torch, ".safetensors": write_safetensors}
# What torchvision's own transform does, and the canvas of a KITTI frame after it.
PREPARE = {"height": 416, "width": 1344, "resize": "shortest", "min_side": 800, "max_side": 1333}


def import_detector(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    *,
    replace_head: bool = False,
    seed: int = 0,
) -> Report:
    """Weights of torchvision's `fasterrcnn_resnet50_fpn_v2` as a `detector.npz` in float32.

    Args:
      path: `.pth`, `.pt` or `.safetensors`.
      out: the file to write; `load_detector` reads it.
      classes: names without the background; default: "class_1" and so on, as many as the file has.
      replace_head: draw the predictor anew where the file has another number of classes.
      seed: of that draw.

    Raises:
      CheckpointError: the file cannot be read, or is not of this detector and number of classes.
      ConfigError: a class name is empty or there twice.
    """
    if Path(out).suffix != ".npz" or Path(out).resolve() == Path(path).resolve():
        raise DataError(f"{str(out)!r} is not a new .npz file; choose another --out")
    weights = read_weights(path)
    if classes is None:
        if CLASS_BIAS not in weights:
            raise CheckpointError(
                f"{str(path)!r} has no {CLASS_BIAS!r}: it is not torchvision's Faster R-CNN"
            )
        classes = [f"class_{i}" for i in range(1, weights[CLASS_BIAS].size)]
    if not classes or not all(classes) or len(set(classes)) != len(classes):
        raise ConfigError(f"classes {list(classes)} must be different names, at least one")
    cfg = DetectorConfig(num_classes=len(classes) + 1)
    variables, report = detector_from_torch(
        weights, cfg, replace_head=replace_head, seed=seed, source=repr(str(path))
    )
    checkpoint.export_npz(out, variables, _meta(Path(path), cfg, classes, seed, report))
    return report


def _meta(
    path: Path, cfg: DetectorConfig, classes: Sequence[str], seed: int, report: Report
) -> dict[str, Any]:
    names = {"name": "faster_rcnn_resnet50_fpn_v2", "in_channels": 3}
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "kind": "detector",
        "model": {**dataclasses.asdict(cfg), **names},
        "classes": list(classes),
        **PREPARE,
        "data": "imported",
        "seed": seed,
        "metrics": {},
        "source": {"file": path.name, "sha256": digest, **dataclasses.asdict(report)},
    }


def export_detector(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """A `detector.npz` as torchvision's state dictionary, for `load_state_dict`.

    Args:
      path: `detector.npz` or a run directory.
      out: `.pth`, `.pt` or `.safetensors`.

    Returns:
      Bytes written.

    Raises:
      CheckpointError: the detector cannot be read.
      ConfigError: it has no counterpart in torchvision, as the shipped one.
      DataError: another ending.
    """
    writer = WRITERS.get(Path(out).suffix)
    if writer is None:
        raise DataError(f"{str(out)!r} must end in one of {', '.join(WRITERS)}")
    detector = load_detector(path)
    writer(out, detector_to_torch(detector.variables, detector.model.cfg))
    return Path(out).stat().st_size
