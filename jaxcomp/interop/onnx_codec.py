"""A feature codec as two ONNX graphs, so that a device needs a small coder of integers only.

    encoder   features [B, C, H, W] ──► symbols int32 [B, M, h, w]
    decoder   symbols, size [2]     ──► features [B, C, H, W]

What is between them is integers and the codec's integer tables (docs/bitstream.md): they decode to
the same bytes anywhere. The encoder rounds floating-point numbers, so a symbol that lies between
two integers may come out as the other one than in JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.gdn import BETA_MIN, PEDESTAL
from jaxcomp.interop.onnx_graph import Graph, Value

_LIMIT = 2.0**30  # as `codecs.quantise.symbols`


def encoder_onnx(codec: FactorisedCodec, variables: Mapping[str, Any]) -> Any:
    """The graph from "features" float32 [batch, C, height, width] to "symbols" int32.

    Raises:
      ConfigError: the package `onnx` is not installed.
    """
    g = Graph()
    mean, scale = _statistics(variables)
    x = g.op("Sub", "features", g.constant(mean))
    x = g.scale(x, 1 / scale)
    if codec.limit:
        x = g.op("Clip", x, g.constant(-codec.limit), g.constant(codec.limit))
    multiple = codec.pad_multiple or 2**codec.stages
    missing = g.op("Mod", g.op("Neg", g.size(x, 2, 4)), g.integers(multiple))
    pads = g.op("Concat", g.integers(0, 0, 0, 0, 0, 0), missing, axis=0)
    x = g.op("Pad", x, pads, g.constant(0.0))
    x = _transform(g, x, variables["params"]["analysis"], codec.stages, up=False)
    x = g.op("Sub", x, g.constant(_median(codec, variables)))
    x = g.op("Clip", g.op("Round", x), g.constant(-_LIMIT), g.constant(_LIMIT))
    out = g.op("Cast", x, to=6)  # int32
    shape = ("batch", codec.in_channels, "height", "width")
    symbols = ("batch", codec.n_channels, "rows", "columns")
    return g.model(
        {"features": (np.float32, shape)}, {"symbols": (out, np.int32, symbols)},
        name="encoder", notes={"layout": "NCHW"},
    )  # fmt: skip


def decoder_onnx(codec: FactorisedCodec, variables: Mapping[str, Any]) -> Any:
    """The graph from "symbols" and "size" int64 [2] (height, width) to "features" float32.

    Raises:
      ConfigError: the package `onnx` is not installed.
    """
    g = Graph()
    mean, scale = _statistics(variables)
    x = g.add(g.op("Cast", "symbols", to=1), g.constant(_median(codec, variables)))
    x = _transform(g, x, variables["params"]["synthesis"], codec.stages, up=True)
    x = g.op("Slice", x, g.integers(0, 0), "size", g.integers(2, 3))
    x = g.add(g.scale(x, scale), g.constant(mean))
    symbols = ("batch", codec.n_channels, "rows", "columns")
    shape = ("batch", codec.in_channels, "height", "width")
    return g.model(
        {"symbols": (np.int32, symbols), "size": (np.int64, (2,))},
        {"features": (x, np.float32, shape)},
        name="decoder", notes={"layout": "NCHW"},
    )  # fmt: skip


def _statistics(variables: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    stats = variables["stats"]
    return np.asarray(stats["mean"]).reshape(1, -1, 1, 1), float(stats["scale"])


def _median(codec: FactorisedCodec, variables: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(codec.apply(variables, method="median")).reshape(1, -1, 1, 1)


def _transform(g: Graph, x: Value, part: Mapping[str, Any], stages: int, *, up: bool) -> Value:
    """`codecs.transforms.Transform`."""
    for i in range(stages):
        layer = part[f"conv_{i}"]
        kernel, bias = np.asarray(layer["kernel"]), g.constant(layer["bias"])
        shape: dict[str, Any] = {"kernel_shape": [5, 5], "strides": [2, 2], "pads": [2] * 4}
        if up:
            weights = g.constant(np.transpose(kernel, (2, 3, 0, 1)))
            x = g.op("ConvTranspose", x, weights, bias, output_padding=[1, 1], **shape)
        else:
            weights = g.constant(np.transpose(kernel, (3, 2, 0, 1)))
            x = g.op("Conv", x, weights, bias, **shape)
        if i < stages - 1:
            x = _gdn(g, x, part[f"gdn_{i}"], inverse=up)
    return x


def _gdn(g: Graph, x: Value, part: Mapping[str, Any], *, inverse: bool) -> Value:
    """`codecs.gdn.gdn`: the sum over channels is a 1x1 convolution."""
    beta, gamma = (
        np.maximum(np.asarray(part[name], np.float64), (least + PEDESTAL) ** 0.5) ** 2 - PEDESTAL
        for name, least in (("beta", BETA_MIN), ("gamma", 0.0))
    )
    pooled = g.conv(g.op("Mul", x, x), gamma.T[None, None], beta)
    return g.op("Mul" if inverse else "Div", x, g.op("Sqrt", pooled))
