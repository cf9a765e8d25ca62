"""A small writer of ONNX graphs: nodes by their names, weights as initialisers, NCHW maps.

ONNX (https://onnx.ai/onnx/operators) is what runtimes without JAX read. The package `onnx` (extra
"export") holds the format; it is imported when a graph is begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.errors import ConfigError

OPSET, IR_VERSION = 19, 9  # the first with DeformConv
Value = str  # the name of an edge


def require(name: str) -> Any:
    """An optional module.

    Raises:
      ConfigError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name.partition('.')[0]} is not installed; pip install 'jaxcomp[export]'"
        ) from error


class Graph:
    """Collects nodes; every method returns the name of the edge it makes."""

    def __init__(self) -> None:
        """An empty graph."""
        self._onnx = require("onnx")
        self._nodes: list[Any] = []
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._initialisers: list[Any] = []
        self._count = 0

    def _name(self, kind: str) -> Value:
        self._count += 1
        return f"{kind.lower()}_{self._count}"

    def op(self, kind: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """A node; returns its output, or a tuple of several."""
        names = [self._name(kind) for _ in range(outputs)]
        node = self._onnx.helper.make_node(kind, list(inputs), names, name=names[0], **attributes)
        self._nodes.append(node)
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, value: Any, dtype: Any = np.float32) -> Value:
        """An initialiser; equal ones are stored once."""
        array = np.asarray(value, dtype, order="C")  # a number stays one
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._name("const")
            self._initialisers.append(self._onnx.numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def integers(self, *values: int) -> Value:
        """A vector of int64."""
        return self.constant(values, np.int64)

    def conv(
        self,
        x: Value,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> Value:
        """A convolution with (K - 1) // 2 zeros on every side.

        Args:
          x: [B, C, H, W].
          kernel: [K, K, C / groups, M], as JAX has it.
          bias: [M] or None.
          stride: step.
          groups: of the channels.
        """
        pad = (kernel.shape[0] - 1) // 2
        inputs = [x, self.constant(np.transpose(kernel, (3, 2, 0, 1)))]
        if bias is not None:
            inputs.append(self.constant(bias))
        return self.op(
            "Conv", *inputs, kernel_shape=list(kernel.shape[:2]), pads=[pad] * 4,
            strides=[stride] * 2, group=groups,
        )  # fmt: skip

    def add(self, *values: Value) -> Value:
        """Sum of some maps."""
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", total, value)
        return total

    def scale(self, x: Value, factor: float) -> Value:
        """A map times a number."""
        return self.op("Mul", x, self.constant(factor))

    def size(self, x: Value, first: int, last: int) -> Value:
        """Some sides of a map, as int64 [last - first]."""
        return self.op("Shape", x, start=first, end=last)

    def leaky(self, x: Value, slope: float) -> Value:
        """Leaky ReLU; a slope of zero is the plain one."""
        return self.op("LeakyRelu", x, alpha=slope) if slope else self.op("Relu", x)

    def resize_like(self, x: Value, like: Value) -> Value:
        """Nearest neighbour, to rows and columns of another map; as `fpn.resize_nearest`."""
        sizes = self.op("Concat", self.size(x, 0, 2), self.size(like, 2, 4), axis=0)
        return self.op(
            "Resize", x, "", "", sizes, mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip

    def model(
        self,
        inputs: Mapping[str, tuple[Any, Sequence[Any]]],
        outputs: Mapping[str, tuple[Value, Any, Sequence[Any]]],
        *,
        name: str,
        notes: Mapping[str, str],
    ) -> Any:
        """The whole, checked.

        Args:
          inputs: name to (numpy dtype, shape with names for what is dynamic).
          outputs: name to (edge, numpy dtype, shape).
          name: of the graph.
          notes: metadata that travel with the file.

        Returns:
          `onnx.ModelProto`.
        """
        onnx = self._onnx
        helper, kinds = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
        for out, (edge, _, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [edge], [out], name=out))
        graph = helper.make_graph(
            self._nodes,
            name,
            [
                helper.make_tensor_value_info(k, kinds(np.dtype(d)), list(shape))
                for k, (d, shape) in inputs.items()
            ],
            [
                helper.make_tensor_value_info(k, kinds(np.dtype(d)), list(shape))
                for k, (_, d, shape) in outputs.items()
            ],
            self._initialisers,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="jaxcomp",
        )  # fmt: skip
        helper.set_model_props(model, dict(notes))
        onnx.checker.check_model(model)
        return model
