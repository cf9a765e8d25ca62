"""Weights of the usual PyTorch PointPillars (`epoch_160.pth`) as variables of ours, and back.

    PyTorch                               ours                      axes
    pillar_encoder.conv.weight            encoder/kernel            O I 1 -> I O
    backbone.multi_blocks.1.3.weight      backbone/block1_conv1     O I h w -> h w I O
    neck.decoder_blocks.2.0.weight        neck/up2                  I O h w -> h w I O, not flipped
    head.conv_reg.weight                  outputs/boxes_kernel      O I 1 1 -> I O

Channels need no permutation: in both, the values of an anchor are beside each other.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from jaxcomp.errors import CheckpointError, NonFiniteError, ShapeError
from jaxcomp.interop.detector_names import AS_IS, CONV, Layout, some
from jaxcomp.interop.torch_weights import COUNTERS, read_weights
from jaxcomp.models.pointpillars import Pillars, PointPillars, PointPillarsConfig

_LINEAR = Layout(lambda x: x[..., 0].transpose(1, 0), lambda x: x.transpose(1, 0)[..., None])
_OUTPUT = Layout(
    lambda x: x[..., 0, 0].transpose(1, 0), lambda x: x.transpose(1, 0)[..., None, None]
)
_UP = Layout(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_OUTPUTS = {"cls": "classes", "reg": "boxes", "dir_cls": "directions"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: its PyTorch name and shape, our path ("params/...") and shape, the axes."""

    name: str
    path: str
    layout: Layout
    shape: tuple[int, ...]
    our_shape: tuple[int, ...]


