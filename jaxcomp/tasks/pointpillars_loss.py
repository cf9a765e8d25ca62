"""The three losses of PointPillars (Lang et al., 2019, section 3.2; SECOND, Yan et al., 2018).

Focal loss of the class scores, smooth L1 of the box deltas with the sine of the yaw error, cross
entropy of the direction. Sums and counts are separate, so that the caller masks rows and divides
once for the whole batch; a batch without any object gives zeros, never NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcomp.models.pointpillars import BOX, PointPillarsConfig, anchors, per_anchor
from jaxcomp.ops import anchors3d
from jaxcomp.ops.losses import smooth_l1
from jaxcomp.types import Array


@dataclasses.dataclass(frozen=True)
class PointPillarsLossConfig:
    """Weights and shapes of the losses.

    Attributes:
      class_weight, box_weight, direction_weight: of the sum.
      alpha, gamma: of the focal loss (Lin et al., 2017).
      beta: where smooth L1 turns linear.
      original_sine: the yaw error of the implementation whose weights people have, which computes
        the second half of the sine difference from the result of the first; for comparisons.
    """

    class_weight: float = 1.0
    box_weight: float = 2.0
    direction_weight: float = 0.2
    alpha: float = 0.25
    gamma: float = 2.0
    beta: float = 1.0 / 9.0
    original_sine: bool = False


def assign_batch(batch: Mapping[str, Any], cfg: PointPillarsConfig) -> anchors3d.Targets:
    """Targets of a batch's objects, [B, A] each; see `anchors3d.assign`."""
    grid, kinds = anchors(cfg), cfg.kinds

    def one(boxes: Array, labels: Array, valid: Array) -> anchors3d.Targets:
        return anchors3d.assign(grid, boxes, labels, valid, kinds)

    return jax.vmap(one)(batch["boxes"], batch["labels"], batch["valid"])


def focal(logits: Array, target: Array, alpha: float, gamma: float) -> Array:
    """Focal loss of independent classes, elementwise; `target` is 0 or 1."""
    probability = jax.nn.sigmoid(logits)
    miss = target * (1 - probability) + (1 - target) * probability
    weight = target * alpha + (1 - target) * (1 - alpha)
    return weight * miss**gamma * optax.sigmoid_binary_cross_entropy(logits, target)


def yaw_error(predicted: Array, target: Array, original_sine: bool = False) -> Array:
    """sin(predicted - target), as the difference of products; see `PointPillarsLossConfig`."""
    first = jnp.sin(predicted) * jnp.cos(target)
    seen = first if original_sine else predicted
    return first - jnp.cos(seen) * jnp.sin(target)


def loss_sums(
    maps: Mapping[str, Array],
    batch: Mapping[str, Any],
    cfg: PointPillarsConfig,
    loss: PointPillarsLossConfig,
) -> dict[str, tuple[Array, Array]]:
    """Sums over the anchors of every row, and what they are to be divided by.

    Args:
      maps: raw maps of the network.
      batch: "boxes" [B, M, 7], "labels" [B, M] (-1: an object of no class), "valid" [B, M].
      cfg: sizes of the network.
      loss: weights.

    Returns:
      {"class": (sum, count), "box": ..., "direction": ...}, each [B] float32, unweighted. The count
      of the class loss is the anchors that belong to any object, also one of no class; that of the
      others those of objects with a class.
    """
    flat = per_anchor(dict(maps), cfg)
    target = assign_batch(batch, cfg)
    classes = len(cfg.classes)
    # one_hot of -1 and of the background is all zeros.
    one_hot = jax.nn.one_hot(target.labels, classes)
    cost = focal(flat["classes"], one_hot, loss.alpha, loss.gamma).sum(-1)
    class_sum = (cost * target.counts).sum(1)
    near = target.matched.astype(jnp.float32).sum(1)

    positive = target.matched & (target.labels >= 0)
    count = positive.astype(jnp.float32).sum(1)
    prior = jnp.asarray(anchors(cfg).reshape(1, -1, BOX))
    own = jnp.take_along_axis(batch["boxes"], target.index[..., None], 1)
    wanted = anchors3d.encode(own, prior)
    error = flat["boxes"][..., :6] - wanted[..., :6]
    turn = yaw_error(flat["boxes"][..., 6:], wanted[..., 6:], loss.original_sine)
    box_cost = smooth_l1(jnp.concatenate([error, turn], -1), loss.beta).sum(-1)
    direction = optax.softmax_cross_entropy_with_integer_labels(
        flat["directions"], anchors3d.direction_labels(own[..., 6])
    )
    # `where`, not a product: what a box far from its anchor gives must not spoil the sum.
    box_sum, direction_sum = (
        jnp.where(positive, value, 0.0).sum(1) for value in (box_cost, direction)
    )
    return {
        "class": (class_sum, near),
        "box": (box_sum, count),
        "direction": (direction_sum, count),
    }


def pointpillars_losses(
    maps: Mapping[str, Array],
    batch: Mapping[str, Any],
    cfg: PointPillarsConfig,
    loss: PointPillarsLossConfig,
) -> dict[str, Array]:
    """The losses of a batch over the rows that `batch["mask"]` marks (all rows without one).

    Returns:
      {"class", "box", "direction"} unweighted, each sum / max(count, 1) over the whole batch, and
      "total", their weighted sum: float32 scalars.
    """
    sums = loss_sums(maps, batch, cfg, loss)
    mask = batch["mask"] if "mask" in batch else jnp.ones(batch["boxes"].shape[0])
    losses = {
        name: (value * mask).sum() / jnp.maximum((count * mask).sum(), 1.0)
        for name, (value, count) in sums.items()
    }
    total = (
        loss.class_weight * losses["class"]
        + loss.box_weight * losses["box"]
        + loss.direction_weight * losses["direction"]
    )
    return losses | {"total": total}
