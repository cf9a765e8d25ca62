"""A feature codec with a fully factorised prior.

    x [B,H,W,C] ─ normalise ─ cut ─ pad ─ analysis ─► y [B,h,w,M]
                                                │
              training                          │                evaluation
      ┌─────────────┴──────────────┐            │       ┌────────────┴────────────┐
    y + U(-½,½) ─► bits    noise or rounded     │     round around median ─► bits │
                           (straight-through)   │                                 │
                                   └────────────┴────────────────┬────────────────┘
    x̂ [B,H,W,C] ◄─ denormalise ◄─ crop ◄─ synthesis ◄────────────┘

    coded:  round(y - median) ─► integers ─► rANS with tables ─► bytes   (see `tables`, `rans`)

Variables: `params` {analysis, synthesis, prior} are trained. `stats` are not: `mean` [C] and
`scale` [] of the features, set from data with `with_statistics`, and the prior's `quantiles`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcomp.codecs import entropy
from jaxcomp.codecs.quantise import quantise_noise, quantise_round, quantise_ste
from jaxcomp.codecs.transforms import Transform
from jaxcomp.errors import ShapeError

Array = jax.Array


class FactorisedCodec(nn.Module):
    """Transforms, prior and normalisation of one feature map.

    Attributes:
      in_channels: C of the features.
      n_hidden: channels between the layers.
      n_channels: M of the latents.
      stages: stride-2 layers; the latents are 2^stages times smaller on each side.
      dtype: of the convolutions ("float32" or "bfloat16"); latents, rate and GDN are float32.
      pad_multiple: features are padded at the bottom and right to a multiple of this; None means
        2^stages. A smaller one is valid too: the convolutions round up.
      straight_through: in training, the decoder sees rounded latents instead of noisy ones.
      limit: normalised features are cut at plus and minus this; 0 cuts nothing. Some networks have
        single places, above all at borders, a hundred times as large as all others: GDN and the
        rate would see nothing else.
    """

    in_channels: int = 256
    n_hidden: int = 128
    n_channels: int = 192
    stages: int = 4
    dtype: Any = "float32"
    pad_multiple: int | None = None
    straight_through: bool = False
    limit: float = 0.0

    def setup(self) -> None:
        """Creates both transforms, the prior and the feature statistics."""
        dtype = jnp.dtype(self.dtype)
        self.analysis = Transform(self.n_hidden, self.n_channels, self.stages, False, dtype)
        self.synthesis = Transform(self.n_hidden, self.in_channels, self.stages, True, dtype)
        self.prior = entropy.FactorisedPrior(self.n_channels)
        self.mean = self.variable("stats", "mean", jnp.zeros, (self.in_channels,), jnp.float32)
        self.scale = self.variable("stats", "scale", jnp.ones, (), jnp.float32)

    def __call__(self, x: Array, rng: Array | None = None, train: bool = False) -> dict[str, Array]:
        """Codes and decodes without making bytes.

        Args:
          x: [B, H, W, C] features.
          rng: a key for the noise; needed when `train`.
          train: noise (differentiable) instead of rounding.

        Returns:
          {"x_hat": [B, H, W, C] float32, "bits": [B, h, w, M] float32, "y": [B, h, w, M] float32
          before quantisation, "distortion": [B] mean squared error of the normalised features}.
        """
        normal = self.normalise(x)
        y = self._analyse(normal)
        median = self.median()
        if train:
            if rng is None:
                raise ValueError("training needs a key for the noise: pass rng")
            rated = quantise_noise(y, rng)
            decoded = quantise_ste(y, median) if self.straight_through else rated
        else:
            rated = decoded = quantise_round(y, median)
        restored = self._synthesise(decoded, (x.shape[1], x.shape[2]))
        # In the normalised space: training then never needs the features in their own units.
        distortion = jnp.square(normal - restored).mean((1, 2, 3))
        x_hat = self.denormalise(restored)
        return {"x_hat": x_hat, "bits": self.bits(rated), "y": y, "distortion": distortion}

    def analyse(self, x: Array) -> Array:
        """[B, H, W, C] features to [B, ceil(H/2^stages), ceil(W/2^stages), M] float32 latents."""
        return self._analyse(self.normalise(x))

    def _analyse(self, normal: Array) -> Array:
        multiple = self.pad_multiple or 2**self.stages
        pads = [(0, 0)] + [(0, -n % multiple) for n in normal.shape[1:3]] + [(0, 0)]
        return self.analysis(jnp.pad(normal, pads)).astype(jnp.float32)

    def synthesise(self, y: Array, shape: tuple[int, int]) -> Array:
        """[B, h, w, M] latents to [B, H, W, C] float32 features, cropped to `shape` = (H, W)."""
        return self.denormalise(self._synthesise(y, shape))

    def _synthesise(self, y: Array, shape: tuple[int, int]) -> Array:
        if tuple(y.shape[1:]) != (*latent_shape(shape, self.stages), self.n_channels):
            raise ShapeError(
                f"latents of shape {tuple(y.shape)} do not belong to features of {tuple(shape)}: "
                f"expected [B, {latent_shape(shape, self.stages)}, {self.n_channels}]"
            )
        return self.synthesis(y)[:, : shape[0], : shape[1]].astype(jnp.float32)

    def bits(self, y: Array) -> Array:
        """[B, h, w, M] noisy or rounded latents to their ideal code lengths in bits."""
        return self.prior.bits(y)

    def median(self) -> Array:
        """[M] centre of the rounding grid of each latent channel."""
        return self.prior.median()

    def normalise(self, x: Array) -> Array:
        """(x - mean) / scale in float32, cut at the limit: where the transforms work."""
        check_features(x, self.in_channels)
        mean = self.mean.value.reshape(1, 1, 1, -1)
        normal = (x.astype(jnp.float32) - mean) / self.scale.value
        return jnp.clip(normal, -self.limit, self.limit) if self.limit else normal

    def denormalise(self, x: Array) -> Array:
        """The inverse of `normalise`, but for what was cut."""
        return x * self.scale.value + self.mean.value.reshape(1, 1, 1, -1)


def latent_shape(shape: tuple[int, int], stages: int) -> tuple[int, int]:
    """(h, w) of the latents of an (H, W) feature map: both divided by 2^stages, rounded up."""
    return math.ceil(shape[0] / 2**stages), math.ceil(shape[1] / 2**stages)


def check_features(x: Array, channels: int, name: str = "features") -> None:
    """Raises `ShapeError` unless `x` is a non-empty floating [B, H, W, channels] array."""
    shape = tuple(x.shape)
    if len(shape) != 4 or shape[-1] != channels or 0 in shape:
        raise ShapeError(f"{name} has shape {shape}; this codec takes [B, H, W, {channels}]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ShapeError(
            f"{name} has dtype {x.dtype}; features are floating point, cast them first"
        )


def with_statistics(variables: Mapping[str, Any], mean: Array, scale: Array | float) -> dict:
    """New variables whose features are normalised by (x - mean) / scale; mean [C], scale scalar."""
    stats = dict(variables["stats"])
    stats["mean"] = jnp.asarray(mean, jnp.float32).reshape(stats["mean"].shape)
    stats["scale"] = jnp.asarray(scale, jnp.float32)
    return {**variables, "stats": stats}


def refresh_quantiles(variables: Mapping[str, Any], tail: float = 0.5e-9) -> dict:
    """New variables whose prior quantiles are those of the density as trained so far.

    Args:
      variables: of a `FactorisedCodec`.
      tail: probability outside on each side; CompressAI's tail mass of 1e-9 in total.
    """
    stats = dict(variables["stats"])
    solved = entropy.quantiles(variables["params"]["prior"], tail)
    stats["prior"] = {**stats["prior"], "quantiles": solved[:, None, :]}
    return {**variables, "stats": stats}


def parameter_count(variables: Mapping[str, Any]) -> int:
    """Trainable parameters plus the prior's three quantiles per channel.

    The quantiles are parameters in CompressAI, and in the published counts: 4,617,600 for
    256-128-192 with 4 stages = 4,617,024 trained + 576 quantiles (11,712 = 61 x 192 in the prior).
    The feature statistics are not counted.
    """
    trained = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return trained + variables["stats"]["prior"]["quantiles"].size
