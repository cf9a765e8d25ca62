"""Weights of the usual PyTorch H-JEPA (a timm ViT inside) as variables of ours, and back.

    PyTorch                                    ours                            axes
    context_encoder.vit.patch_embed.proj.weight  params/encoder/patch_kernel   O I h w -> h w I O
    context_encoder.vit.blocks.3.attn.qkv.weight  .../blocks_3/attention/qkv/kernel  O I -> I O
    target_encoder.vit.pos_embed               target/positions                as it is
    predictor.blocks.0.attn.in_proj_weight     .../blocks_0/attention/qkv/kernel  O I -> I O
    fpn_lateral_convs.1.0.weight               params/pyramid/lateral1/linear/kernel  O I -> I O

Both attentions pack q, k and v outermost, as ours does, so no channel moves. Prefixes
`module.` and `_orig_mod.` are removed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcomp.interop import tensor_tables
from jaxcomp.interop.tensor_tables import AS_IS, CONV, LINEAR, Row, Table, with_bias
from jaxcomp.interop.torch_weights import read_weights
from jaxcomp.models.hjepa import HJEPA, HJEPAConfig, init_variables

_TIMM = {"attn.qkv": "attention/qkv", "attn.proj": "attention/out"}
_TIMM |= {"mlp.fc1": "mlp/up", "mlp.fc2": "mlp/down"}
_PREDICTOR = {"attn.out_proj": "attention/out", "mlp.0": "mlp/up", "mlp.3": "mlp/down"}
_PYRAMID = {
    "hierarchy_projections": "project",
    "fpn_lateral_convs": "lateral",
    "fpn_top_down_convs": "top_down",
    "fpn_fusion_convs": "fusion",
}
_PREFIXES = ("module.", "_orig_mod.")


def abstract_variables(cfg: HJEPAConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every variable, by path; nothing is computed."""
    make = functools.partial(init_variables, HJEPA(cfg))
    return tensor_tables.flat_shapes(jax.eval_shape(make, jax.random.key(0)))


@functools.lru_cache(maxsize=8)
def tensor_table(cfg: HJEPAConfig) -> Table:
    """Every tensor of a model with these sizes, in the order of PyTorch's state dictionary.

    Raises:
      ConfigError: the original has no such model.
    """
    return tensor_tables.make_table(_rows(cfg), abstract_variables(cfg))


def _rows(cfg: HJEPAConfig) -> Iterator[Row]:
    yield from _encoder("context_encoder.vit", "params/encoder", cfg)
    yield from _encoder("target_encoder.vit", "target", cfg)
    yield "predictor.mask_token", "params/predictor/mask_token", AS_IS
    yield "predictor.pos_embed_predictor", "params/predictor/context_kind", AS_IS
    for i in range(cfg.predictor_depth):
        yield from _predictor_block(f"predictor.blocks.{i}", f"params/predictor/blocks_{i}")
    yield from _norm("predictor.norm", "params/predictor/norm")
    yield from with_bias("predictor.head", "params/predictor/head", LINEAR)
    levels = cfg.num_hierarchies
    parts = {"hierarchy_projections": levels}
    if cfg.use_fpn:
        parts |= {"fpn_lateral_convs": levels, "fpn_top_down_convs": levels - 1}
    if cfg.use_fpn and cfg.fpn_fusion_method == "concat":
        parts["fpn_fusion_convs"] = levels - 1
    for theirs, count in parts.items():
        for i in range(count):
            ours = f"params/pyramid/{_PYRAMID[theirs]}{i}"
            yield from with_bias(f"{theirs}.{i}.0", f"{ours}/linear", LINEAR)
            yield from _norm(f"{theirs}.{i}.1", f"{ours}/norm")


def _encoder(theirs: str, ours: str, cfg: HJEPAConfig) -> Iterator[Row]:
    yield f"{theirs}.cls_token", f"{ours}/class_token", AS_IS
    yield f"{theirs}.pos_embed", f"{ours}/positions", AS_IS
    yield f"{theirs}.patch_embed.proj.weight", f"{ours}/patch_kernel", CONV
    yield f"{theirs}.patch_embed.proj.bias", f"{ours}/patch_bias", AS_IS
    for i in range(cfg.encoder.depth):
        block, own = f"{theirs}.blocks.{i}", f"{ours}/blocks_{i}"
        yield from _norm(f"{block}.norm1", f"{own}/norm1")
        yield from _norm(f"{block}.norm2", f"{own}/norm2")
        for name, path in _TIMM.items():
            yield from with_bias(f"{block}.{name}", f"{own}/{path}", LINEAR)
        if cfg.encoder.layer_scale:
            for j in (1, 2):
                yield f"{block}.ls{j}.gamma", f"{own}/scale{j}", AS_IS
    yield from _norm(f"{theirs}.norm", f"{ours}/norm")


def _predictor_block(theirs: str, ours: str) -> Iterator[Row]:
    yield from _norm(f"{theirs}.norm1", f"{ours}/norm1")
    yield from _norm(f"{theirs}.norm2", f"{ours}/norm2")
    yield f"{theirs}.attn.in_proj_weight", f"{ours}/attention/qkv/kernel", LINEAR
    yield f"{theirs}.attn.in_proj_bias", f"{ours}/attention/qkv/bias", AS_IS
    for name, path in _PREDICTOR.items():
        yield from with_bias(f"{theirs}.{name}", f"{ours}/{path}", LINEAR)


def _norm(theirs: str, ours: str) -> Iterator[Row]:
    yield f"{theirs}.weight", f"{ours}/scale", AS_IS
    yield f"{theirs}.bias", f"{ours}/bias", AS_IS


def load_hjepa(path: str | os.PathLike[str], cfg: HJEPAConfig) -> dict[str, Any]:
    """Variables from a file of PyTorch weights, without PyTorch.

    Raises:
      CheckpointError: the file cannot be read, or as `hjepa_from_torch` does.
    """
    return hjepa_from_torch(read_weights(path), cfg, source=repr(str(path)))


def _plain(name: str) -> str:
    """A name without what wrappers put before it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def hjepa_from_torch(
    state_dict: Mapping[str, Any],
    cfg: HJEPAConfig,
    *,
    source: str = "the state dictionary",
) -> dict[str, Any]:
    """Variables of `HJEPA(cfg)` from the state dictionary of the PyTorch model.

    Args:
      state_dict: name to array (numpy, or anything `numpy.asarray` takes).
      cfg: sizes of the model.
      source: what error messages call the weights.

    Returns:
      {"params": ..., "target": ...} of float32 numpy arrays.

    Raises:
      CheckpointError: a tensor is missing, left over, or has another shape.
      NonFiniteError: a tensor holds NaN or infinity, or does not fit float32.
      ConfigError: the original has no model of this config.
    """
    return tensor_tables.variables_from_torch(
        {_plain(name): value for name, value in state_dict.items()},
        tensor_table(cfg),
        source=source,
        network="an H-JEPA of this config",
        fix="give its own sizes and fusion",
    )


def hjepa_to_torch(variables: Mapping[str, Any], cfg: HJEPAConfig) -> dict[str, np.ndarray]:
    """The inverse of `hjepa_from_torch`: PyTorch's state dictionary, in its order.

    Raises:
      ShapeError: the variables are not those of a model of these sizes.
      ConfigError: the original has no model of this config.
    """
    return tensor_tables.variables_to_torch(variables, tensor_table(cfg))
