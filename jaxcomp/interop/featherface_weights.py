"""Weights of the PyTorch face detectors and of their ImageNet body as our variables, and back.

The names and axes are in `jaxcomp.interop.featherface_names`; the files in `.torch_weights`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcomp.errors import CheckpointError, ShapeError
from jaxcomp.interop import tensor_tables
from jaxcomp.interop.featherface_names import face_table, mobilenet_table
from jaxcomp.interop.tensor_tables import Table
from jaxcomp.interop.torch_weights import read_weights
from jaxcomp.models.featherface import FaceConfig, face_config

_BIAS = "fc.bias"


def load_face_weights(
    path: str | os.PathLike[str], cfg: FaceConfig | None = None
) -> tuple[dict[str, Any], FaceConfig]:
    """Variables of a face detector from a file of PyTorch weights, without PyTorch.

    Args:
      path: `.pth`, `.pt`, `.tar` of `torch.save`, or `.safetensors`.
      cfg: sizes; None to tell them from the tensors, see `guess_face_config`.

    Returns:
      ({"params": ..., "batch_stats": ...} of float32 numpy arrays, sizes).

    Raises:
      CheckpointError: the file cannot be read, or as `face_from_torch` does.
    """
    weights, source = read_weights(path), repr(str(path))
    cfg = guess_face_config(weights, source=source) if cfg is None else cfg
    return face_from_torch(weights, cfg, source=source), cfg


def guess_face_config(
    state_dict: Mapping[str, Any], *, source: str = "the state dictionary"
) -> FaceConfig:
    """The sizes of a detector told from its tensors.

    A permutation of channels leaves no trace: what has no convolutions behind its context heads is
    taken for "v1_24" (which shuffles) with gates on the body, else for "v1" (which unshuffles).

    Raises:
      CheckpointError: these are not the tensors of a face detector.
    """
    names = set(state_dict)
    if "shared_heads.0.bbox_head.weight" in names:
        kind, output = "v2", "shared_heads.0.bbox_head.weight"
    else:
        output = "BboxHead.0.conv1x1.weight"
        kind = "v1"
        if any(name.startswith("fpn.") for name in names):
            kind = "retinaface"
        elif any(name.startswith("bif_cbam_") for name in names):
            kind = "v1_original"
        elif any(name.startswith("bacbkbone_") for name in names):
            kind = "v1_24"
    shape = np.shape(state_dict.get(output, ()))
    if len(shape) != 4:
        raise CheckpointError(
            f"{source} holds no face detector: {output!r} is not a kernel; give the file of a "
            "FeatherFace or RetinaFace-0.25"
        )
    cells = {m.group(1) for name in names if (m := re.match(r"bifpn\.(\d+)\.", name))}
    known = face_config(kind)
    return dataclasses.replace(known, features=shape[1], cells=len(cells) or known.cells)


def face_from_torch(
    state_dict: Mapping[str, Any], cfg: FaceConfig, *, source: str = "the state dictionary"
) -> dict[str, Any]:
    """Variables of `FaceDetector(cfg)` from the state dictionary of the PyTorch network.

    Args:
      state_dict: name to array (numpy, or anything `numpy.asarray` takes); counters
        (`num_batches_tracked` and those of profilers) are ignored, nothing else is.
      cfg: sizes of the network.
      source: what error messages call the weights.

    Returns:
      {"params": ..., "batch_stats": ...} of float32 numpy arrays.

    Raises:
      CheckpointError: a tensor is missing, left over, or has another shape.
      NonFiniteError: a tensor holds NaN or infinity, or does not fit float32.
    """
    return _from_torch(state_dict, face_table(cfg), source)


def face_to_torch(variables: Mapping[str, Any], cfg: FaceConfig) -> dict[str, np.ndarray]:
    """The inverse of `face_from_torch`: PyTorch's state dictionary, in its order.

    Returns:
      Name to contiguous float32 array; batch counters, which strict loading asks for, are zeros.

    Raises:
      ShapeError: the variables are not those of a network of these sizes.
    """
    return tensor_tables.variables_to_torch(variables, face_table(cfg))


def mobilenet_from_torch(
    state_dict: Mapping[str, Any], *, source: str = "the state dictionary"
) -> dict[str, Any]:
    """Variables of `MobileNetClassifier` from the weights that the detectors start from.

    Its "body" fits the "body" of every `FaceDetector`, see `with_body`.

    Raises:
      CheckpointError, NonFiniteError: as `face_from_torch`.
    """
    classes = np.size(state_dict.get(_BIAS, np.zeros(1000)))
    return _from_torch(state_dict, mobilenet_table(classes), source)


def mobilenet_to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `mobilenet_from_torch`.

    Raises:
      ShapeError: as `face_to_torch`.
    """
    try:
        classes = np.size(variables["params"]["fc"]["bias"])
    except (KeyError, TypeError) as error:
        raise ShapeError("the variables are not of the classifier: params/fc/bias lacks") from error
    return tensor_tables.variables_to_torch(variables, mobilenet_table(classes))


def with_body(variables: Mapping[str, Any], classifier: Mapping[str, Any]) -> dict[str, Any]:
    """A detector's variables with the body of a classifier, for training."""
    return {kind: {**variables[kind], "body": classifier[kind]["body"]} for kind in variables}


def _from_torch(state_dict: Mapping[str, Any], table: Table, source: str) -> dict[str, Any]:
    return tensor_tables.variables_from_torch(
        tensor_tables.without_counters(state_dict),
        table,
        source=source,
        network="this network",
        fix="give the file's own model and variant",
    )
