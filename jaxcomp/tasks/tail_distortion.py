"""A distortion that asks the frozen tail: how far do its layers move when features are coded?

    T_l = hidden + objectness + anchor boxes + region hidden + classes + region boxes

of one pyramid level l, each term without labels, against what the same layers give for the features
before coding:

- hidden maps of the RPN and hidden vectors of the box head: squared error over mean square,
- objectness: Kullback-Leibler divergence of the two Bernoulli distributions, summed over anchors
  and divided by one plus the expected number of objects,
- classes: Kullback-Leibler divergence of the two softmax distributions, mean over regions,
- boxes: smooth L1 of the deltas, weighted by how sure the tail was that there is an object.

The regions are the best proposals of the uncoded pyramid. Feature error alone weighs background and
objects alike, and loses to image codecs (the reasoning and the term by term idea are those of
knowledge distillation for detectors: Hinton et al., 2015; Chen et al., 2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.models.faster_rcnn import STRIDES, FasterRCNN
from jaxcomp.models.fpn import LEVELS
from jaxcomp.ops.losses import bernoulli_divergence, smooth_l1
from jaxcomp.types import Array, Batch, Features, PyTree

BOX_BETA = 1.0
_TINY = 1e-6
REGIONS = "regions_"  # + level: where a batch of cached features holds regions


@dataclasses.dataclass(frozen=True)
class TailDistortion:
    """The tail of a detector as a judge of coded features.

    Attributes:
      model: the detector; its variables are the task's frozen ones.
      weight: of the tail's distortion in the loss.
      feature_weight: of the squared error of the features beside it.
      regions: pooled regions per level and frame.
      head: `head(frozen, batch) -> pyramid`, used when a batch holds images.
    """

    model: FasterRCNN
    weight: float
    feature_weight: float = 1.0
    regions: int = 16
    head: Callable[[PyTree, Batch], Features] | None = None

    def propose(self, variables: PyTree, pyramid: Features, image_size: Array) -> dict[str, Array]:
        """{"regions_p2": [B, R, 4], ...} in network pixels; see `FasterRCNN.level_regions`."""
        found = self.model.apply(
            variables, pyramid, image_size, self.regions, method="level_regions"
        )
        return {REGIONS + name: boxes for name, boxes in found.items()}

    def level(self, variables: PyTree, name: str, x: Array, x_hat: Array, boxes: Array) -> Array:
        """T_l of each frame, [B], for features [B, H, W, C] of level `name` before and after."""
        stride = (*STRIDES, 2 * STRIDES[-1])[LEVELS.index(name)]

        def outputs(features: Array) -> Any:
            return self.model.apply(variables, features, boxes, stride, method="level_outputs")

        return distance(jax.lax.stop_gradient(outputs(x)), outputs(x_hat), real_regions(boxes))


def real_regions(boxes: Array) -> Array:
    """[B, R] float32: 1 for boxes with an area."""
    return ((boxes[..., 2:] - boxes[..., :2]).min(-1) > 0).astype(jnp.float32)


def distance(target: Mapping[str, Array], found: Mapping[str, Array], real: Array) -> Array:
    """T_l, [B], from `FasterRCNN.level_outputs` before and after coding and real regions [B, R]."""
    sure = jax.nn.sigmoid(target["objectness"])
    expected = 1.0 + sure.sum(-1)
    anchors = bernoulli_divergence(target["objectness"], found["objectness"]).sum(-1)
    anchor_boxes = smooth_l1(found["anchor_deltas"] - target["anchor_deltas"], BOX_BETA).sum(-1)
    total = _relative(target["hidden"], found["hidden"], (1, 2, 3))
    total += (anchors + (sure * anchor_boxes).sum(-1)) / expected
    share = real / jnp.maximum(real.sum(-1, keepdims=True), 1.0)
    chance = jax.nn.softmax(target["classes"])
    classes = chance * (
        jax.nn.log_softmax(target["classes"]) - jax.nn.log_softmax(found["classes"])
    )
    boxes = smooth_l1(found["box_deltas"] - target["box_deltas"], BOX_BETA).sum(-1)
    of_region = _relative(target["box_hidden"], found["box_hidden"], (2,))
    of_region += classes.sum(-1) + (chance[..., 1:] * boxes[..., 1:]).sum(-1)
    return total + (share * of_region).sum(-1)


def _relative(target: Array, found: Array, axes: tuple[int, ...]) -> Array:
    error = jnp.square(target - found).mean(axes)
    return error / (jnp.square(target).mean(axes) + _TINY)
