"""Weights of torchvision's `fasterrcnn_resnet50_fpn_v2` as variables of our detector, and back.

The names and axes are in `jaxcomp.interop.detector_names`; the files in `.torch_weights`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcomp.errors import CheckpointError
from jaxcomp.interop import tensor_tables
from jaxcomp.interop.detector_names import PREDICTOR, tensor_table
from jaxcomp.interop.tensor_tables import Table
from jaxcomp.models.faster_rcnn import DetectorConfig

CLASS_BIAS = f"{PREDICTOR}cls_score.bias"
_WORDS = {
    "network": "torchvision's fasterrcnn_resnet50_fpn_v2 of this size",
    "fix": "give its own config",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What an import did.

    Attributes:
      tensors: mapped tensors, the replaced ones included.
      parameters: trained numbers (without the batch statistics).
      file_classes: classes of the state dictionary's predictor, with the background.
      replaced: names of tensors that were drawn anew instead of read.
      ignored: number of counters and the like that have no place here.
      converted: number of tensors per dtype that were not float32.
    """

    tensors: int
    parameters: int
    file_classes: int
    replaced: tuple[str, ...]
    ignored: int
    converted: Mapping[str, int]


def detector_from_torch(
    state_dict: Mapping[str, Any],
    cfg: DetectorConfig,
    *,
    replace_head: bool = False,
    seed: int = 0,
    source: str = "the state dictionary",
) -> tuple[dict[str, Any], Report]:
    """Variables of `FasterRCNN(cfg)` from torchvision's state dictionary.

    Args:
      state_dict: name to array (numpy, or anything `numpy.asarray` takes); counters
        (`num_batches_tracked`) are ignored, nothing else is.
      cfg: sizes of the detector; the defaults are torchvision's with 3 classes.
      replace_head: where the number of classes differs, draw the predictor anew (torchvision's
        initialisation) instead of refusing; where it does not differ, the predictor is kept.
      seed: of that draw.
      source: what error messages call the weights, by convention the file's name in quotes.

    Returns:
      ({"params": ..., "batch_stats": ...} of float32 numpy arrays, report).

    Raises:
      CheckpointError: a tensor is missing, left over, or has another shape or number of classes.
      ConfigError: the detector has no counterpart in torchvision.
      NonFiniteError: a tensor holds NaN or infinity, or does not fit float32.
    """
    table = tensor_table(cfg)
    weights = tensor_tables.without_counters(state_dict)
    classes = _file_classes(weights)
    replaced: tuple[str, ...] = ()
    if replace_head and 0 < classes != cfg.num_classes:
        fresh = _fresh_predictor(table, seed)
        kept = [name for name in weights if name in fresh]
        tensor_tables.check_names(kept, fresh, source=source, **_WORDS)
        weights, replaced = {**weights, **fresh}, tuple(fresh)
    tensor_tables.check_names(weights, [e.name for e in table], source=source, **_WORDS)
    _check_classes(_file_classes(weights), cfg, source)
    variables = tensor_tables.variables_from_torch(weights, table, source=source, **_WORDS)
    dtypes = [str(np.asarray(value).dtype) for value in weights.values()]
    report = Report(
        tensors=len(table),
        parameters=sum(math.prod(e.our_shape) for e in table if e.path.startswith("params/")),
        file_classes=classes,
        replaced=replaced,
        ignored=len(state_dict) - len(table),
        converted={d: dtypes.count(d) for d in sorted(set(dtypes)) if d != "float32"},
    )
    return variables, report


def _file_classes(weights: Mapping[str, Any]) -> int:
    shape = np.shape(weights.get(CLASS_BIAS, ()))
    return shape[0] if len(shape) == 1 else 0


def _fresh_predictor(table: Table, seed: int) -> dict[str, np.ndarray]:
    """The predictor as PyTorch initialises linear layers: U(-b, b) with b = 1 / sqrt(inputs)."""
    rng = np.random.default_rng(seed)
    entries = [entry for entry in table if entry.name.startswith(PREDICTOR)]
    bound = next(e.shape[1] for e in entries if e.name.endswith(".weight")) ** -0.5
    return {e.name: rng.uniform(-bound, bound, e.shape).astype(np.float32) for e in entries}


def _check_classes(classes: int, cfg: DetectorConfig, source: str) -> None:
    if 0 < classes != cfg.num_classes:
        raise CheckpointError(
            f"{source} has {classes} classes with the background, the detector has "
            f"{cfg.num_classes}: give the number it was trained with, or ask for a new predictor "
            "(replace_head=True, --replace-head), which must then be trained"
        )


def detector_to_torch(variables: Mapping[str, Any], cfg: DetectorConfig) -> dict[str, np.ndarray]:
    """The inverse of `detector_from_torch`: torchvision's state dictionary, in its order.

    Args:
      variables: {"params": ..., "batch_stats": ...} of `FasterRCNN(cfg)`, any float dtype.
      cfg: sizes of the detector.

    Returns:
      Name to contiguous float32 array; the batch counters, which torchvision's strict loading asks
      for and inference does not use, are int64 zeros.

    Raises:
      ConfigError: the detector has no counterpart in torchvision.
      ShapeError: the variables are not those of a detector of these sizes.
    """
    return tensor_tables.variables_to_torch(variables, tensor_table(cfg))
