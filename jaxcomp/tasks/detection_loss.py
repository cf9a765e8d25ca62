"""The four losses of Faster R-CNN (Ren et al., 2015, eq. 1; Girshick, 2015, eq. 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcomp.models.faster_rcnn import ROI_WEIGHTS, RPN_WEIGHTS
from jaxcomp.ops import boxes as box_ops
from jaxcomp.ops import matching
from jaxcomp.ops.losses import smooth_l1
from jaxcomp.types import Array

BETA = 1.0 / 9.0


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How many anchors and regions of an image enter the loss, and which count as positive."""

    anchors: int = 256
    anchor_positive_iou: float = 0.7
    anchor_negative_iou: float = 0.3
    regions: int = 512
    region_positive_share: float = 0.25
    region_iou: float = 0.5


def rpn_losses(
    logits: Array, deltas: Array, anchors: Array, batch: Mapping[str, Any], rng: Array,
    cfg: SamplingConfig,
) -> dict[str, tuple[Array, Array]]:  # fmt: skip
    """Objectness and box regression of the proposal network.

    Args:
      logits: [B, A].
      deltas: [B, A, 4].
      anchors: [A, 4].
      batch: with "boxes", "valid" and "ignore".
      rng: key of the sampling.
      cfg: thresholds and counts.

    Returns:
      {"rpn_class": (sum, count), "rpn_box": (sum, count)}, each [B]; both counts are the number of
      sampled anchors.
    """

    def one(logit, delta, boxes, valid, ignore, key):
        found = matching.assign(
            anchors,
            boxes,
            valid,
            ignore,
            positive_iou=cfg.anchor_positive_iou,
            negative_iou=cfg.anchor_negative_iou,
            low_quality=True,
        )
        rows, positive, drawn = matching.sample(
            key, found.positive, found.negative, cfg.anchors, 0.5
        )
        target = box_ops.encode(boxes[found.index[rows]], anchors[rows], RPN_WEIGHTS)
        error = smooth_l1(delta[rows] - target, BETA).sum(-1)
        entropy = optax.sigmoid_binary_cross_entropy(logit[rows], positive.astype(jnp.float32))
        count = drawn.sum().astype(jnp.float32)
        return (entropy * drawn).sum(), (error * positive).sum(), count

    keys = jax.random.split(rng, logits.shape[0])
    entropy, error, count = jax.vmap(one)(
        logits, deltas, batch["boxes"], batch["valid"], batch["ignore"], keys
    )
    return {"rpn_class": (entropy, count), "rpn_box": (error, count)}


def sample_regions(
    proposals: Array, valid: Array, batch: Mapping[str, Any], rng: Array, cfg: SamplingConfig
) -> dict[str, Array]:
    """Draws regions to classify; ground-truth boxes join the proposals.

    Args:
      proposals: [B, R, 4].
      valid: [B, R] bool.
      batch: with "boxes", "labels", "valid" and "ignore".
      rng: key of the sampling.
      cfg: thresholds and counts.

    Returns:
      {"boxes": [B, S, 4], "labels": [B, S], "targets": [B, S, 4], "drawn": [B, S] bool}.
    """

    def one(boxes, ok, truth, labels, truth_ok, ignore, key):
        boxes = jnp.concatenate([boxes, truth], 0)
        ok = jnp.concatenate([ok, truth_ok], 0)
        found = matching.assign(
            boxes,
            truth,
            truth_ok,
            ignore,
            positive_iou=cfg.region_iou,
            negative_iou=cfg.region_iou,
            low_quality=False,
        )
        rows, positive, drawn = matching.sample(
            key, found.positive & ok, found.negative & ok, cfg.regions, cfg.region_positive_share
        )
        matched = found.index[rows]
        return {
            "boxes": boxes[rows],
            "labels": jnp.where(positive, labels[matched], 0),
            "targets": box_ops.encode(truth[matched], boxes[rows], ROI_WEIGHTS),
            "drawn": drawn,
        }

    keys = jax.random.split(rng, proposals.shape[0])
    return jax.vmap(one)(
        jax.lax.stop_gradient(proposals),
        valid,
        batch["boxes"],
        batch["labels"],
        batch["valid"],
        batch["ignore"],
        keys,
    )


def region_losses(
    logits: Array, deltas: Array, regions: Mapping[str, Array]
) -> dict[str, tuple[Array, Array]]:
    """Classification and box regression of the box head.

    Args:
      logits: [B, S, K].
      deltas: [B, S, K, 4].
      regions: as made by `sample_regions`.

    Returns:
      {"box_class": (sum, count), "box_regression": (sum, count)}, each [B].
    """
    labels, drawn = regions["labels"], regions["drawn"].astype(jnp.float32)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = jnp.take_along_axis(deltas, labels[..., None, None], 2)[..., 0, :]
    error = smooth_l1(own - regions["targets"], BETA).sum(-1) * (labels > 0)
    count = drawn.sum(-1)
    return {
        "box_class": ((entropy * drawn).sum(-1), count),
        "box_regression": ((error * drawn).sum(-1), count),
    }


def detection_losses(
    apply: Callable[..., Any], batch: Mapping[str, Any], image_size: Array, rng: Array,
    cfg: SamplingConfig, proposals: int,
) -> dict[str, Array]:  # fmt: skip
    """All four losses of a batch, each a mean over the rows that `batch["mask"]` marks as real.

    Args:
      apply: `apply(method, *args)` runs a method of the network; "features" must have been run by
        the caller, who passes the pyramid through `batch["features"]`.
      batch: a detection batch with "features".
      image_size: [B, 2] (height, width).
      rng: key of the sampling.
      cfg: thresholds and counts.
      proposals: regions that the proposal network hands on.

    Returns:
      {"rpn_class", "rpn_box", "box_class", "box_regression", "total"} scalars.
    """
    features = batch["features"]
    logits, deltas, boxes, valid = apply("propose", features, image_size, proposals, True)
    anchors = jnp.concatenate([jnp.asarray(a) for a in apply("anchors", features)], 0)
    rpn_key, region_key = jax.random.split(rng)
    sums = rpn_losses(logits, deltas, anchors, batch, rpn_key, cfg)
    regions = sample_regions(boxes, valid, batch, region_key, cfg)
    class_logits, class_deltas = apply("classify", features, regions["boxes"])
    sums |= region_losses(class_logits, class_deltas, regions)
    mask = batch["mask"]
    losses = {
        name: (value * mask).sum() / jnp.maximum((count * mask).sum(), 1.0)
        for name, (value, count) in sums.items()
    }
    return losses | {"total": sum(losses.values())}
