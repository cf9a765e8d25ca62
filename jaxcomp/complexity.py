"""Parameters and multiply-accumulates of a network by module, without running it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Table = dict[str, int]


def parameters_by_module(params: Mapping[str, Any], depth: int = 2) -> Table:
    """Number of parameters below each path of at most `depth` names, and in total."""
    counts: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [str(getattr(key, "key", key)) for key in path]
        counts["/".join(names[: min(depth, len(names) - 1)]) or "."] += int(np.prod(leaf.shape))
    return dict(counts)


def macs_by_module(function: Callable[..., Any], *args: Any, depth: int = 2) -> Table:
    """Multiply-accumulates of convolutions and matrix products, by flax module.

    Args:
      function: what to count; it is traced, not run.
      *args: arrays or `jax.ShapeDtypeStruct`.
      depth: names of a module path to tell apart.

    Returns:
      Module path to MACs. Elementwise work, which is a few per cent, is not counted. A transposed
      convolution counts the taps that meet data, not the zeros between them.
    """
    counts: Counter[str] = Counter()
    _walk(jax.make_jaxpr(function)(*args).jaxpr, "", 1, depth, counts)
    return dict(counts)


def _walk(jaxpr: Any, scope: str, times: int, depth: int, counts: Counter[str]) -> None:
    for eqn in jaxpr.eqns:
        stack = str(eqn.source_info.name_stack)
        path = "/".join(p for p in (scope, stack) if p)
        inner = times * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else times
        for value in eqn.params.values():
            for sub in value if isinstance(value, tuple | list) else (value,):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    _walk(sub, path, inner, depth, counts)
        macs = _macs(eqn)
        if macs:
            counts[_module(path, depth)] += times * macs


def _module(path: str, depth: int) -> str:
    """The flax module of a name stack such as `jit(f)/FasterRCNN.features/body/stem/conv`."""
    names = [p for p in path.replace("vmap(", "").replace(")", "").split("/") if p]
    names = [p for p in names if "." not in p and "(" not in p and not p[:1].isupper()]
    return "/".join(names[:depth]) or "."


def _macs(eqn: Any) -> int:
    if eqn.primitive.name == "conv_general_dilated":
        kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
        spec = eqn.params["dimension_numbers"].rhs_spec
        per_output = math.prod(kernel) // kernel[spec[0]]
        zeros = math.prod(eqn.params["lhs_dilation"])
        return math.prod(out) * per_output // zeros
    if eqn.primitive.name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        lhs = eqn.invars[0].aval.shape
        return math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contract)
    return 0


def text_table(description: Mapping[str, Any]) -> str:
    """Parameters and MACs of `describe` functions as aligned columns."""
    parameters, macs = description["parameters"], description["macs"]
    names = [*dict.fromkeys([*parameters, *macs])]
    width = max([len(n) for n in names] + [6])
    lines = [f"{'module':<{width}} {'parameters':>14} {'MACs':>18}"]
    for name in names:
        lines.append(f"{name:<{width}} {parameters.get(name, 0):>14,} {macs.get(name, 0):>18,}")
    total = (description["total_parameters"], description["total_macs"])
    lines.append(f"{'total':<{width}} {total[0]:>14,} {total[1]:>18,}")
    return "\n".join([description["title"], *lines])


def description(
    title: str, parameters: dict[str, int], macs: dict[str, int], **more: Any
) -> dict[str, Any]:
    """What `inspect` prints: counts by module, their sums, and whatever else there is to say."""
    return {
        "title": title,
        "parameters": parameters,
        "macs": macs,
        "total_parameters": sum(parameters.values()),
        "total_macs": sum(macs.values()),
        **more,
    }
