"""Regularisation of face detectors inside the training step: mixed images, dropped features.

Zhang et al., "mixup", 2018, arXiv:1710.09412; Yun et al., "CutMix", 2019, arXiv:1905.04899; Ghiasi
et al., "DropBlock", 2018, arXiv:1810.12890. The targets are mixed with the images: an image whose
boxes belong to another one would teach nonsense.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcomp.types import Array, Batch


def mix(batch: Batch, rng: Array, mixup: float, cutmix: float) -> dict[str, Array]:
    """A batch in which each image is mixed with the row before it.

    Args:
      batch: "image" uint8 [B, H, W, 3], "boxes" [B, M, 4], "landmarks", "labels" and so on.
      rng: key.
      mixup: see `tasks.face.Regularisation`. Images are blended; "share" (scalar) says how much of
        the loss is that of the row's own faces, the rest belongs to those of the row before.
      cutmix: share of batches in which a rectangle of each image comes from the row before, with
        the faces whose middle lies in it; the faces below it are gone. Twice as many rows of faces.

    Returns:
      The batch itself where both are off.
    """
    out = dict(batch)
    first, second = jax.random.split(rng)
    if cutmix:
        out = _paste(out, first, cutmix)
    if mixup:
        share = jax.random.beta(second, mixup, mixup)
        share = jnp.maximum(share, 1 - share)
        x = out["image"].astype(jnp.float32)
        blended = share * x + (1 - share) * jnp.roll(x, 1, 0)
        out |= {"image": jnp.round(blended).astype(jnp.uint8), "share": share}
    return out


def _paste(batch: dict[str, Array], rng: Array, probability: float) -> dict[str, Array]:
    """CutMix with one rectangle for the batch."""
    keys = jax.random.split(rng, 4)
    image = batch["image"]
    height, width = image.shape[1:3]
    side = jnp.sqrt(1 - jax.random.uniform(keys[0]))
    side = jnp.where(jax.random.uniform(keys[1]) < probability, side, 0.0)
    top, left = (jax.random.uniform(k) * (1 - side) for k in keys[2:])

    def inside(x: Array, y: Array) -> Array:
        return (x >= left) & (x < left + side) & (y >= top) & (y < top + side)

    x = ((jnp.arange(width) + 0.5) / width).reshape(1, 1, -1, 1)
    y = ((jnp.arange(height) + 0.5) / height).reshape(1, -1, 1, 1)
    mixed = jnp.where(inside(x, y), jnp.roll(image, 1, 0), image)
    middle = (batch["boxes"][..., :2] + batch["boxes"][..., 2:]) / 2
    within = inside(middle[..., 0], middle[..., 1])
    own = jnp.where(within, 0, batch["labels"])
    pasted = jnp.roll(jnp.where(within, batch["labels"], 0) * _real(batch), 1, 0)
    both = {k: jnp.concatenate([batch[k], jnp.roll(batch[k], 1, 0)], 1) for k in _FACES}
    return {**batch, **both, "image": mixed, "labels": jnp.concatenate([own, pasted], 1)}


_FACES = ("boxes", "landmarks")


def _real(batch: dict[str, Array]) -> Array:
    return (batch["mask"] > 0).astype(batch["labels"].dtype)[:, None]


def drop_blocks(
    rng: Array, probability: float, block: int, features: dict[str, Array]
) -> dict[str, Array]:
    """Zeros in squares of each level's maps [B, H, W, C], the rest scaled up to the same mean."""
    if not probability:
        return features
    keys = jax.random.split(rng, len(features))
    return {
        name: _dropped(key, probability, block, x)
        for key, (name, x) in zip(keys, features.items(), strict=True)
    }


def _dropped(rng: Array, probability: float, block: int, x: Array) -> Array:
    batch, height, width, _ = x.shape
    side = min(block, height, width)
    seeds = jax.random.bernoulli(rng, probability / side**2, (batch, height, width))
    hit = jax.lax.reduce_window(
        seeds.astype(jnp.float32), 0.0, jax.lax.max, (1, side, side), (1, 1, 1), "SAME"
    )
    kept = 1 - hit
    return x * (kept / jnp.maximum(kept.mean(), 1e-3))[..., None]
