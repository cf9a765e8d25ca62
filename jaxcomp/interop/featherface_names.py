"""Names of the PyTorch face detectors beside ours: one row per tensor.

    PyTorch                                     ours                            axes
    body.stage1.1.3.weight                      body/stage1_block1/pointwise    O I h w -> h w I O
    bifpn.0.conv4_up.pointwise_conv.conv.bias   neck/cell0/p4_top/pointwise     as it is
    bacbkbone_0_cbam.ChannelGate.mlp.1.weight   body_gates/channel0/squeeze     O I -> I O

The misspelling is theirs. Anchors need no permutation: both put the numbers of an anchor beside
each other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np

from jaxcomp.interop import tensor_tables
from jaxcomp.interop.tensor_tables import AS_IS, CONV, LINEAR, Row, Table, batch_norm
from jaxcomp.models.featherface import FaceConfig, FaceDetector
from jaxcomp.models.mobilenet import STAGES, MobileNetClassifier

_OUTPUTS = {"ClassHead": "classes", "BboxHead": "boxes", "LandmarkHead": "landmarks"}
_LIGHT_OUTPUTS = {"cls_head": "classes", "bbox_head": "boxes", "ldm_head": "landmarks"}
_JOINS = {
    "conv4_up": "p4_top", "conv3_up": "p3_out", "conv4_down": "p4_out", "conv5_down": "p5_out",
}  # fmt: skip
_WEIGHTS = {"p4_w1": "p4_top", "p3_w1": "p3_out", "p4_w2": "p4_out", "p5_w2": "p5_out"}
_BRANCHES = {
    "conv3X3": "branch3", "conv5X5_1": "branch5_stem", "conv5X5_2": "branch5",
    "conv7X7_2": "branch7_stem", "conv7x7_3": "branch7",
}  # fmt: skip
_GROUPED = {
    "conv3x3.0": "branch3_point", "conv3x3.3": "branch3", "conv5x5_1.0": "branch5_point",
    "conv5x5_1.3": "branch5_stem", "conv5x5_2.0": "branch5", "conv7x7_2.0": "branch7_stem",
    "conv7x7_3.0": "branch7",
}  # fmt: skip
_LEVELS = range(3)


def abstract_variables(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every variable of a detector or classifier, by path; nothing computed."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), image)
    return tensor_tables.flat_shapes(variables)


@functools.lru_cache(maxsize=8)  # tracing takes most of a second
def face_table(cfg: FaceConfig) -> Table:
    """The rows of a detector, in the order of PyTorch's state dictionary."""
    return tensor_tables.make_table(_face_rows(cfg), abstract_variables(FaceDetector(cfg)))


@functools.lru_cache(maxsize=2)
def mobilenet_table(classes: int = 1000) -> Table:
    """The rows of the ImageNet classifier."""
    rows = [*_body("", "body"), *_linear("fc", "fc")]
    return tensor_tables.make_table(rows, abstract_variables(MobileNetClassifier(classes)))


def _face_rows(cfg: FaceConfig) -> Iterator[Row]:
    yield from _body("body.", "body")
    if cfg.body_gates == "cbam":
        yield from _cbam("bacbkbone_{}_cbam", "body_gates")
    elif cfg.body_gates == "shared":
        yield from _shared_gates("backbone_cbam_manager", ("stage1", "stage2", "stage3"), "body")
    yield from _fpn() if cfg.pyramid == "fpn" else _bifpn(cfg)
    if cfg.pyramid_gates == "cbam":
        yield from _cbam("bif_cbam_{}", "neck_gates")
    elif cfg.pyramid_gates == "shared":
        yield from _shared_gates("bifpn_cbam_manager", ("p3", "p4", "p5"), "neck")
    for i in _LEVELS:
        yield from _context(cfg, f"ssh{i + 1}", f"context_{i}")
    for i in _LEVELS:
        yield from _mixer(cfg, f"ssh{i + 1}_cs", f"mixer_{i}")
    yield from _outputs(light=cfg.context == "grouped")


def _conv_norm(conv: str, norm: str, ours: str, *, bias: bool = False) -> Iterator[Row]:
    yield f"{conv}.weight", f"params/{ours}/kernel", CONV
    if bias:
        yield f"{conv}.bias", f"params/{ours}/bias", AS_IS
    yield from batch_norm(norm, f"{ours}/norm")


def _conv(theirs: str, ours: str) -> Iterator[Row]:
    yield f"{theirs}.weight", f"params/{ours}/kernel", CONV
    yield f"{theirs}.bias", f"params/{ours}/bias", AS_IS


def _linear(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Row]:
    yield f"{theirs}.weight", f"params/{ours}/kernel", LINEAR
    if bias:
        yield f"{theirs}.bias", f"params/{ours}/bias", AS_IS


def _body(prefix: str, ours: str) -> Iterator[Row]:
    yield from _conv_norm(f"{prefix}stage1.0.0", f"{prefix}stage1.0.1", f"{ours}/stem")
    for stage, blocks in enumerate(STAGES, 1):
        for block in range(1, len(blocks) + 1):
            # The stem is the first module of the first stage.
            theirs = f"{prefix}stage{stage}.{block if stage == 1 else block - 1}"
            path = f"{ours}/stage{stage}_block{block}"
            yield from _conv_norm(f"{theirs}.0", f"{theirs}.1", f"{path}/depthwise")
            yield from _conv_norm(f"{theirs}.3", f"{theirs}.4", f"{path}/pointwise")


