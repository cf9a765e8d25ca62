"""MultiBox losses of single-shot face detectors, with distillation.

Liu et al., "SSD", 2016, arXiv:1512.02325 (matching, hard negatives); Deng et al., "RetinaFace",
2019, arXiv:1905.00641 (landmarks). Boxes and landmarks are fractions of the image, see
`ops.priors`. Faces are padded to a fixed number; a label is 1, -1 (a face without landmarks) or 0
(padding).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.ops import priors as prior_ops
from jaxcomp.types import Array, Batch

Losses = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class FaceLossConfig:
    """Weights and limits of the losses.

    Attributes:
      box_weight, class_weight, landmark_weight: of the three terms.
      positive_iou: an anchor with less overlap is background unless it is a face's best.
      forced_iou: a face whose best anchor overlaps it by less forces nothing.
      negatives: hard negatives for each positive of the same image.
    """

    box_weight: float = 2.0
    class_weight: float = 1.0
    landmark_weight: float = 1.0
    positive_iou: float = 0.35
    forced_iou: float = 0.2
    negatives: float = 7.0


def smooth_l1(x: Array) -> Array:
    """Huber's loss with its corner at one, elementwise (Girshick, "Fast R-CNN", 2015)."""
    size = jnp.abs(x)
    return jnp.where(size < 1.0, 0.5 * x * x, size - 0.5)


