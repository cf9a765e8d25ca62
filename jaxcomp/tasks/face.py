"""Task: train a light face detector, alone or with a larger one as its teacher."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.models.featherface import (
    FaceConfig,
    FaceDetector,
    normalise_face_image,
    priors,
)
from jaxcomp.tasks import face_loss
from jaxcomp.tasks.face_loss import FaceLossConfig
from jaxcomp.tasks.face_mixing import drop_blocks, mix
from jaxcomp.types import Array, Batch, LossAux, Metrics, PyTree, Task

STRATEGIES = ("linear", "cosine", "exponential", "adaptive")
# First names of parameters' paths: what gradient norms are told by.
LAYER_GROUPS = ("body", "body_gates", "neck", "neck_gates", "context", "mixer", "outputs")


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How a teacher helps, and for how long.

    The loss is (1 - alpha) task + alpha outputs + feature_weight features. Alpha is a function of
    the step alone: it starts at `alpha_initial` and ends at `alpha_final` with the run.

    Attributes:
      alpha_initial, alpha_final: weight of the teacher's outputs at the first and last step.
      strategy: "linear", "cosine" or "exponential" in between. "adaptive" goes below the linear one
        where the teacher is not better: what it has above `alpha_final` is multiplied by the share
        of the student's loss that the teacher does not have on the same batch.
      temperature: that softens the classes.
      feature_weight: of the body's maps.
      boxes: whether the teacher's boxes and landmarks count too, not only its classes.
      body_only: of the teacher only the body's maps count; alpha is 0.
      total_steps: of the run.
    """

    alpha_initial: float = 0.8
    alpha_final: float = 0.5
    strategy: str = "cosine"
    temperature: float = 4.0
    feature_weight: float = 0.1
    boxes: bool = True
    body_only: bool = False
    total_steps: int = 1

    def alpha(self, step: Array) -> Array:
        """The weight at a step, before what "adaptive" takes away."""
        if self.body_only:
            return jnp.zeros((), jnp.float32)
        share = jnp.clip(step / max(self.total_steps - 1, 1), 0.0, 1.0)
        start, end = self.alpha_initial, self.alpha_final
        if self.strategy == "cosine":
            return end + (start - end) / 2 * (1 + jnp.cos(math.pi * share))
        if self.strategy == "exponential":
            return start * (end / start) ** share
        return start + (end - start) * share

    def adapted(self, alpha: Array, student: Array, teacher: Array) -> Array:
        """The weight that is used, given the losses of both on the batch."""
        if self.strategy != "adaptive" or self.body_only:
            return alpha
        better = jnp.clip(1 - teacher / jnp.maximum(student, 1e-6), 0.0, 1.0)
        return self.alpha_final + (alpha - self.alpha_final) * jax.lax.stop_gradient(better)


