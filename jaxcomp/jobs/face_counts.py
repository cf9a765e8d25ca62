"""Parameters, multiply-accumulates and activations of a face detector, without running it."""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxcomp import complexity
from jaxcomp.errors import ConfigError
from jaxcomp.models.featherface import PARAMETERS, FaceConfig, FaceDetector, priors
from jaxcomp.models.featherface_layers import Conv, ConvNorm
from jaxcomp.models.featherface_pyramid import SeparableNorm

_COUNTED = (Conv, ConvNorm, SeparableNorm, nn.Dense)
_FLOAT = 4  # bytes


def _counted(module: nn.Module, method: str) -> bool:
    return isinstance(module, _COUNTED) and method == "__call__"


def counts(cfg: FaceConfig, size: tuple[int, int]) -> dict[str, Any]:
    """Counts by module for one image.

    MACs are those of the convolutions as they are defined, whatever a backend makes of them.

    Args:
      cfg: sizes of the network.
      size: (rows, columns) of the image.

    Returns:
      {"parameters", "macs": module to number, "activation_bytes": of the outputs of all layers,
      which training keeps, float32, "largest_activation_bytes": of one layer's output, "anchors"}.
    """
    model = FaceDetector(cfg)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    make = functools.partial(model.init, train=True)
    variables = jax.eval_shape(make, jax.random.key(0), image)
    params = variables["params"]

    def run(variables: Any, image: Any) -> Any:
        return model.apply(
            variables, image, mutable=["intermediates"], capture_intermediates=_counted
        )[1]["intermediates"]

    outputs = {
        path[:-1]: value
        for path, value in flax.traverse_util.flatten_dict(
            jax.eval_shape(run, variables, image), is_leaf=lambda _, v: isinstance(v, tuple)
        ).items()
    }
    macs: Counter[str] = Counter()
    for path, kernel in flax.traverse_util.flatten_dict(params).items():
        if kernel.ndim > 1:
            places = sum(math.prod(out.shape[:-1]) for out in outputs[path[:-1]])
            macs[path[0]] += places * math.prod(kernel.shape)
    activations = [_FLOAT * math.prod(out.shape) for outs in outputs.values() for out in outs]
    return {
        "parameters": complexity.parameters_by_module(params, depth=1),
        "macs": dict(macs),
        "activation_bytes": sum(activations),
        "largest_activation_bytes": max(activations),
        "anchors": len(priors(size, cfg)),
    }


def describe(name: str, cfg: FaceConfig, size: tuple[int, int]) -> dict[str, Any]:
    """What `inspect` prints.

    Raises:
      ConfigError: the number of parameters is not the documented one of `name`.
    """
    found = counts(cfg, size)
    total = sum(found["parameters"].values())
    if total != PARAMETERS[name]:
        raise ConfigError(
            f"{name!r} has {total:,} parameters with these sizes, the documented count is "
            f"{PARAMETERS[name]:,}; undo the changes of config.model or name another variant"
        )
    title = (
        f"{name} on {size[0]}x{size[1]}: {found['anchors']:,} anchors, activations of all layers "
        f"{found['activation_bytes'] / 1e6:,.1f} MB, of the largest "
        f"{found['largest_activation_bytes'] / 1e6:,.2f} MB (float32)"
    )
    parameters, macs = found.pop("parameters"), found.pop("macs")
    return complexity.description(title, parameters, macs, documented_parameters=total, **found)
