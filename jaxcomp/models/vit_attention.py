"""What a transformer looks at: the attention of its class token in the last block."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.models.transformer import rotary
from jaxcomp.models.vit import ViT, ViTConfig, places
from jaxcomp.types import Array, PyTree


def class_attention(cfg: ViTConfig, params: PyTree, images: Array) -> Array:
    """Shares that the class token gives to the patches (Caron et al., 2021, arXiv:2104.14294).

    The fused attention of the network never holds them, so they are computed again from its queries
    and keys.

    Args:
      cfg: of the encoder.
      params: its parameters (`variables["target"]` or `variables["params"]["encoder"]`).
      images: [B, H, W, 3], uint8 pixels or normalised floats.

    Returns:
      float32 [B, heads, rows, columns]; what the class token gives to itself is left out.
    """
    plain = dataclasses.replace(cfg, remat=False, drop_path=0.0)
    last = f"blocks_{cfg.depth - 1}"

    def wanted(module: Any, method: str) -> bool:
        return method == "__call__" and module.path == (last, "attention", "qkv")

    _, kept = ViT(plain).apply(
        {"params": params}, images, capture_intermediates=wanted, mutable=["intermediates"]
    )
    (qkv,) = kept["intermediates"][last]["attention"]["qkv"]["__call__"]
    batch, tokens = qkv.shape[:2]
    parts = qkv.astype(jnp.float32).reshape(batch, tokens, 3, cfg.heads, -1)
    q, k = parts[:, :, 0], parts[:, :, 1]
    if cfg.rope:
        spots = jnp.pad(jnp.asarray(places(cfg.grid))[None], ((0, 0), (1, 0), (0, 0)))
        q, k = rotary(q, spots), rotary(k, spots)
    logits = jnp.einsum("bhd,bnhd->bhn", q[:, 0], k) / jnp.sqrt(jnp.float32(q.shape[-1]))
    shares = jax.nn.softmax(logits)[..., 1:]
    return shares.reshape(batch, cfg.heads, *cfg.grid)