def _cbam(name: str, ours: str) -> Iterator[Row]:
    for i in _LEVELS:
        theirs = name.format(i)
        yield from _linear(f"{theirs}.ChannelGate.mlp.1", f"{ours}/channel{i}/squeeze")
        yield from _linear(f"{theirs}.ChannelGate.mlp.3", f"{ours}/channel{i}/expand")
        gate = f"{theirs}.SpatialGate.spatial"
        yield from _conv_norm(f"{gate}.conv", f"{gate}.bn", f"{ours}/spatial{i}/conv")


def _shared_gates(theirs: str, levels: tuple[str, ...], part: str) -> Iterator[Row]:
    ours = f"{part}_gates"
    for i, level in enumerate(levels):
        mlp = f"{theirs}.channel_gates.{level}.mlp"
        yield from _linear(f"{mlp}.0", f"{ours}/channel{i}/squeeze", bias=False)
        yield from _linear(f"{mlp}.2", f"{ours}/channel{i}/expand", bias=False)
    gate = f"{theirs}.spatial_gate.spatial"
    yield from _conv_norm(f"{gate}.0", f"{gate}.1", f"{ours}/spatial/conv")


def _fpn() -> Iterator[Row]:
    for i in _LEVELS:
        yield from _conv_norm(f"fpn.output{i + 1}.0", f"fpn.output{i + 1}.1", f"neck/lateral{i}")
    for i in (0, 1):
        yield from _conv_norm(f"fpn.merge{i + 1}.0", f"fpn.merge{i + 1}.1", f"neck/merge{i}")


def _bifpn(cfg: FaceConfig) -> Iterator[Row]:
    light = cfg.pyramid == "bifpn_light"
    for i in range(cfg.cells):
        cell, ours = f"bifpn.{i}", f"neck/cell{i}"
        for name, join in _WEIGHTS.items():
            yield f"{cell}.{name}", f"params/{ours}/{join}_weights", AS_IS
        for name, join in _JOINS.items():
            yield from _separable(f"{cell}.{name}", f"{ours}/{join}", light)
        if i == 0:
            yield from _adapters(cell, ours, light)


def _separable(theirs: str, ours: str, light: bool) -> Iterator[Row]:
    if light:
        yield from _conv_norm(f"{theirs}.depthwise", f"{theirs}.bn1", f"{ours}/depthwise")
        yield from _conv_norm(f"{theirs}.pointwise", f"{theirs}.bn2", f"{ours}/pointwise")
        return
    yield f"{theirs}.depthwise_conv.conv.weight", f"params/{ours}/depthwise", CONV
    point = f"{theirs}.pointwise_conv.conv"
    yield from _conv_norm(point, f"{theirs}.bn", f"{ours}/pointwise", bias=True)


def _adapters(cell: str, ours: str, light: bool) -> Iterator[Row]:
    for i in (2, 1, 0):
        name, conv = f"{cell}.p{i + 3}_down_channel", "0" if light else "0.conv"
        path = f"{ours}/adapt{i}"
        yield from _conv_norm(f"{name}.{conv}", f"{name}.1", path, bias=not light)
    for i in () if light else (1, 2):
        name = f"{cell}.p{i + 3}_down_channel_2"
        yield from _conv_norm(f"{name}.0.conv", f"{name}.1", f"{ours}/adapt{i}_up", bias=True)


def _context(cfg: FaceConfig, theirs: str, ours: str) -> Iterator[Row]:
    if cfg.context == "grouped":
        for name, branch in _GROUPED.items():
            module, place = name.rsplit(".", 1)
            norm = f"{theirs}.{module}.{int(place) + 1}"
            yield from _conv_norm(f"{theirs}.{name}", norm, f"{ours}/{branch}")
        return
    for name, branch in _BRANCHES.items():
        conv, norm, path = f"{theirs}.{name}.0", f"{theirs}.{name}.1", f"{ours}/{branch}"
        if cfg.context == "deformable":
            yield from _conv(f"{conv}.offset_conv", f"{path}/offset")
            yield from _conv(f"{conv}.modulator_conv", f"{path}/modulator")
            conv = f"{conv}.regular_conv"
        yield from _conv_norm(conv, norm, path)


def _mixer(cfg: FaceConfig, theirs: str, ours: str) -> Iterator[Row]:
    if cfg.mixer == "unshuffle_conv":
        for i in range(3):
            names = (f"{theirs}.{2 * i + 1}", f"{theirs}.{2 * i + 2}")
            yield from _conv_norm(*names, f"{ours}/conv{i}")
    elif cfg.mixer == "shuffle_grouped":
        for i in range(2):
            names = (f"{theirs}.conv.{3 * i}", f"{theirs}.conv.{3 * i + 1}")
            yield from _conv_norm(*names, f"{ours}/conv{i}")


def _outputs(*, light: bool) -> Iterator[Row]:
    if light:
        for i in _LEVELS:
            for name, output in _LIGHT_OUTPUTS.items():
                yield from _conv(f"shared_heads.{i}.{name}", f"outputs_{i}/{output}")
        return
    for name, output in _OUTPUTS.items():
        for i in _LEVELS:
            yield from _conv(f"{name}.{i}.conv1x1", f"outputs_{i}/{output}")
