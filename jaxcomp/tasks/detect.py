"""Task: train the detector whose features the codecs send."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.evaluate.detection import image_sizes
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN
from jaxcomp.tasks.detection_loss import SamplingConfig, detection_losses
from jaxcomp.types import Array, Batch, LossAux, Metrics, PyTree


def detector_config(config: Any) -> DetectorConfig:
    """The network's sizes from the `model` section of a config; other keys are left alone."""
    fields = DetectorConfig.__dataclass_fields__
    values = {k: v for k, v in dict(config).items() if k in fields}
    return DetectorConfig(
        **{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
    )


def sampling_config(config: Any) -> SamplingConfig:
    """The loss's sampling from a config's `sampling` section."""
    return SamplingConfig(**dict(config))


class DetectTask:
    """Faster R-CNN on a detection data set; batch statistics live in `stats`."""

    def __init__(self, model: FasterRCNN, sampling: SamplingConfig):
        """Keeps the network and the sampling; both are plain configuration."""
        self.model = model
        self.sampling = sampling

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """Random parameters; nothing is frozen."""
        image = jnp.asarray(batch["image"][:1])
        size = image_sizes(batch)[:1]
        variables = jax.jit(functools.partial(self.model.init, train=True))(rng, image, size)
        return variables["params"], {"batch_stats": variables["batch_stats"]}, {}

    def _losses(self, variables: PyTree, batch: Batch, rng: Array, train: bool):
        """Losses, and the batch statistics after the head and the tail have run."""
        size = image_sizes(batch)
        updates: dict[str, PyTree] = {}

        def apply(method: str, *args: Any) -> Any:
            kwargs = {"train": True} if train and method in ("features", "classify") else {}
            if not kwargs:
                return self.model.apply(variables, *args, method=method)
            out, new = self.model.apply(
                variables, *args, **kwargs, method=method, mutable=["batch_stats"]
            )
            # Each method updates only the statistics of its own modules.
            own = ("body", "fpn") if method == "features" else ("box_head",)
            updates.update({k: v for k, v in new["batch_stats"].items() if k in own})
            return out

        features = apply("features", batch["image"])
        losses = detection_losses(
            apply,
            {**batch, "features": features},
            size,
            rng,
            self.sampling,
            self.model.cfg.rpn_post_nms_train,
        )
        stats = {**variables["batch_stats"], **updates}
        return losses, {"batch_stats": stats}

    def loss(
        self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch, rng: Array, step: Array
    ) -> tuple[Array, LossAux]:
        """Sum of the four detection losses."""
        del frozen, step
        losses, stats = self._losses({"params": params, **stats}, batch, rng, train=True)
        return losses["total"], LossAux(metrics=losses, stats=stats)

    def eval_loss(self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """The same losses with stored statistics and a fixed sampling key, as sums over rows."""
        del frozen
        key = jax.random.key(0)
        losses, _ = self._losses({"params": params, **stats}, batch, key, train=False)
        count = batch["mask"].sum()
        sums = {name: value * count for name, value in losses.items() if name != "total"}
        return sums | {"count": count, "loss": losses["total"] * count}

    def after_update(self, params: PyTree, stats: PyTree, step: Array) -> PyTree:
        """Nothing moves after the update."""
        del params, step
        return stats

    def update_mask(self, params: PyTree, step: Array) -> PyTree | None:
        """Everything trains."""
        del params, step

    def detect(self, variables: Mapping[str, PyTree], image: Array, image_size: Array):
        """Whole network on a batch, see `FasterRCNN.detect`."""
        return self.model.apply(variables, image, image_size)
