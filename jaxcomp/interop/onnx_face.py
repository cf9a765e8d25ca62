"""Light face detectors as ONNX: one file for every batch, height and width.

    input [B, 3, H, W] ──► body ──► gates ──► pyramid ──► gates ──► context ──► mixer ──► outputs

The graph is written from the parts that `FaceConfig` names, with the normalisation folded into the
convolutions. Nothing in it depends on a size: borders and sizes are computed from the shapes, so it
takes what the JAX network takes, not only multiples of 32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcomp.interop.onnx_graph import Graph, Value
from jaxcomp.models.featherface import FACE_LEVELS, FaceConfig
from jaxcomp.models.featherface_context import GROUPS
from jaxcomp.models.featherface_layers import EPSILON, SLOPE, head_slope
from jaxcomp.models.featherface_pyramid import BIFPN_EPSILON, FUSION_EPSILON
from jaxcomp.models.mobilenet import STAGES

Tree = Mapping[str, Any]
NAMES = {"boxes": "bbox_regressions", "classes": "classifications", "landmarks": "landmarks"}
WIDTHS = {"boxes": 4, "classes": 2, "landmarks": 10}
INPUT = "input"


@dataclasses.dataclass(frozen=True)
class _Part:
    """A module's parameters and statistics."""

    params: Tree
    stats: Tree

    def __getitem__(self, name: str) -> _Part:
        stats = self.stats.get(name, {}) if isinstance(self.stats, Mapping) else {}
        return _Part(self.params[name], stats)

    def array(self, name: str) -> np.ndarray:
        return np.asarray(self.params[name], np.float64)


