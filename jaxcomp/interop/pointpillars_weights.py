"""Weights of the usual PyTorch PointPillars (`epoch_160.pth`) as variables of ours, and back.

    PyTorch                               ours                      axes
    pillar_encoder.conv.weight            encoder/kernel            O I 1 -> I O
    backbone.multi_blocks.1.3.weight      backbone/block1_conv1     O I h w -> h w I O
    neck.decoder_blocks.2.0.weight        neck/up2                  I O h w -> h w I O, not flipped
    head.conv_reg.weight                  outputs/boxes_kernel      O I 1 1 -> I O

Channels need no permutation: in both, the values of an anchor are beside each other.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcomp.interop import tensor_tables
from jaxcomp.interop.tensor_tables import AS_IS, CONV, Layout, Row, Table, batch_norm
from jaxcomp.interop.torch_weights import read_weights
from jaxcomp.models.pointpillars import Pillars, PointPillars, PointPillarsConfig

_LINEAR = Layout(lambda x: x[..., 0].transpose(1, 0), lambda x: x.transpose(1, 0)[..., None])
_OUTPUT = Layout(
    lambda x: x[..., 0, 0].transpose(1, 0), lambda x: x.transpose(1, 0)[..., None, None]
)
_UP = Layout(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
_OUTPUTS = {"cls": "classes", "reg": "boxes", "dir_cls": "directions"}


def abstract_variables(cfg: PointPillarsConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every variable, by path; nothing is computed."""
    pillars = Pillars(
        jax.ShapeDtypeStruct((1, 8, 4), np.float32),
        *(jax.ShapeDtypeStruct((1, 8), np.int32) for _ in range(3)),
    )
    make = functools.partial(PointPillars(cfg).init, train=True)
    return tensor_tables.flat_shapes(jax.eval_shape(make, jax.random.key(0), pillars))


@functools.lru_cache(maxsize=8)
def tensor_table(cfg: PointPillarsConfig) -> Table:
    """Every tensor of a network with these sizes, in the order of PyTorch's state dictionary."""
    return tensor_tables.make_table(_rows(cfg), abstract_variables(cfg))


def _rows(cfg: PointPillarsConfig) -> Iterator[Row]:
    yield "pillar_encoder.conv.weight", "params/encoder/kernel", _LINEAR
    yield from batch_norm("pillar_encoder.bn", "encoder")
    for block, convs in enumerate(cfg.block_convs):
        for i in range(1 + convs):
            theirs = f"backbone.multi_blocks.{block}"
            ours = f"backbone/block{block}_conv{i}"
            yield f"{theirs}.{3 * i}.weight", f"params/{ours}/kernel", CONV
            yield from batch_norm(f"{theirs}.{3 * i + 1}", f"{ours}/norm")
    for i in range(len(cfg.neck_features)):
        yield f"neck.decoder_blocks.{i}.0.weight", f"params/neck/up{i}/kernel", _UP
        yield from batch_norm(f"neck.decoder_blocks.{i}.1", f"neck/up{i}/norm")
    for theirs, ours in _OUTPUTS.items():
        yield f"head.conv_{theirs}.weight", f"params/outputs/{ours}_kernel", _OUTPUT
        yield f"head.conv_{theirs}.bias", f"params/outputs/{ours}_bias", AS_IS


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
    return tensor_tables.variables_from_torch(
        tensor_tables.without_counters(state_dict),
        tensor_table(cfg),
        source=source,
        network="a PointPillars of this size",
        fix="give its own config",
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
    return tensor_tables.variables_to_torch(variables, tensor_table(cfg))
