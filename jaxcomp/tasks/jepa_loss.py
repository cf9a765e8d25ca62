"""Losses of predicted against target tokens, level by level."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from jaxcomp.errors import ConfigError, ShapeError
from jaxcomp.types import Array

LOSSES = ("mse", "smoothl1", "huber")


@dataclasses.dataclass(frozen=True)
class JEPALossConfig:
    """What is compared, and how.

    Attributes:
      type: "mse", "smoothl1" (beta 1) or "huber" (delta).
      delta: where "huber" turns from a parabola to a line.
      weights: of the levels, finest first; levels beyond them get the last one.
      normalise: divide predictions and targets by their L2 norm first.
      per_token: sum over the channels of a token where there is a mask, as the original does, which
        makes masked losses D times those without a mask. False: the mean over all numbers.

    Raises:
      ConfigError: a value is unknown or out of range.
    """

    type: str = "mse"
    delta: float = 1.0
    weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    normalise: bool = False
    per_token: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        if self.type not in LOSSES:
            raise ConfigError(f"loss.type={self.type!r} is none of {', '.join(LOSSES)}")
        if not self.delta > 0:
            raise ConfigError(f"loss.delta={self.delta!r} must be more than 0")
        if not self.weights or min(self.weights) < 0 or max(self.weights) <= 0:
            raise ConfigError(
                f"loss.weights={self.weights} must be numbers of at least 0, one of them above 0"
            )

    def level_weights(self, levels: int) -> tuple[float, ...]:
        """One weight for each level."""
        return (*self.weights, *[self.weights[-1]] * levels)[:levels]


def elementwise(predictions: Array, targets: Array, cfg: JEPALossConfig) -> Array:
    """float32 losses of each number; the formulas are those of the PyTorch losses of these names.

    mse: e^2. smoothl1: e^2 / 2 below 1, |e| - 1/2 above. huber: e^2 / 2 below delta,
    delta (|e| - delta / 2) above (Huber, 1964).
    """
    error = jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32))
    if cfg.type == "mse":
        return jnp.square(error)
    delta = 1.0 if cfg.type == "smoothl1" else cfg.delta
    small = jnp.minimum(error, delta)
    return small * (error - small / 2)


def unit(x: Array) -> Array:
    """Tokens [..., D] divided by their L2 norm; zeros stay zeros and have a finite gradient."""
    x = x.astype(jnp.float32)
    squares = jnp.square(x).sum(-1, keepdims=True)
    return x * jnp.where(squares > 1e-24, 1 / jnp.sqrt(jnp.maximum(squares, 1e-24)), 0.0)


def level_loss(
    predictions: Array, targets: Array, valid: Array | None, cfg: JEPALossConfig
) -> Array:
    """Mean loss of one level.

    Args:
      predictions: [B, N, D].
      targets: the same shape; the caller has stopped their gradient.
      valid: bool [B, N], the tokens that count; None for all. Without any, the loss is 0.
      cfg: the loss.

    Raises:
      ShapeError: the shapes differ.
    """
    if predictions.shape != targets.shape:
        raise ShapeError(
            f"predictions {list(predictions.shape)} and targets {list(targets.shape)} differ"
        )
    if cfg.normalise:
        predictions, targets = unit(predictions), unit(targets)
    values = elementwise(predictions, targets, cfg)
    if valid is None:
        return values.mean()
    # `where`, not a product: what is in the padding must not matter even if it is not finite.
    total = jnp.where(valid[..., None], values, 0.0).sum()
    numbers = valid.sum() * (1 if cfg.per_token else values.shape[-1])
    return total / jnp.maximum(numbers, 1)


def jepa_losses(
    predictions: Sequence[Array],
    targets: Sequence[Array],
    valid: Sequence[Array | None] | None,
    cfg: JEPALossConfig,
) -> dict[str, Array]:
    """All losses by name.

    Returns:
      {"loss": weighted sum, "loss_h0": level 0, ..., "loss_unweighted": mean of the levels}.
    """
    masks = [None] * len(predictions) if valid is None else valid
    levels = [level_loss(p, t, m, cfg) for p, t, m in zip(predictions, targets, masks, strict=True)]
    weights = cfg.level_weights(len(levels))
    named = {f"loss_h{i}": value for i, value in enumerate(levels)}
    total = sum(w * value for w, value in zip(weights, levels, strict=True))
    return {"loss": jnp.asarray(total), **named, "loss_unweighted": jnp.stack(levels).mean()}