class FaceGraph:
    """Writes the network into a graph."""

    def __init__(self, variables: Tree, cfg: FaceConfig):
        """Describes the network.

        Args:
          variables: {"params", "batch_stats"}.
          cfg: sizes.
        """
        self.cfg, self.g = cfg, Graph()
        self.root = _Part(variables["params"], variables["batch_stats"])

    def folded(self, part: _Part, epsilon: float = EPSILON) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias of a convolution with its normalisation in them."""
        norm = part["norm"]
        mean, variance = (np.asarray(norm.stats[k], np.float64) for k in ("mean", "var"))
        gain = norm.array("scale") / np.sqrt(variance + epsilon)
        bias = part.array("bias") if "bias" in part.params else 0.0
        return part.array("kernel") * gain, norm.array("bias") + (bias - mean) * gain

    def norm_conv(
        self, x: Value, part: _Part, *, stride: int = 1, groups: int = 1, epsilon: float = EPSILON
    ) -> Value:
        """`ConvNorm`; `groups` -1 for depthwise, deformable where the part has offsets."""
        kernel, bias = self.folded(part, epsilon)
        if "offset" in part.params:
            return self.deformable(x, part, kernel, bias)
        count = kernel.shape[3] if groups < 0 else groups
        return self.g.conv(x, kernel, bias, stride=stride, groups=count)

    def plain_conv(self, x: Value, part: _Part) -> Value:
        """`Conv`."""
        return self.g.conv(x, part.array("kernel"), part.array("bias"))

    def deformable(self, x: Value, part: _Part, kernel: np.ndarray, bias: np.ndarray) -> Value:
        """Modulated deformable convolution; ONNX has the same order of offsets and taps."""
        offsets = self.plain_conv(x, part["offset"])
        mask = self.g.op("Sigmoid", self.plain_conv(x, part["modulator"]))
        weights = self.g.constant(np.transpose(kernel, (3, 2, 0, 1)))
        return self.g.op(
            "DeformConv", x, weights, offsets, self.g.constant(bias), self.g.scale(mask, 2.0),
            kernel_shape=[3, 3], pads=[1] * 4,
        )  # fmt: skip

    def body(self, x: Value) -> list[Value]:
        """MobileNetV1."""
        part, maps = self.root["body"], []
        x = self.g.leaky(self.norm_conv(x, part["stem"], stride=2), SLOPE)
        for i, blocks in enumerate(STAGES, 1):
            for j, (_, stride) in enumerate(blocks, 1):
                block = part[f"stage{i}_block{j}"]
                deep = self.norm_conv(x, block["depthwise"], stride=stride, groups=-1)
                x = self.norm_conv(self.g.leaky(deep, SLOPE), block["pointwise"])
                x = self.g.leaky(x, SLOPE)
            maps.append(x)
        return maps

    def gates(self, kind: str, part: _Part, maps: list[Value]) -> list[Value]:
        """`Gates`: ReLU(gated + x)."""
        if kind == "none":
            return maps
        shared, out = kind == "shared", []
        for i, x in enumerate(maps):
            gated = self.channel_gate(x, part[f"channel{i}"])
            place = part["spatial" if shared else f"spatial{i}"]["conv"]
            gated = self.spatial_gate(gated, place, mean_first=shared)
            out.append(self.g.op("Relu", self.g.add(gated, x)))
        return out

    def channel_gate(self, x: Value, part: _Part) -> Value:
        """The MLP as 1x1 convolutions on pooled maps."""
        g = self.g

        def dense(y: Value, layer: _Part) -> Value:
            bias = layer.array("bias") if "bias" in layer.params else None
            return g.conv(y, layer.array("kernel")[None, None], bias)

        sums = []
        for pool in ("GlobalAveragePool", "GlobalMaxPool"):
            hidden = g.op("Relu", dense(g.op(pool, x), part["squeeze"]))
            sums.append(dense(hidden, part["expand"]))
        return g.op("Mul", x, g.op("Sigmoid", g.add(*sums)))

    def spatial_gate(self, x: Value, part: _Part, *, mean_first: bool) -> Value:
        """7x7 convolution of maximum and mean over the channels."""
        g, axis = self.g, self.g.integers(1)
        maps = [g.op(f"Reduce{kind}", x, axis, keepdims=1) for kind in ("Max", "Mean")]
        both = g.op("Concat", *(maps[::-1] if mean_first else maps), axis=1)
        return g.op("Mul", x, g.op("Sigmoid", self.norm_conv(both, part)))

    def neck(self, maps: list[Value]) -> list[Value]:
        """The pyramid."""
        part = self.root["neck"]
        if self.cfg.pyramid == "fpn":
            return self.fpn(part, maps)
        for i in range(self.cfg.cells):
            maps = self.cell(part[f"cell{i}"], maps, first=i == 0)
        return maps

    def fpn(self, part: _Part, maps: list[Value]) -> list[Value]:
        """`FacePyramid`."""
        g, slope = self.g, head_slope(self.cfg.features)

        def conv(name: str, x: Value) -> Value:
            return g.leaky(self.norm_conv(x, part[name]), slope)

        p3, p4, p5 = (conv(f"lateral{i}", x) for i, x in enumerate(maps))
        p4 = conv("merge1", g.add(p4, g.resize_like(p5, p4)))
        return [conv("merge0", g.add(p3, g.resize_like(p4, p3))), p4, p5]

    def cell(self, part: _Part, maps: list[Value], *, first: bool) -> list[Value]:
        """`BiFPNCell`."""
        light, g = self.cfg.pyramid == "bifpn_light", self.g

        def adapt(name: str, x: Value) -> Value:
            return self.norm_conv(x, part[name], epsilon=BIFPN_EPSILON) if first else x

        def join(name: str, values: list[Value]) -> Value:
            factors = np.maximum(part.array(f"{name}_weights"), 0)
            factors = factors / (factors.sum() + FUSION_EPSILON)
            pairs = zip(values, factors.tolist(), strict=False)  # one may have no map
            x = g.add(*(g.scale(v, f) for v, f in pairs))
            return self.separable(g.op("Mul", x, g.op("Sigmoid", x)), part[name])

        p3, p4, p5 = (adapt(f"adapt{i}", x) for i, x in enumerate(maps))
        up4, up5 = p4, p5
        if first and not light:
            up4, up5 = (adapt(f"adapt{i}_up", maps[i]) for i in (1, 2))
        coarse = join("p4_top", [p4, g.resize_like(p5, p4)])
        p3 = join("p3_out", [p3, g.resize_like(coarse, p3)])
        p4 = join("p4_out", [up4, coarse, self.pool(p3)])
        last = [up5, self.pool(p4)] + ([self.pool(coarse)] if light else [])
        return [p3, p4, join("p5_out", last)]

    def separable(self, x: Value, part: _Part) -> Value:
        """`SeparableNorm`."""
        if self.cfg.pyramid == "bifpn_light":
            x = self.g.op("Relu", self.norm_conv(x, part["depthwise"], groups=-1))
            return self.norm_conv(x, part["pointwise"])
        kernel = part.array("depthwise")
        x = self.g.conv(x, kernel, None, groups=kernel.shape[3])
        return self.norm_conv(x, part["pointwise"], epsilon=BIFPN_EPSILON)

    def pool(self, x: Value) -> Value:
        """3x3 maximum with step 2; zeros take part except in the light form."""
        g = self.g
        if self.cfg.pyramid == "bifpn_light":
            return g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        odd = g.op("Mod", g.size(x, 2, 4), g.integers(2))
        pads = g.op("Concat", g.integers(0, 0), odd, g.integers(0, 0, 1, 1), axis=0)
        padded = g.op("Pad", x, pads, g.constant(0.0))
        return g.op("MaxPool", padded, kernel_shape=[3, 3], strides=[2, 2])

    def context(self, x: Value, part: _Part) -> Value:
        """`Context` or `GroupedContext`."""
        g, slope = self.g, head_slope(self.cfg.features)
        if self.cfg.context == "grouped":

            def point(name: str) -> Value:
                return g.op("Relu", self.norm_conv(x, part[name]))

            def conv(name: str, y: Value) -> Value:
                return self.norm_conv(y, part[name], groups=GROUPS)

            branch3 = conv("branch3", point("branch3_point"))
            stem = conv("branch5_stem", point("branch5_point"))
            middle = g.op("Relu", conv("branch7_stem", stem))
        else:

            def conv(name: str, y: Value) -> Value:
                return self.norm_conv(y, part[name])

            branch3 = conv("branch3", x)
            stem = g.leaky(conv("branch5_stem", x), slope)
            middle = g.leaky(conv("branch7_stem", stem), slope)
        parts = (branch3, conv("branch5", stem), conv("branch7", middle))
        return g.op("Relu", g.op("Concat", *parts, axis=1))

    def mixer(self, x: Value, level: int) -> Value:
        """`Mixer`."""
        g, kind = self.g, self.cfg.mixer
        if kind == "none":
            return x
        groups = GROUPS if kind == "shuffle_grouped" else 2
        x = self.shuffle(x, groups, inverse=kind.startswith("unshuffle"))
        if kind == "unshuffle_conv":
            part = self.root[f"mixer_{level}"]
            for i, count in enumerate((1, -1, 1)):
                x = self.norm_conv(x, part[f"conv{i}"], groups=count)
            return g.op("Relu", x)
        if kind == "shuffle_grouped":
            part = self.root[f"mixer_{level}"]
            for i in range(2):
                x = g.op("Relu", self.norm_conv(x, part[f"conv{i}"], groups=GROUPS))
        return x

    def shuffle(self, x: Value, groups: int, *, inverse: bool) -> Value:
        """`shuffle_channels`: as a gather, which needs no shape."""
        order = np.arange(self.cfg.features).reshape(groups, -1).T.reshape(-1)
        index = np.argsort(order) if inverse else order
        return self.g.op("Gather", x, self.g.constant(index, np.int64), axis=1)

    def outputs(self, maps: list[Value]) -> dict[str, Value]:
        """[B, A, width] of all levels, anchors in (level, row, column, size) order."""
        g, out = self.g, {}
        for name, width in WIDTHS.items():
            levels = []
            for i, x in enumerate(maps):
                y = self.plain_conv(x, self.root[f"outputs_{i}"][name])
                y = g.op("Transpose", y, perm=[0, 2, 3, 1])
                levels.append(g.op("Reshape", y, g.integers(0, -1, width)))
            out[name] = g.op("Concat", *levels, axis=1)
        return out

    def write(self) -> tuple[dict[str, Value], list[Value]]:
        """(outputs, with probabilities for classes; maps of the levels)."""
        maps = self.gates(self.cfg.body_gates, _part(self.root, "body_gates"), self.body(INPUT))
        maps = self.neck(maps)
        maps = self.gates(self.cfg.pyramid_gates, _part(self.root, "neck_gates"), maps)
        maps = [self.context(x, self.root[f"context_{i}"]) for i, x in enumerate(maps)]
        out = self.outputs([self.mixer(x, i) for i, x in enumerate(maps)])
        return out | {"classes": self.g.op("Softmax", out["classes"], axis=-1)}, maps


def _part(root: _Part, name: str) -> _Part:
    return root[name] if name in root.params else _Part({}, {})


def face_onnx(variables: Tree, cfg: FaceConfig, *, name: str = "face", decode: bool = False) -> Any:
    """The network as an `onnx.ModelProto`.

    Args:
      variables: {"params", "batch_stats"} of `FaceDetector(cfg)`.
      cfg: sizes.
      name: of the graph.
      decode: decode and suppress in the graph.

    Returns:
      A model with input "input", float32 [batch, 3, height, width], BGR minus (104, 117, 123).
      Outputs: "bbox_regressions" [batch, anchors, 4], "classifications" (probabilities)
      [batch, anchors, 2] and "landmarks" [batch, anchors, 10]; or with `decode` "boxes" [N, 4] and
      "landmarks" [N, 10] in pixels, "scores" [N] and "batch_index" int64 [N], image by image, best
      first.

    Raises:
      ConfigError: the package `onnx` is not installed.
    """
    writer = FaceGraph(variables, cfg)
    found, maps = writer.write()
    inputs = {INPUT: (np.float32, ("batch", 3, "height", "width"))}
    if decode:
        from jaxcomp.interop.onnx_decode import decoded

        outputs = decoded(writer.g, cfg, found, maps, INPUT)
    else:
        outputs = {
            NAMES[k]: (found[k], np.float32, ("batch", "anchors", width))
            for k, width in WIDTHS.items()
        }
    notes = {"layout": "BGR minus (104, 117, 123), NCHW, float32", "levels": ",".join(FACE_LEVELS)}
    return writer.g.model(inputs, outputs, name=name, notes=notes)
