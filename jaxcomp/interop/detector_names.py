"""Names of torchvision's `fasterrcnn_resnet50_fpn_v2` beside ours: one row per tensor.

    torchvision                               ours                         axes
    backbone.body.layer1.0.conv1.weight       body/stage1_block1/conv1     O I h w -> h w I O
    backbone.body.layer1.0.bn1.running_var    .../conv1/norm/var           as it is
    roi_heads.box_head.5.weight               box_head/hidden              O (C h w) -> (h w C) O

Box and anchor channels need no permutation: both put the 4 deltas of an anchor (or a class)
beside each other.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxcomp.errors import ConfigError
from jaxcomp.interop import tensor_tables
from jaxcomp.interop.tensor_tables import CONV, LINEAR, Layout, Row, Table, batch_norm
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN

PREDICTOR = "roi_heads.box_predictor."


def flattened(size: int) -> Layout:
    """Of a linear layer behind a flattened [size, size] map: inputs (C, h, w) here (h, w, C)."""

    def to_ours(x: Any) -> Any:
        return x.reshape(x.shape[0], -1, size, size).transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    def to_torch(x: Any) -> Any:
        return x.reshape(size, size, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)

    return Layout(to_ours, to_torch)


def abstract_variables(cfg: DetectorConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every variable of the detector, by path; nothing is computed."""
    variables = jax.eval_shape(
        functools.partial(FasterRCNN(cfg).init, train=True),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8),
        jax.ShapeDtypeStruct((1, 2), np.float32),
    )
    return tensor_tables.flat_shapes(variables)


@functools.lru_cache(maxsize=8)  # tracing the network for its shapes takes most of a second
def tensor_table(cfg: DetectorConfig) -> Table:
    """The rows of a detector with these sizes, in the order of torchvision's state dictionary.

    Raises:
      ConfigError: the detector has no counterpart in torchvision (basic blocks).
    """
    if not cfg.bottleneck:
        raise ConfigError(
            "a body of basic blocks (bottleneck=False, as in the shipped small detector) has no "
            "torchvision fasterrcnn_resnet50_fpn_v2 counterpart; only bottleneck bodies map"
        )
    shapes = abstract_variables(cfg)
    return tensor_tables.make_table(_rows(cfg, frozenset(shapes)), shapes)


def _rows(cfg: DetectorConfig, paths: frozenset[str]) -> Iterator[Row]:
    """(name, path, layout) of every tensor."""
    yield from itertools.chain(_body(cfg, paths), _pyramid(cfg), _proposals(cfg), _box_head(cfg))


def _conv_norm(conv: str, norm: str, ours: str) -> Iterator[Row]:
    yield f"{conv}.weight", f"params/{ours}/conv/kernel", CONV
    yield from batch_norm(norm, f"{ours}/norm")


def _biased(theirs: str, ours: str, layout: Layout) -> Iterator[Row]:
    return tensor_tables.with_bias(theirs, f"params/{ours}", layout)


def _body(cfg: DetectorConfig, paths: frozenset[str]) -> Iterator[Row]:
    yield from _conv_norm("backbone.body.conv1", "backbone.body.bn1", "body/stem")
    for stage, blocks in enumerate(cfg.stage_blocks, 1):
        for block in range(blocks):
            theirs = f"backbone.body.layer{stage}.{block}"
            ours = f"body/stage{stage}_block{block + 1}"
            for i in (1, 2, 3):
                yield from _conv_norm(f"{theirs}.conv{i}", f"{theirs}.bn{i}", f"{ours}/conv{i}")
            if f"params/{ours}/downsample/conv/kernel" in paths:
                shortcut = f"{theirs}.downsample"
                yield from _conv_norm(f"{shortcut}.0", f"{shortcut}.1", f"{ours}/downsample")


def _pyramid(cfg: DetectorConfig) -> Iterator[Row]:
    for theirs, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
        for i in range(len(cfg.stage_blocks)):
            block = f"backbone.fpn.{theirs}.{i}"
            yield from _conv_norm(f"{block}.0", f"{block}.1", f"fpn/{ours}{i + 2}")


def _proposals(cfg: DetectorConfig) -> Iterator[Row]:
    for i in range(cfg.rpn_convs):
        yield from _biased(f"rpn.head.conv.{i}.0", f"rpn/Conv_{i}", CONV)
    yield from _biased("rpn.head.cls_logits", "rpn/objectness", CONV)
    yield from _biased("rpn.head.bbox_pred", "rpn/regression", CONV)


def _box_head(cfg: DetectorConfig) -> Iterator[Row]:
    head = "roi_heads.box_head"
    for i in range(cfg.box_convs):
        yield from _conv_norm(f"{head}.{i}.0", f"{head}.{i}.1", f"box_head/conv{i}")
    # Index `box_convs` of torchvision's sequence is the flattening itself.
    hidden = flattened(cfg.pool_size)
    yield from _biased(f"{head}.{cfg.box_convs + 1}", "box_head/hidden", hidden)
    yield from _biased(f"{PREDICTOR}cls_score", "box_head/classes", LINEAR)
    yield from _biased(f"{PREDICTOR}bbox_pred", "box_head/boxes", LINEAR)
