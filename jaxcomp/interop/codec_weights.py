"""Weights of a CompressAI-style factorised-prior codec (PyTorch) as variables of our codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs.entropy import LAYERS
from jaxcomp.errors import CheckpointError


def codec_params_from_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of `FactorisedCodec` from the state dictionary of the PyTorch codec.

    Names are `g_a.{2i}` (convolution), `g_a.{2i+1}` (GDN), the same under `g_s` (transposed), and
    `entropy_bottleneck.{matrices,biases,factors}.{i}` or, in older files, `_matrix{i}` and so on.
    Convolutions (O, I, kh, kw) become (kh, kw, I, O), transposed ones (I, O, kh, kw) the same
    without a flip; GDN values keep their stored form. Derived buffers are ignored.

    Args:
      state_dict: name to array (numpy, or anything `numpy.asarray` takes).

    Returns:
      {"params": ..., "stats": ...} with feature mean 0 and scale 1.

    Raises:
      CheckpointError: a name is missing.
    """
    weights = {name.removeprefix("module."): value for name, value in state_dict.items()}
    stages = len({n.split(".")[1] for n in weights if n.startswith("g_a.") and n.endswith("bias")})
    params = {
        "analysis": _transform(weights, "g_a", stages, (2, 3, 1, 0)),
        "synthesis": _transform(weights, "g_s", stages, (2, 3, 0, 1)),
        "prior": _prior(weights),
    }
    channels = params["synthesis"][f"conv_{stages - 1}"]["bias"].shape[0]
    quantiles = _get(weights, "entropy_bottleneck.quantiles")
    stats = {"mean": jnp.zeros(channels), "scale": jnp.ones(()), "prior": {"quantiles": quantiles}}
    return {"params": params, "stats": stats}


def _transform(weights: Mapping, prefix: str, stages: int, order: tuple[int, ...]) -> dict:
    out = {}
    for i in range(stages):
        kernel = _get(weights, f"{prefix}.{2 * i}.weight").transpose(order)
        out[f"conv_{i}"] = {"kernel": kernel, "bias": _get(weights, f"{prefix}.{2 * i}.bias")}
        if i < stages - 1:
            name = f"{prefix}.{2 * i + 1}"
            out[f"gdn_{i}"] = {k: _get(weights, f"{name}.{k}") for k in ("beta", "gamma")}
    return out


def _prior(weights: Mapping) -> dict:
    out = {}
    names = (("matrix", "matrices", LAYERS), ("bias", "biases", LAYERS))
    for ours, theirs, count in (*names, ("factor", "factors", LAYERS - 1)):
        for i in range(count):
            old = f"entropy_bottleneck._{ours}{i}"
            new = f"entropy_bottleneck.{theirs}.{i}"
            value = _get(weights, old if old in weights else new)
            out[f"{ours}_{i}"] = value if ours == "matrix" else value[..., 0]
    return out


def _get(weights: Mapping, name: str) -> Any:
    if name not in weights:
        raise CheckpointError(
            f"the codec weights have no {name!r}; found {sorted(weights)[:5]} ..."
        )
    return jnp.asarray(np.asarray(weights[name], np.float32))
