"""Weights of torchvision's `fasterrcnn_resnet50_fpn_v2` as variables of our detector, and back.

The names and axes are in `jaxcomp.interop.detector_names`; the files in `.torch_weights`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from jaxcomp.errors import CheckpointError, NonFiniteError, ShapeError
from jaxcomp.interop.detector_names import PREDICTOR, Entry, some, tensor_table
from jaxcomp.interop.torch_weights import COUNTERS
from jaxcomp.models.faster_rcnn import DetectorConfig
from jaxcomp.types import Array

COUNTER = COUNTERS[0]
CLASS_BIAS = f"{PREDICTOR}cls_score.bias"


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
    weights = {k: v for k, v in state_dict.items() if k.split(".")[-1] not in COUNTERS}
    classes = _file_classes(weights)
    replaced: tuple[str, ...] = ()
    if replace_head and 0 < classes != cfg.num_classes:
        fresh = _fresh_predictor(table, seed)
        _check_names(weights.keys() & fresh.keys(), fresh.keys(), source)
        weights, replaced = {**weights, **fresh}, tuple(fresh)
    _check(weights, table, cfg, source)
    flat = {entry.path: _read(weights[entry.name], entry, source) for entry in table}
    dtypes = [str(np.asarray(value).dtype) for value in weights.values()]
    report = Report(
        tensors=len(table),
        parameters=sum(v.size for k, v in flat.items() if k.startswith("params/")),
        file_classes=classes,
        replaced=replaced,
        ignored=len(state_dict) - len(table),
        converted={d: dtypes.count(d) for d in sorted(set(dtypes)) if d != "float32"},
    )
    return flax.traverse_util.unflatten_dict(flat, sep="/"), report


def _file_classes(weights: Mapping[str, Any]) -> int:
    shape = np.shape(weights.get(CLASS_BIAS, ()))
    return shape[0] if len(shape) == 1 else 0


def _read(value: Any, entry: Entry, source: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.asarray(value).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{source}: {entry.name!r} is not finite in float32; export it again")
    return np.array(entry.layout.to_ours(array), order="C")


def _fresh_predictor(table: Sequence[Entry], seed: int) -> dict[str, np.ndarray]:
    """The predictor as PyTorch initialises linear layers: U(-b, b) with b = 1 / sqrt(inputs)."""
    rng = np.random.default_rng(seed)
    entries = [entry for entry in table if entry.name.startswith(PREDICTOR)]
    bound = next(e.shape[1] for e in entries if e.name.endswith(".weight")) ** -0.5
    return {e.name: rng.uniform(-bound, bound, e.shape).astype(np.float32) for e in entries}


def _check(
    weights: Mapping[str, Any],
    table: Sequence[Entry],
    cfg: DetectorConfig,
    source: str,
) -> None:
    _check_names(weights.keys(), [entry.name for entry in table], source)
    classes = _file_classes(weights)
    if 0 < classes != cfg.num_classes:
        raise CheckpointError(
            f"{source} has {classes} classes with the background, the detector has "
            f"{cfg.num_classes}: give the number it was trained with, or ask for a new predictor "
            "(replace_head=True, --replace-head), which must then be trained"
        )
    wrong = [
        f"{e.name} is {list(np.shape(weights[e.name]))}, needed {list(e.shape)}"
        for e in table
        if np.shape(weights[e.name]) != e.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} has other sizes than the detector: {some(wrong, '; ')}; give its config"
        )


def _check_names(found: Any, wanted: Any, source: str) -> None:
    missing = [name for name in wanted if name not in found]
    left = [name for name in found if name not in set(wanted)]
    if missing or left:
        words = [f"{len(missing)} names are missing ({some(missing)})"] if missing else []
        words += [f"{len(left)} are left over ({some(left)})"] if left else []
        raise CheckpointError(
            f"{source} does not hold torchvision's fasterrcnn_resnet50_fpn_v2 of this size: "
            f"{', '.join(words)}"
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
    table = tensor_table(cfg)
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    unequal = sorted(flat.keys() ^ {entry.path for entry in table})
    if unequal:
        raise ShapeError(f"the variables are not of this detector: {some(unequal)} differ")
    out: dict[str, np.ndarray] = {}
    for entry in table:
        out[entry.name] = _write(flat[entry.path], entry)
        if entry.name.endswith(".running_var"):
            out[f"{entry.name.removesuffix('running_var')}{COUNTER}"] = np.zeros((), np.int64)
    return out


def _write(value: Array, entry: Entry) -> np.ndarray:
    array = np.asarray(value).astype(np.float32, copy=False)
    if array.shape != entry.our_shape:
        raise ShapeError(
            f"{entry.path} has shape {list(array.shape)}, a detector of this config needs "
            f"{list(entry.our_shape)}"
        )
    return np.array(entry.layout.to_torch(array), order="C")
