"""Hierarchical joint-embedding predictive architecture (after I-JEPA, Assran et al., 2023).

    images ─ visible patches ─► context encoder ─► predictor ─► pyramid ─► predictions
        └─── all patches ─────► target encoder ── hidden tokens ► pyramid ─► targets

The predictor gets the visible tokens and a mask token with the position of each hidden one
(arXiv:2301.08243). Both branches share one pyramid, and the gradient of the targets is stopped
behind it. The target encoder is no parameter: its weights are the collection "target", which the
trainer moves after each step; it starts as an exact copy.

Lists of hidden and visible tokens have static lengths with validity masks. What is not valid has no
influence on any valid number, unless `compat` asks for the original's arithmetic.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcomp.errors import ShapeError
from jaxcomp.models.hjepa_config import HJEPAConfig
from jaxcomp.models.target_norm import normalised_targets
from jaxcomp.models.token_pooling import Grid, first_tokens, onto_grid
from jaxcomp.models.token_pyramid import EPSILON, Level, TokenPyramid
from jaxcomp.models.transformer import INIT, SMALL, dense, layer_norm, make_blocks
from jaxcomp.models.vit import ViT, places, take_tokens
from jaxcomp.types import Array, PyTree

__all__ = ["HJEPA", "HJEPAConfig", "check_mask", "init_variables"]


class Predictor(nn.Module):
    """Predicts hidden tokens from visible ones; as wide as the encoder."""

    cfg: HJEPAConfig

    def setup(self) -> None:
        """Makes the tokens and the blocks."""
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.encoder.dtype)
        self.mask_token = self.param("mask_token", INIT, (1, 1, cfg.width))
        # The original declares this vector and never uses it; it tells visible from hidden here.
        self.context_kind = self.param("context_kind", nn.initializers.zeros, (1, 1, cfg.width))
        self.blocks = make_blocks(
            cfg.predictor_depth, remat=cfg.encoder.remat, drop_path=cfg.encoder.drop_path,
            heads=cfg.heads, hidden=round(cfg.width * cfg.predictor_mlp_ratio), epsilon=EPSILON,
            layer_scale=cfg.encoder.layer_scale, dtype=dtype,
        )  # fmt: skip
        self.norm = layer_norm(EPSILON, dtype)
        self.head = dense(cfg.width, dtype)

    def __call__(
        self,
        context: Array,
        context_valid: Array | None,
        context_places: Array,
        positions: Array,
        valid: Array,
        target_places: Array,
        train: bool = False,
    ) -> Array:
        """Predictions for the target positions.

        Args:
          context: [B, K, D] encoded visible tokens, without the class token.
          context_valid: bool [B, K], None for all.
          context_places: [B or 1, K, 2].
          positions: [B, M, D], position embeddings of the targets.
          valid: bool [B, M].
          target_places: [B, M, 2].
          train: drop paths.

        Returns:
          [B, M, D] in the compute type.
        """
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.encoder.dtype)
        if not cfg.compat:
            context = context + self.context_kind.astype(dtype)
        hidden = (self.mask_token + positions).astype(dtype)
        x = jnp.concatenate([context.astype(dtype), hidden], 1)
        turned, keys = None, None
        if cfg.encoder.rope:
            known = (hidden.shape[0], *context_places.shape[1:])
            turned = jnp.concatenate([jnp.broadcast_to(context_places, known), target_places], 1)
        if not cfg.compat:
            if context_valid is None:
                context_valid = jnp.ones(context.shape[:2], bool)
            keys = jnp.concatenate([context_valid, valid], 1)
        for block in self.blocks:
            x = block(x, keys, turned, train)
        return self.head(self.norm(x[:, context.shape[1] :]))


class HJEPA(nn.Module):
    """The model; `init_variables` makes its variables {"params", "target"}."""

    cfg: HJEPAConfig

    def setup(self) -> None:
        """Makes both trained halves and the shared pyramid."""
        self.encoder = ViT(self.cfg.encoder)
        self.predictor = Predictor(self.cfg)
        self.pyramid = TokenPyramid(self.cfg)

    def __call__(
        self,
        images: Array,
        mask: Array,
        *,
        context: Array | None = None,
        real: Array | None = None,
        max_masked: int | None = None,
        max_context: int | None = None,
        return_all_levels: bool = True,
        train: bool = False,
    ) -> dict[str, Any]:
        """Predicts the hidden tokens of images at every level.

        A sample without a hidden token has no valid one and adds nothing to a loss; where all are
        hidden, the context is the class token alone. Neither makes NaN.

        Args:
          images: [B, H, W, 3], uint8 pixels or normalised floats.
          mask: bool, number or uint8 [B, N], more than 1/2 where a patch is hidden and predicted.
          context: the same, the patches that are visible; hidden ones never are. None for all
            others.
          real: bool or float [B], the images that count where targets are normalised over images;
            None for all.
          max_masked: static length of the lists of hidden tokens, `cfg.least_room` to N; None: N.
            Further hidden tokens are neither seen nor predicted.
          max_context: static length of the lists of visible tokens, None: N. Further visible
            tokens are not seen. Ignored in compat mode.
          return_all_levels: False computes the finest level alone.
          train: drop paths; needs the stream "dropout" then.

        Returns:
          {"predictions": [[B, M_l, D], ...], "targets": the same without a gradient, "masks_valid":
          [bool [B, M_l], ...], "context_features": [B, 1 + K, D], "target_features": [B, 1 + N, D],
          "predictor_output": [B, M, D]}. With pooling "1d", M_l = max_masked // 2^l; with "2d",
          the tokens of the pooled grid.

        Raises:
          ShapeError: an argument has a wrong shape or type.
        """
        cfg, tokens = self.cfg, self.cfg.encoder.tokens
        hidden = check_mask("mask", mask, images, tokens)
        visible = ~hidden
        if context is not None:
            visible &= check_mask("context", context, images, tokens)
        index, valid = first_tokens(hidden, self._room("max_masked", max_masked, cfg.least_room))
        spots = jnp.asarray(places(cfg.encoder.grid))[None]
        if cfg.compat:
            encoded = self.encoder(images, keep=visible, train=train)
            known, known_places = None, spots
        else:
            kept, known = first_tokens(visible, self._room("max_context", max_context, 1))
            encoded = self.encoder(images, index=kept, valid=known, train=train)
            known_places = take_tokens(spots, kept)
        predicted = self.predictor(
            encoded[:, 1:], known, known_places,
            take_tokens(self.encoder.patch_positions(), index), valid, take_tokens(spots, index),
            train,
        )  # fmt: skip
        target = self._target(images)
        wanted = normalised_targets(target[:, 1:], cfg.target_norm, real)
        wanted = take_tokens(wanted.astype(target.dtype), index)
        ours, theirs = (self._levels(x, valid, hidden) for x in (predicted, wanted))
        last = None if return_all_levels else 1
        return {
            "predictions": [x for x, _ in ours[:last]],
            "targets": [jax.lax.stop_gradient(x) for x, _ in theirs[:last]],
            "masks_valid": [valid for _, valid in ours[:last]],
            "context_features": encoded,
            "target_features": target,
            "predictor_output": predicted,
        }

    def extract(self, images: Array, use_target_encoder: bool = True) -> list[Array]:
        """Projected features of whole images, level by level.

        Args:
          images: [B, H, W, 3].
          use_target_encoder: False: the context encoder, which sees the whole image too.

        Returns:
          [B, N_l, D] by level: N // 2^l tokens, or the pooled grid with pooling "2d".
        """
        encoded = self._target(images) if use_target_encoder else self.encoder(images)
        return [x for x, _ in self.pyramid(encoded[:, 1:], None, self._grid)]

    @property
    def _grid(self) -> Grid:
        return self.cfg.encoder.grid if self.cfg.pooling == "2d" else None

    def _levels(self, x: Array, valid: Array, hidden: Array) -> list[Level]:
        if self._grid is None:
            return self.pyramid(x, valid, None)
        return self.pyramid(*onto_grid(x, hidden), self._grid)

    def _target(self, images: Array) -> Array:
        """The target encoder, which never gets a gradient; while initialising, the context one."""
        if self.is_initializing():
            return self.encoder(images)
        weights = jax.lax.stop_gradient(self.variables["target"])
        encoder = ViT(self.cfg.encoder, parent=None)
        return jnp.asarray(encoder.apply({"params": weights}, images))

    def _room(self, name: str, room: int | None, least: int) -> int:
        tokens = self.cfg.encoder.tokens
        if room is None:
            return tokens
        if isinstance(room, bool) or not isinstance(room, int) or not least <= room <= tokens:
            raise ShapeError(f"{name}={room!r} must be a whole number from {least} to {tokens}")
        return room


def check_mask(name: str, mask: Array, images: Array, tokens: int) -> Array:
    """A mask as bool [B, N].

    Raises:
      ShapeError: it has another shape, or its type is neither bool nor a real number.
    """
    shape, dtype = tuple(jnp.shape(mask)), jnp.result_type(mask)
    if shape != (images.shape[0], tokens):
        raise ShapeError(
            f"{name} has shape {list(shape)}, [{images.shape[0]}, {tokens}] is needed: one number "
            "for each patch of each image"
        )
    if dtype == jnp.bool_:
        return jnp.asarray(mask)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise ShapeError(f"{name} is {dtype}; give bool, or numbers that are 1 where it holds")
    return jnp.asarray(mask) > 0.5


def _widened(x: Array) -> Array:
    """A linear layer's small kernel [in, out] with the deviation of Glorot and Bengio; else x."""
    if x.ndim != 2:
        return x
    return x * (math.sqrt(2 / sum(x.shape)) / SMALL)


def init_variables(model: HJEPA, rng: Array) -> dict[str, PyTree]:
    """Random parameters, and the target encoder as an exact copy of the context encoder.

    Returns:
      {"params": ..., "target": as params["encoder"], in buffers of its own}.
    """
    height, width = model.cfg.encoder.image_size
    images = jnp.zeros((1, height, width, 3), jnp.float32)
    mask = jnp.zeros((1, model.cfg.encoder.tokens), bool)
    params = jax.jit(functools.partial(model.init))(rng, images, mask)["params"]
    if model.cfg.init == "glorot":
        params = jax.tree.map(_widened, params)
    return {"params": params, "target": jax.tree.map(jnp.array, params["encoder"])}
