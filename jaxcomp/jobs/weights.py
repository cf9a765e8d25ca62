"""Detectors of other frameworks' files as our `.npz`, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp import weights_file
from jaxcomp.errors import CheckpointError, ConfigError, DataError
from jaxcomp.interop.detector_weights import (
    CLASS_BIAS,
    Report,
    detector_from_torch,
    detector_to_torch,
)
from jaxcomp.interop.featherface_names import face_table
from jaxcomp.interop.featherface_weights import (
    face_from_torch,
    face_to_torch,
    guess_face_config,
    mobilenet_from_torch,
    mobilenet_to_torch,
)
from jaxcomp.interop.torch_weights import read_weights, write_safetensors, write_torch
from jaxcomp.loaders import load_detector
from jaxcomp.loaders_face import FACE_KIND, face_config_of
from jaxcomp.models.faster_rcnn import DetectorConfig
from jaxcomp.models.featherface import PARAMETERS, VARIANTS, face_config

BODY_KIND = "mobilenet"  # the ImageNet classifier that face detectors start from
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
    _check_out(path, out)
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
    weights_file.export_npz(out, variables, _meta(Path(path), cfg, classes, seed, report))
    return report


def _check_out(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    if Path(out).suffix != ".npz" or Path(out).resolve() == Path(path).resolve():
        raise DataError(f"{str(out)!r} is not a new .npz file; choose another --out")


def import_face(
    path: str | os.PathLike[str], out: str | os.PathLike[str], variant: str | None = None
) -> dict[str, Any]:
    """Weights of a PyTorch FeatherFace or RetinaFace-0.25 as a `face_detector.npz` in float32.

    Args:
      path: what `torch.save` wrote, or `.safetensors`.
      out: the file to write; `load_face_detector` reads it.
      variant: one of `VARIANTS`; None to tell it from the tensors.

    Returns:
      {"variant": its name, or "custom" where a size differs from the published, "parameters",
      "tensors"}.

    Raises:
      CheckpointError: the file cannot be read, or is not of this variant.
      ConfigError: the variant is unknown.
      DataError: `out` is not a new .npz file.
    """
    _check_out(path, out)
    weights, source = read_weights(path), repr(str(path))
    cfg = face_config(variant) if variant else guess_face_config(weights, source=source)
    variables = face_from_torch(weights, cfg, source=source)
    name = next((name for name, known in VARIANTS.items() if known == cfg), "custom")
    parameters = _count(variables["params"])
    assert name == "custom" or parameters == PARAMETERS[name], (name, parameters)
    report = {"variant": name, "parameters": parameters, "tensors": len(face_table(cfg))}
    meta = {
        "kind": FACE_KIND,
        "model": dataclasses.asdict(cfg),
        "data": "imported",
        "metrics": {},
        "source": {**_file_of(Path(path)), **report},
    }
    weights_file.export_npz(out, variables, meta)
    return report


def import_mobilenet(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """The ImageNet MobileNetV1-0.25 that face detectors start from, as an `.npz` in float32.

    Returns:
      {"variant": "mobilenet", "parameters", "tensors"}.

    Raises:
      CheckpointError: the file cannot be read, or holds another network.
      DataError: `out` is not a new .npz file.
    """
    _check_out(path, out)
    weights = read_weights(path)
    variables = mobilenet_from_torch(weights, source=repr(str(path)))
    report = {"variant": BODY_KIND, "parameters": _count(variables["params"])}
    report["tensors"] = len(weights)
    meta = {"kind": BODY_KIND, "data": "imported", "source": {**_file_of(Path(path)), **report}}
    weights_file.export_npz(out, variables, meta)
    return report


def _count(tree: Any) -> int:
    return sum(_count(v) if isinstance(v, dict) else np.size(v) for v in tree.values())


def _file_of(path: Path) -> dict[str, str]:
    with open(path, "rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _meta(
    path: Path, cfg: DetectorConfig, classes: Sequence[str], seed: int, report: Report
) -> dict[str, Any]:
    names = {"name": "faster_rcnn_resnet50_fpn_v2", "in_channels": 3}
    return {
        "kind": "detector",
        "model": {**dataclasses.asdict(cfg), **names},
        "classes": list(classes),
        **PREPARE,
        "data": "imported",
        "seed": seed,
        "metrics": {},
        "source": {**_file_of(path), **dataclasses.asdict(report)},
    }


def export_detector(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """A detector as PyTorch's state dictionary, for `load_state_dict`.

    Args:
      path: `detector.npz` or a run directory; or a `face_detector.npz` or the `.npz` of a
        MobileNet, as `import_face` and `import_mobilenet` write them.
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
    if zipfile.is_zipfile(path):
        tree, meta = weights_file.load_npz(path)
        if meta.get("kind") in (FACE_KIND, BODY_KIND):
            body = meta["kind"] == BODY_KIND
            state = mobilenet_to_torch(tree) if body else _face_state(path, tree, meta)
            writer(out, state)
            return Path(out).stat().st_size
    detector = load_detector(path)
    writer(out, detector_to_torch(detector.variables, detector.model.cfg))
    return Path(out).stat().st_size


def _face_state(path: str | os.PathLike[str], tree: Any, meta: dict[str, Any]) -> dict[str, Any]:
    try:
        return face_to_torch(tree, face_config_of(meta["model"]))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} is not a complete face detector ({error})") from error
