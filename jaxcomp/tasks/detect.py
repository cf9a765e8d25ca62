"""Task: train the detector whose features the codecs send."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.evaluate.detection import image_sizes
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN
from jaxcomp.models.transform import frames_of
from jaxcomp.tasks.detection_loss import SamplingConfig, detection_losses
from jaxcomp.types import Array, Batch, LossAux, Metrics, PyTree, Task


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


class DetectTask(Task):
    """Faster R-CNN on a detection data set; batch statistics live in `stats`."""

    def __init__(
        self,
        model: FasterRCNN,
        sampling: SamplingConfig,
        canvas: tuple[int, int],
        *,
        frozen_stages: int = 0,
        initial: Callable[[], Mapping[str, PyTree] | None] = lambda: None,
    ):
        """Describes the task.

        Args:
          model: the network.
          sampling: of the losses.
          canvas: (rows, columns) of the network's input, for batches of native images.
          frozen_stages: parts of the body whose parameters never move: 1 the stem, 2 with the
            first stage, up to 5, the whole body.
          initial: gives the variables to start from, None for random ones; called by `init`.
        """
        self.model = model
        self.sampling = sampling
        self.canvas = canvas
        self.frozen_stages = frozen_stages
        self.initial = initial

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """Random parameters, or the given ones; nothing travels beside the state."""
        variables = self.initial()
        if variables is None:
            image = frames_of({k: v[:1] for k, v in batch.items()}, self.canvas)
            size = image_sizes(batch)[:1]
            make = jax.jit(functools.partial(self.model.init, train=True))
            variables = make(rng, jax.tree.map(jnp.asarray, image), size)
        # Copies: the trainer donates its state.
        own = jax.tree.map(jnp.array, dict(variables))
        return own["params"], {"batch_stats": own["batch_stats"]}, {}

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

        features = apply("features", frames_of(batch, self.canvas))
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

    def update_mask(self, params: PyTree, step: Array) -> PyTree | None:
        """0 for the frozen parts of the body, 1 for the rest; None where everything trains."""
        del step
        if not self.frozen_stages:
            return None
        stages = ("stem", *(f"stage{i}_" for i in range(1, 5)))[: self.frozen_stages]
        body = {name: 0.0 if name.startswith(stages) else 1.0 for name in params["body"]}
        return {name: body if name == "body" else 1.0 for name in params}