@dataclasses.dataclass(frozen=True)
class Regularisation:
    """What training does to images and features beyond the data's augmentation.

    Attributes:
      mixup: parameter of the beta distribution of the mixed images' weights; 0 is off.
      cutmix: share of batches with pasted rectangles.
      dropblock: share of the pyramid's places that are dropped, in squares of
      block: places a side (odd).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    dropblock: float = 0.0
    block: int = 3


def init_variables(model: FaceDetector, rng: Array) -> dict[str, PyTree]:
    """Random parameters and fresh statistics; no shape depends on the image.

    Drawn with the backend's own generator: some two hundred draws of JAX's default one take longer
    to compile than the network.
    """
    key = jax.random.wrap_key_data(jax.random.bits(rng, (4,), jnp.uint32), impl="unsafe_rbg")
    image = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    return dict(jax.jit(functools.partial(model.init, train=True))(key, image))


class FaceTask(Task):
    """A face detector on images with faces; batch statistics live in `stats`.

    Batches hold "image" uint8 [B, H, W, 3] RGB, "boxes" [B, M, 4] corners and "landmarks"
    [B, M, 10] as fractions of the image, "labels" [B, M] (1, -1 without landmarks, 0 padding),
    "mask" [B].
    """

    def __init__(
        self,
        model: FaceDetector,
        loss: FaceLossConfig,
        *,
        initial: Callable[[], Mapping[str, PyTree] | None] = lambda: None,
        teacher: tuple[FaceDetector, Mapping[str, PyTree]] | None = None,
        distillation: Distillation | None = None,
        regularisation: Regularisation | None = None,
        monitor_gradients: bool = True,
    ):
        """Describes the task.

        Args:
          model: the network.
          loss: weights and limits of the losses.
          initial: gives the variables to start from, None for random ones; called by `init`.
          teacher: another network with its variables; None trains alone.
          distillation: how the teacher helps.
          regularisation: of training batches.
          monitor_gradients: tell the gradient's norm by group of layers too.
        """
        self.model, self.loss_config, self.initial = model, loss, initial
        self.teacher = teacher[0] if teacher else None
        self.frozen: dict[str, Any] = {"teacher": dict(teacher[1])} if teacher else {}
        self.distillation = distillation or Distillation()
        self.regularisation = regularisation or Regularisation()
        if monitor_gradients:
            self.gradient_group = gradient_group

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """Random parameters, or the given ones; the teacher travels beside the state."""
        del batch
        variables = self.initial() or init_variables(self.model, rng)
        # Copies: the trainer donates its state.
        own = jax.tree.map(jnp.array, dict(variables))
        return own["params"], {"batch_stats": own["batch_stats"]}, self.frozen

    def loss(
        self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch, rng: Array, step: Array
    ) -> tuple[Array, LossAux]:
        """MultiBox loss, and the distance from the teacher where there is one."""
        extra = self.regularisation
        keys = jax.random.split(rng, 2)
        batch = mix(batch, keys[0], extra.mixup, extra.cutmix)
        variables = {"params": params, **stats}
        drop = functools.partial(drop_blocks, keys[1], extra.dropblock, extra.block)
        run = functools.partial(_run, drop=drop, train=True)
        (maps, body), new = self.model.apply(
            variables, batch["image"], method=run, mutable=["batch_stats"]
        )
        losses, wanted = self._losses(maps, batch, self.model.cfg)
        total, metrics = losses.pop("total"), dict(losses)
        if self.teacher is not None:
            total, more = self._distil(frozen, batch, (maps, body), total, wanted, step)
            metrics |= more
        return total, LossAux(metrics=metrics, stats=dict(new))

    def _losses(
        self, maps: dict[str, Array], batch: Batch, cfg: FaceConfig
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Losses and targets; of a mixed batch the mean of both, weighted, and the first's."""
        anchors = priors(batch["image"].shape[1:3], cfg)
        wanted = face_loss.targets(batch, anchors, self.loss_config, cfg.variances)
        losses = face_loss.face_losses(maps, wanted, self.loss_config)
        if "share" not in batch:
            return losses, wanted
        other = {k: jnp.roll(v, 1, 0) for k, v in wanted.items()}
        second = face_loss.face_losses(maps, other, self.loss_config)
        share = batch["share"]
        return {k: share * v + (1 - share) * second[k] for k, v in losses.items()}, wanted

    def _distil(
        self, frozen: PyTree, batch: Batch, student: Any, task: Array, wanted: Any, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        assert self.teacher is not None
        how = self.distillation
        found: Any = self.teacher.apply(frozen["teacher"], batch["image"], method=_run)
        maps, body = jax.tree.map(jax.lax.stop_gradient, found)
        outputs = face_loss.output_distillation(
            student[0], maps, wanted, self.loss_config, how.temperature, how.boxes
        )
        alpha = how.alpha(step)
        if how.strategy == "adaptive":
            own = face_loss.face_losses(maps, wanted, self.loss_config)["total"]
            alpha = how.adapted(alpha, jax.lax.stop_gradient(task), own)
        metrics = {"task_loss": task, "distil": outputs, "alpha": alpha}
        total = (1 - alpha) * task + alpha * outputs
        if how.feature_weight:
            metrics["feature_distil"] = face_loss.feature_distillation(student[1], body)
            total += how.feature_weight * metrics["feature_distil"]
        return total, metrics

    def eval_loss(self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """The MultiBox loss with stored statistics, as sums over rows."""
        del frozen
        maps: Any = self.model.apply({"params": params, **stats}, batch["image"])
        losses, _ = self._losses(maps, batch, self.model.cfg)
        count = batch["mask"].sum()
        sums = {name: value * count for name, value in losses.items() if name != "total"}
        return sums | {"count": count, "loss": losses["total"] * count}


def gradient_group(path: str) -> str:
    """The group of layers of a parameter's path, as "neck" of "neck/cell0/adapt0/kernel"."""
    first = path.split("/", 1)[0]
    return first.rstrip("0123456789").rstrip("_")


def _run(
    model: FaceDetector,
    image: Array,
    *,
    drop: Callable[[dict[str, Array]], dict[str, Array]] = lambda features: features,
    train: bool = False,
) -> tuple[dict[str, Array], list[Array]]:
    """(Raw predictions, maps of the body) of images."""
    body = model.body_maps(normalise_face_image(image), train)
    features = drop(dict(model.pyramid_of(body, train)))
    return model.tail(features, train), body


def face_loss_config(section: Any) -> FaceLossConfig:
    """The losses' weights and limits from a config's `loss` section."""
    return FaceLossConfig(**dict(section))


def distillation_config(section: Any, total_steps: int) -> Distillation:
    """From a config's `distil` section, for a run of so many steps."""
    names = Distillation.__dataclass_fields__
    values = {k: v for k, v in dict(section).items() if k in names}
    return Distillation(**values, total_steps=total_steps)


def face_model_config(section: Any) -> FaceConfig:
    """The network's sizes from a config's `model` section; other keys are left alone."""
    names = FaceConfig.__dataclass_fields__
    return FaceConfig(**{k: _frozen(v) for k, v in dict(section).items() if k in names})


def _frozen(value: Any) -> Any:
    """Lists, as JSON gives them, to tuples at every depth."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def size_of(batch: Batch) -> tuple[int, int]:
    """(rows, columns) of the images."""
    height, width = np.shape(batch["image"])[1:3]
    return height, width
