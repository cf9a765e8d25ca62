"""What the frozen tail of a face detector sees of coded features, without labels.

    T_l = (0.1 hidden + faces + boxes + landmarks / 4) / places

of one pyramid level l, each term against what the same layers give for the features before coding:

- hidden maps before the outputs: squared error over mean square, summed over places, each counted
  by how likely it is part of a face, and a little where there is none,
- faces: Kullback-Leibler divergence of the two Bernoulli distributions of each anchor, weighted by
  the root of the larger of both chances of a face: a lost face and a false one cost, and the many
  anchors of background do not outweigh them. (By the chance itself, weak faces were lost.)
- boxes and landmarks: smooth L1 of the regressions, weighted by the square of the chance before.
  Those of background are never used, but reach hundreds: weighted by the chance itself, they and
  not the faces decided where the bits went (docs/faces.md has the shares).

`places` are those of P3 on the same image, whatever the level. So T is an error per area as the
rate is one, and a face weighs the same against its bits in a crop and in a whole photo, at any
size. The idea is that of `tail_distortion`, for a detector without proposals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcomp.models.featherface import FACE, FACE_LEVELS, FaceDetector
from jaxcomp.ops.losses import bernoulli_divergence, smooth_l1
from jaxcomp.types import Array, Batch, Features, PyTree

HIDDEN = 0.1  # weight of the hidden maps: a face has ten times as many places there as anchors
BACKGROUND = 0.01  # what a place without a face counts in them
REACH = 5  # places around one with a face that count like it
LANDMARKS = 0.25  # weight of the landmarks beside the boxes
_TINY = 1e-6


@dataclasses.dataclass(frozen=True)
class FaceDistortion:
    """The tail of a face detector as a judge of coded features; see `TailDistortion`.

    Attributes:
      model: the detector; its variables are the task's frozen ones.
      weight: of the tail's distortion in the loss.
      feature_weight: of the squared error of the features beside it.
      head: `head(frozen, batch) -> pyramid`, used when a batch holds images.
    """

    model: FaceDetector
    weight: float
    feature_weight: float = 1.0
    head: Callable[[PyTree, Batch], Features] | None = None

    def propose(self, variables: PyTree, pyramid: Features, image_size: Array) -> dict[str, Array]:
        """Nothing: every place of a level is judged."""
        del variables, pyramid, image_size
        return {}

    def level(self, variables: PyTree, name: str, x: Array, x_hat: Array, boxes: Array) -> Array:
        """T_l of each frame, [B], for features [B, H, W, C] of level `name` before and after."""
        del boxes

        model = self.model.clone(loops=True)  # gradients pass through it in every step

        def outputs(features: Array) -> Any:
            return level_outputs(model, variables, name, features)

        steps = self.model.cfg.steps
        finer = (steps[FACE_LEVELS.index(name)] / steps[0]) ** 2
        total = distance(jax.lax.stop_gradient(outputs(x)), outputs(x_hat))
        return total / (finer * x.shape[1] * x.shape[2])


def level_outputs(
    model: FaceDetector, variables: PyTree, name: str, features: Array
) -> dict[str, Array]:
    """The tail of one level: its hidden map [B, H, W, C], and its outputs as of `Outputs`.

    Levels meet in the head alone, so that the others may be anything; empty ones cost nothing.
    """
    place = FACE_LEVELS.index(name)

    def run(model: FaceDetector, x: Array) -> dict[str, Array]:
        none = jnp.zeros((x.shape[0], 1, 1, x.shape[3]), x.dtype)
        levels = {level: x if level == name else none for level in FACE_LEVELS}
        hidden = model.mixed(model.contexts(levels))[place]
        return {"hidden": hidden.astype(jnp.float32), **model.outputs[place](hidden)}

    return dict(model.apply(variables, features, method=run))  # type: ignore[arg-type]


def distance(target: Mapping[str, Array], found: Mapping[str, Array]) -> Array:
    """Sum over places and anchors, [B], from `level_outputs` before and after coding."""
    before, after = (_logit(maps["classes"]) for maps in (target, found))
    sure = jax.nn.sigmoid(before)
    either = jnp.maximum(sure, jax.lax.stop_gradient(jax.nn.sigmoid(after)))
    boxes, points = (
        smooth_l1(found[name] - target[name], 1.0).sum(-1) for name in ("boxes", "landmarks")
    )
    faces = jnp.sqrt(either) * bernoulli_divergence(before, after)
    regressions = jnp.square(sure) * (boxes + LANDMARKS * points)
    hidden = _hidden_error(target["hidden"], found["hidden"], sure)
    return HIDDEN * hidden + (faces + regressions).sum(-1)


def _logit(classes: Array) -> Array:
    """[B, A] log odds of a face from class logits [B, A, 2]."""
    return classes[..., FACE] - classes[..., 1 - FACE]


def _hidden_error(target: Array, found: Array, sure: Array) -> Array:
    """Relative squared error, [B], of maps [B, H, W, C], weighted by the chance of a face."""
    shape = target.shape[:3]
    places = sure.reshape(*shape, -1).max(-1, keepdims=True)
    near = nn.max_pool(places, (REACH, REACH), padding="SAME")[..., 0]
    error = jnp.square(target - found).mean(-1)
    energy = jnp.square(target).mean((1, 2, 3)) + _TINY
    return ((near + BACKGROUND) * error).sum((1, 2)) / energy