def abstract_variables(cfg: PointPillarsConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every variable, by path; nothing is computed."""
    pillars = Pillars(
        jax.ShapeDtypeStruct((1, 8, 4), np.float32),
        *(jax.ShapeDtypeStruct((1, 8), np.int32) for _ in range(3)),
    )
    make = functools.partial(PointPillars(cfg).init, train=True)
    variables = jax.eval_shape(make, jax.random.key(0), pillars)
    return flax.traverse_util.flatten_dict(variables, sep="/")


@functools.lru_cache(maxsize=8)
def tensor_table(cfg: PointPillarsConfig) -> tuple[Entry, ...]:
    """Every tensor of a network with these sizes, in the order of PyTorch's state dictionary."""
    wanted = abstract_variables(cfg)
    table = []
    for name, path, layout in _rows(cfg):
        ours = wanted.pop(path)
        theirs = jax.eval_shape(layout.to_torch, ours)
        table.append(Entry(name, path, layout, theirs.shape, ours.shape))
    assert not wanted, wanted
    return tuple(table)


def _rows(cfg: PointPillarsConfig) -> Iterator[tuple[str, str, Layout]]:
    yield "pillar_encoder.conv.weight", "params/encoder/kernel", _LINEAR
    yield from _norm("pillar_encoder.bn", "encoder")
    for block, convs in enumerate(cfg.block_convs):
        for i in range(1 + convs):
            theirs = f"backbone.multi_blocks.{block}"
            ours = f"backbone/block{block}_conv{i}"
            yield f"{theirs}.{3 * i}.weight", f"params/{ours}/kernel", CONV
            yield from _norm(f"{theirs}.{3 * i + 1}", f"{ours}/norm")
    for i in range(len(cfg.neck_features)):
        yield f"neck.decoder_blocks.{i}.0.weight", f"params/neck/up{i}/kernel", _UP
        yield from _norm(f"neck.decoder_blocks.{i}.1", f"neck/up{i}/norm")
    for theirs, ours in _OUTPUTS.items():
        yield f"head.conv_{theirs}.weight", f"params/outputs/{ours}_kernel", _OUTPUT
        yield f"head.conv_{theirs}.bias", f"params/outputs/{ours}_bias", AS_IS


def _norm(theirs: str, ours: str) -> Iterator[tuple[str, str, Layout]]:
    for name, (collection, leaf) in _NORM.items():
        yield f"{theirs}.{name}", f"{collection}/{ours}/{leaf}", AS_IS


def load_pointpillars(path: str | os.PathLike[str], cfg: PointPillarsConfig) -> dict[str, Any]:
    """Variables from a file of PyTorch weights, without PyTorch.

    Raises:
      CheckpointError: the file cannot be read, or as `pointpillars_from_torch` does.
    """
    return pointpillars_from_torch(read_weights(path), cfg, source=repr(str(path)))


def pointpillars_from_torch(
    state_dict: Mapping[str, Any],
    cfg: PointPillarsConfig,
    *,
    source: str = "the state dictionary",
) -> dict[str, Any]:
    """Variables of `PointPillars(cfg)` from the state dictionary of the PyTorch network.

    Args:
      state_dict: name to array (numpy, or anything `numpy.asarray` takes); counters
        (`num_batches_tracked`) are ignored, nothing else is.
      cfg: sizes of the network.
      source: what error messages call the weights.

    Returns:
      {"params": ..., "batch_stats": ...} of float32 numpy arrays.

    Raises:
      CheckpointError: a tensor is missing, left over, or has another shape.
      NonFiniteError: a tensor holds NaN or infinity, or does not fit float32.
    """
    table = tensor_table(cfg)
    weights = {k: v for k, v in state_dict.items() if k.split(".")[-1] not in COUNTERS}
    _check(weights, table, source)
    flat = {}
    for entry in table:
        with np.errstate(over="ignore"):
            array = np.asarray(weights[entry.name]).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"{source}: {entry.name!r} is not finite in float32; export it again"
            )
        flat[entry.path] = np.array(entry.layout.to_ours(array), order="C")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _check(weights: Mapping[str, Any], table: tuple[Entry, ...], source: str) -> None:
    names = [entry.name for entry in table]
    missing = [name for name in names if name not in weights]
    left = [name for name in weights if name not in set(names)]
    if missing or left:
        words = [f"{len(missing)} names are missing ({some(missing)})"] if missing else []
        words += [f"{len(left)} are left over ({some(left)})"] if left else []
        raise CheckpointError(
            f"{source} does not hold a PointPillars of this size: {', '.join(words)}; "
            "give its own config"
        )
    wrong = [
        f"{e.name} is {list(np.shape(weights[e.name]))}, needed {list(e.shape)}"
        for e in table
        if np.shape(weights[e.name]) != e.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} has other sizes than the network: {some(wrong, '; ')}; give its own config"
        )


def pointpillars_to_torch(
    variables: Mapping[str, Any], cfg: PointPillarsConfig
) -> dict[str, np.ndarray]:
    """The inverse of `pointpillars_from_torch`: PyTorch's state dictionary, in its order.

    Args:
      variables: {"params": ..., "batch_stats": ...} of `PointPillars(cfg)`.
      cfg: sizes of the network.

    Returns:
      Name to contiguous float32 array; batch counters, which strict loading asks for, are zeros.

    Raises:
      ShapeError: the variables are not those of a network of these sizes.
    """
    table = tensor_table(cfg)
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    unequal = sorted(flat.keys() ^ {entry.path for entry in table})
    if unequal:
        raise ShapeError(f"the variables are not of this network: {some(unequal)} differ")
    out: dict[str, np.ndarray] = {}
    for entry in table:
        array = np.asarray(flat[entry.path]).astype(np.float32, copy=False)
        if array.shape != entry.our_shape:
            raise ShapeError(
                f"{entry.path} has shape {list(array.shape)}, a network of this config needs "
                f"{list(entry.our_shape)}"
            )
        out[entry.name] = np.array(entry.layout.to_torch(array), order="C")
        if entry.name.endswith(".running_var"):
            counter = f"{entry.name.removesuffix('running_var')}{COUNTERS[0]}"
            out[counter] = np.zeros((), np.int64)
    return out