def overlaps(boxes: Array, priors: np.ndarray) -> Array:
    """Intersection over union of boxes [M, 4] (corners) and anchors [A, 4] (centre, size)."""
    low, high = priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2
    near = jnp.maximum(boxes[:, None, :2], low[None])
    far = jnp.minimum(boxes[:, None, 2:], high[None])
    shared = jnp.clip(far - near, 0.0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return shared / jnp.maximum(areas[:, None] + priors[:, 2:].prod(-1)[None] - shared, 1e-12)


def match(boxes: Array, labels: Array, priors: np.ndarray, cfg: FaceLossConfig) -> Array:
    """The face of each anchor of one image.

    Each anchor belongs to the face it overlaps most. The best anchor of each face belongs to it in
    any case (of faces that share one, the later wins), and counts however little it overlaps if
    the face overlaps it by `forced_iou` at least. Where no face does, nothing matches.

    Args:
      boxes: [M, 4] corners.
      labels: [M], 0 for padding.
      priors: [A, 4].
      cfg: limits.

    Returns:
      int32 [A], the row of the face, or -1 for background.
    """
    real = labels != 0
    overlap = jnp.where(real[:, None], overlaps(boxes, priors), -1.0)
    best_prior, best_value = overlap.argmax(1), overlap.max(1)
    face, value = overlap.argmax(0).astype(jnp.int32), overlap.max(0)
    rows = jnp.arange(len(boxes), dtype=jnp.int32)
    owner = jnp.full(len(priors), -1, jnp.int32).at[best_prior].max(jnp.where(real, rows, -1))
    forcing = real & (best_value >= cfg.forced_iou)
    forced = jnp.zeros(len(priors), bool).at[best_prior].max(forcing)
    face = jnp.where(owner >= 0, owner, face)
    positive = (forced | (value >= cfg.positive_iou)) & forcing.any()
    return jnp.where(positive, face, -1)


def targets(
    batch: Batch, priors: np.ndarray, cfg: FaceLossConfig, variances: tuple[float, float]
) -> dict[str, Array]:
    """What each anchor of each image should predict.

    Args:
      batch: "boxes" [B, M, 4] corners, "landmarks" [B, M, 10], "labels" [B, M], "mask" [B].
      priors: [A, 4].
      cfg: limits.
      variances: see `ops.priors`.

    Returns:
      {"labels": [B, A] 1, -1 or 0, "boxes": [B, A, 4], "landmarks": [B, A, 10] encoded}.
    """
    labels = batch["labels"] * (batch["mask"] > 0)[:, None]
    index = jax.vmap(lambda b, k: match(b, k, priors, cfg))(batch["boxes"], labels)
    safe = jnp.maximum(index, 0)
    kind = jnp.where(index >= 0, jnp.take_along_axis(labels, safe, 1), 0)
    boxes, points = (
        jnp.take_along_axis(batch[name], safe[..., None], 1) for name in ("boxes", "landmarks")
    )
    return {
        "labels": kind,
        "boxes": prior_ops.encode_boxes(boxes, priors, variances),
        "landmarks": prior_ops.encode_landmarks(points, priors, variances),
    }


def hard_negatives(cost: Array, positive: Array, ratio: float) -> Array:
    """The negatives of each image that cost most.

    Args:
      cost: [B, A] classification loss.
      positive: [B, A] bool.
      ratio: negatives for each positive of the image.

    Returns:
      [B, A] bool.
    """
    ranked = jax.lax.stop_gradient(jnp.where(positive, -jnp.inf, cost))
    rank = jnp.argsort(jnp.argsort(-ranked, axis=1, stable=True), axis=1, stable=True)
    count = jnp.minimum(ratio * positive.sum(1), cost.shape[1] - 1)
    return (rank < count[:, None]) & ~positive


def cross_entropy(logits: Array, positive: Array) -> Array:
    """[..., 2] logits and [...] bool -> [...] nats."""
    log_probability = jax.nn.log_softmax(logits)
    return -jnp.where(positive, log_probability[..., 1], log_probability[..., 0])


def face_losses(maps: dict[str, Array], wanted: dict[str, Array], cfg: FaceLossConfig) -> Losses:
    """The MultiBox loss of a batch.

    Args:
      maps: as `FaceDetector.tail` gives them.
      wanted: as `targets` gives them.
      cfg: weights.

    Returns:
      {"box", "class", "landmark", "total", "positives"}: box and class are sums over anchors
      divided by the number of positive ones, landmark by that of those with landmarks.
    """
    positive, marked = wanted["labels"] != 0, wanted["labels"] > 0
    count = jnp.maximum(positive.sum(), 1).astype(jnp.float32)
    box = (smooth_l1(maps["boxes"] - wanted["boxes"]).sum(-1) * positive).sum() / count
    # Missing landmarks are far outside; they must not reach the sum even as zero times infinity.
    aim = jnp.where(marked[..., None], wanted["landmarks"], 0.0)
    points = smooth_l1(maps["landmarks"] - aim).sum(-1)
    landmark = (points * marked).sum() / jnp.maximum(marked.sum(), 1)
    cost = cross_entropy(maps["classes"], positive)
    used = positive | hard_negatives(cost, positive, cfg.negatives)
    classes = (cost * used).sum() / count
    total = (
        cfg.box_weight * box + cfg.class_weight * classes + cfg.landmark_weight * landmark
    )  # fmt: skip
    losses = {"box": box, "class": classes, "landmark": landmark, "total": total}
    return losses | {"positives": positive.sum() / len(positive)}


def output_distillation(
    student: dict[str, Array],
    teacher: dict[str, Array],
    wanted: dict[str, Array],
    cfg: FaceLossConfig,
    temperature: float,
    boxes: bool,
) -> Array:
    """How far the student's predictions are from the teacher's.

    Kullback-Leibler divergence of the classes at a temperature T, times T² (Hinton et al., 2015,
    arXiv:1503.02531), on the anchors that the classification loss counts: positives and the
    student's hard negatives; with `boxes` also the smooth L1 distance of boxes and landmarks of the
    positives. Divided by the number of positives, so that it weighs as the task's own loss does and
    does not grow with the batch.
    """
    positive = wanted["labels"] != 0
    count = jnp.maximum(positive.sum(), 1).astype(jnp.float32)
    cost = cross_entropy(student["classes"], positive)
    used = positive | hard_negatives(cost, positive, cfg.negatives)
    ours = jax.nn.log_softmax(student["classes"] / temperature)
    theirs = jax.nn.log_softmax(teacher["classes"] / temperature)
    divergence = (jnp.exp(theirs) * (theirs - ours)).sum(-1)
    total = cfg.class_weight * (divergence * used).sum() * temperature**2
    if boxes:
        weights = {"boxes": cfg.box_weight, "landmarks": cfg.landmark_weight}
        for name, weight in weights.items():
            distance = smooth_l1(student[name] - teacher[name]).sum(-1)
            total = total + weight * (distance * positive).sum()
    return total / count


def feature_distillation(student: list[Array], teacher: list[Array]) -> Array:
    """Mean squared difference of the bodies' maps [B, H, W, C], mean over the levels."""
    pairs = zip(student, teacher, strict=True)
    distances = [jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean() for a, b in pairs]
    return jnp.stack(distances).mean()
