"""Task: learn features by predicting those of hidden patches, without labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.errors import ConfigError
from jaxcomp.models.hjepa import HJEPA, HJEPAConfig, init_variables
from jaxcomp.models.vit import ViTConfig
from jaxcomp.ops.ranks import feature_ranks
from jaxcomp.tasks.jepa_loss import JEPALossConfig, jepa_losses
from jaxcomp.types import Array, Batch, LossAux, Metrics, PyTree, Task

SHAPES = ("linear", "cosine")


def hjepa_config(config: Mapping[str, Any]) -> HJEPAConfig:
    """Sizes and options from a config: its sections `model` and `data`; other keys are left alone.

    `fpn_feature_dim` 0 stands for None, the width of the encoder.
    """
    model, data = dict(config["model"]), config["data"]
    model["fpn_feature_dim"] = model.get("fpn_feature_dim") or None
    encoder = {k: v for k, v in model.items() if k in ViTConfig.__dataclass_fields__}
    own = {k: v for k, v in model.items() if k in HJEPAConfig.__dataclass_fields__}
    encoder["image_size"] = (data["height"], data["width"])
    return HJEPAConfig(ViTConfig(**encoder), **own)


def loss_config(section: Mapping[str, Any]) -> JEPALossConfig:
    """The loss from a config's `loss` section."""
    return JEPALossConfig(**dict(section))


@dataclasses.dataclass(frozen=True)
class EMASchedule:
    """Momentum of the target encoder by optimiser step.

    Attributes:
      start: until `warmup_steps`,
      end: at `total_steps` and after; 1 freezes the target.
      warmup_steps: steps at `start`.
      total_steps: of the run.
      shape: of the way between, "linear" as in the original or "cosine".

    Raises:
      ConfigError: a value is out of range.
    """

    start: float = 0.996
    end: float = 1.0
    warmup_steps: int = 0
    total_steps: int = 1
    shape: str = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 <= self.end <= 1:
            raise ConfigError(f"ema: momentum {self.start} to {self.end} must be from 0 to 1")
        if self.shape not in SHAPES:
            raise ConfigError(f"ema.shape={self.shape!r} is none of {', '.join(SHAPES)}")
        if self.warmup_steps < 0 or self.total_steps < 1:
            raise ConfigError(
                f"ema.warmup_steps={self.warmup_steps} must be at least 0 and "
                f"total_steps={self.total_steps} at least 1"
            )

    def __call__(self, step: Array) -> Array:
        """Momentum (float32) of the update that follows optimiser step `step` (1 is the first)."""
        span = max(self.total_steps - self.warmup_steps, 1)
        share = jnp.clip((step - self.warmup_steps) / span, 0.0, 1.0)
        if self.shape == "cosine":
            share = (1 - jnp.cos(math.pi * share)) / 2
        return jnp.float32(self.start) + jnp.float32(self.end - self.start) * share


class JEPATask(Task):
    """H-JEPA on images with masks; the target encoder lives in `stats`.

    Batches hold "image" uint8 [B, H, W, 3], "hidden" and "context" bool [B, N] and "mask" [B], 1
    for real rows.
    """

    def __init__(
        self,
        model: HJEPA,
        loss: JEPALossConfig,
        ema: EMASchedule,
        *,
        max_masked: int | None = None,
        max_context: int | None = None,
        initial: Callable[[], Mapping[str, PyTree] | None] = lambda: None,
    ):
        """Describes the task.

        Args:
          model: the network.
          loss: what is compared, and how.
          ema: momentum of the target encoder.
          max_masked: hidden patches of a sample at most; None: all.
          max_context: seen patches at most; None: all.
          initial: gives the variables to start from, None for random ones; called by `init`.
        """
        self.model, self.ema, self.initial = model, ema, initial
        self.loss_config = dataclasses.replace(loss, per_token=model.cfg.compat or loss.per_token)
        self.rooms: dict[str, Any] = {"max_masked": max_masked, "max_context": max_context}

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """Random parameters, or the given ones; the target encoder goes to `stats`."""
        del batch
        variables = self.initial() or init_variables(self.model, rng)
        # Copies: the trainer donates its state.
        own = jax.tree.map(jnp.array, dict(variables))
        return own["params"], {"target": own["target"]}, {}

    def _run(self, variables: PyTree, batch: Batch, rng: Array | None) -> dict[str, Any]:
        more: dict[str, Any] = {} if rng is None else {"train": True, "rngs": {"dropout": rng}}
        return self.model.apply(  # type: ignore[return-value]
            variables, batch["image"], batch["hidden"], context=batch["context"],
            real=batch["mask"], **self.rooms, **more,
        )  # fmt: skip

    def _losses(self, out: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
        real = batch["mask"][:, None] > 0
        valid: Any = [mask & real for mask in out["masks_valid"]]
        if self.model.cfg.compat:
            valid = None  # the original's trainer counts padding as targets
        return jepa_losses(out["predictions"], out["targets"], valid, self.loss_config)

    def loss(
        self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch, rng: Array, step: Array
    ) -> tuple[Array, LossAux]:
        """Weighted sum of the losses of the levels."""
        del frozen
        drops = self.model.cfg.encoder.drop_path > 0
        out = self._run({"params": params, **stats}, batch, rng if drops else None)
        losses = self._losses(out, batch)
        metrics = {k: v for k, v in losses.items() if k != "loss"}
        metrics["target_std"] = _token_std(out["targets"][0], out["masks_valid"][0])
        metrics["prediction_std"] = _token_std(out["predictions"][0], out["masks_valid"][0])
        metrics["ema_momentum"] = self.ema(step + 1)
        metrics["hidden"] = batch["hidden"].mean(dtype=jnp.float32)
        return losses["loss"], LossAux(metrics=metrics, stats=stats)

    def eval_loss(self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """The same losses without dropping paths, and ranks of the batch, as sums over rows."""
        del frozen
        out = self._run({"params": params, **stats}, batch, None)
        count = batch["mask"].sum()
        named = self._losses(out, batch)
        pooled = out["target_features"][:, 1:].mean(1)
        named |= {f"target_{k}": v for k, v in feature_ranks(pooled, batch["mask"]).items()}
        return {"count": count, **{k: v * count for k, v in named.items()}}

    def after_update(self, params: PyTree, stats: PyTree, step: Array) -> PyTree:
        """Moves the target encoder: t <- m t + (1 - m) encoder, once for each optimiser step."""
        momentum = self.ema(step)
        moved = jax.tree.map(
            lambda t, p: momentum * t + (1 - momentum) * p, stats["target"], params["encoder"]
        )
        return {**stats, "target": moved}


def _token_std(x: Array, valid: Array) -> Array:
    """Mean over channels of the standard deviation over valid tokens."""
    weight = valid.astype(jnp.float32)[..., None]
    count = jnp.maximum(weight.sum(), 1.0)
    x = x.astype(jnp.float32)
    mean = (x * weight).sum((0, 1), keepdims=True) / count
    variance = (jnp.square(x - mean) * weight).sum((0, 1)) / count
    return jnp.sqrt(variance).mean()
