"""Task: train the lidar detector whose bird's-eye-view features the codecs send."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig
from jaxcomp.ops.voxelise import Pillars, pillars_of
from jaxcomp.tasks.pointpillars_loss import PointPillarsLossConfig, pointpillars_losses
from jaxcomp.types import Array, Batch, LossAux, Metrics, PyTree, Task


def pointpillars_config(config: Any, classes: Any) -> PointPillarsConfig:
    """The network's sizes from the `model` section of a config; other keys are left alone."""
    values = {k: v for k, v in dict(config).items() if k in PointPillarsConfig.__dataclass_fields__}
    values["classes"] = classes
    return PointPillarsConfig(**{k: _tuples(v) for k, v in values.items()})


def _tuples(value: Any) -> Any:
    """Lists, as JSON gives them, to tuples at every depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def loss_config(config: Any) -> PointPillarsLossConfig:
    """The losses' weights and shapes from a config's `loss` section."""
    return PointPillarsLossConfig(**dict(config))


def init_variables(model: PointPillars, rng: Array) -> dict[str, PyTree]:
    """Random parameters and fresh statistics; no shape depends on a sweep."""
    pillars = Pillars(
        jnp.zeros((1, 8, 4), jnp.float32),
        *(jnp.zeros((1, 8), jnp.int32) for _ in range(3)),
    )
    return dict(jax.jit(functools.partial(model.init, train=True))(rng, pillars))


class PointPillarsTask(Task):
    """PointPillars on voxelised sweeps with boxes; batch statistics live in `stats`.

    Batches hold the fields of `voxelise.Pillars`, "boxes" [B, M, 7], "labels" [B, M], "valid"
    [B, M], "mask" [B], and "overflow" [B], the pillars for which there was no room.
    """

    def __init__(
        self,
        model: PointPillars,
        loss: PointPillarsLossConfig,
        initial: Callable[[], Mapping[str, PyTree] | None] = lambda: None,
    ):
        """Describes the task.

        Args:
          model: the network.
          loss: weights and shapes of the losses.
          initial: gives the variables to start from, None for random ones; called by `init`.
        """
        self.model = model
        self.loss_config = loss
        self.initial = initial

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """Random parameters, or the given ones; nothing travels beside the state."""
        del batch
        variables = self.initial() or init_variables(self.model, rng)
        # Copies: the trainer donates its state.
        own = jax.tree.map(jnp.array, dict(variables))
        return own["params"], {"batch_stats": own["batch_stats"]}, {}

    def loss(
        self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch, rng: Array, step: Array
    ) -> tuple[Array, LossAux]:
        """Weighted sum of the three detection losses."""
        del frozen, rng, step
        maps, new = self.model.apply(
            {"params": params, **stats}, pillars_of(batch), train=True, mutable=["batch_stats"]
        )
        losses = pointpillars_losses(maps, batch, self.model.cfg, self.loss_config)
        metrics = {**losses, "overflow": _mean(batch["overflow"], batch["mask"])}
        return losses["total"], LossAux(metrics=metrics, stats=dict(new))

    def eval_loss(self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """The same losses with stored statistics, as sums over rows."""
        del frozen
        maps = self.model.apply({"params": params, **stats}, pillars_of(batch))
        losses = pointpillars_losses(maps, batch, self.model.cfg, self.loss_config)
        losses["overflow"] = _mean(batch["overflow"], batch["mask"])
        count = batch["mask"].sum()
        sums = {name: value * count for name, value in losses.items() if name != "total"}
        return sums | {"count": count, "loss": losses["total"] * count}


def _mean(values: Array, mask: Array) -> Array:
    """Mean over the rows that the mask marks."""
    return (values * mask).sum() / jnp.maximum(mask.sum(), 1.0)
