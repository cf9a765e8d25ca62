"""Faster R-CNN with a feature pyramid, cut at the pyramid (Ren et al., 2015; Lin et al., 2017).

    image ── transform ── ResNet ── FPN ──► P2..P6 ──► RPN ──► proposals ──► RoIAlign ── box head
    └────────────── head ──────────────┘   └───────────────────── tail ─────────────────────────┘

Every shape is static: proposals and detections are padded and carry a validity mask.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.models.fpn import FPN, LEVELS
from jaxcomp.models.layers import ConvNorm
from jaxcomp.models.resnet import ResNet
from jaxcomp.models.transform import Frames, network_input
from jaxcomp.ops import boxes as box_ops
from jaxcomp.ops import nms, roi_align
from jaxcomp.types import Array, Features

ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
STRIDES = (4, 8, 16, 32)  # of P2..P5, the levels that boxes are pooled from
MIN_PROPOSAL = 1e-3  # pixels; thinner proposals are dropped
SIZE_MULTIPLE = 32  # images are padded to it, so that P5 tells the padded size


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Sizes of the detector; the defaults are torchvision's `fasterrcnn_resnet50_fpn_v2`.

    Attributes:
      num_classes: classes with the background (label 0).
      stem_features, stage_blocks, stage_features, bottleneck: see `ResNet`.
      fpn_features: channels of P2..P6.
      anchor_sizes: side of the square anchor of each level, pixels.
      anchor_ratios: height / width.
      rpn_convs: 3x3 convolutions before the RPN's outputs.
      rpn_pre_nms, rpn_post_nms: proposals per level before, and per image after suppression.
      rpn_pre_nms_train, rpn_post_nms_train: the same in training.
      rpn_iou: overlap above which proposals suppress each other.
      pool_size: RoIAlign output.
      canonical_size: box size, in pixels, that belongs to level 4.
      box_convs, box_conv_features, box_fc: the box head; one hidden layer after the convolutions.
      score_threshold, detection_iou, max_detections: post-processing.
      detection_pre_nms: candidates (region and class) that enter the last suppression; torchvision
        takes all, which 1,000 regions of two classes are.
      freeze_norm: batch normalisation keeps its statistics in training.
      dtype: compute type.
    """

    num_classes: int = 3
    stem_features: int = 64
    stage_blocks: tuple[int, ...] = (3, 4, 6, 3)
    stage_features: tuple[int, ...] = (256, 512, 1024, 2048)
    bottleneck: bool = True
    fpn_features: int = 256
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_convs: int = 2
    rpn_pre_nms: int = 1000
    rpn_post_nms: int = 1000
    rpn_pre_nms_train: int = 2000
    rpn_post_nms_train: int = 2000
    rpn_iou: float = 0.7
    pool_size: int = 7
    canonical_size: float = 224.0
    box_convs: int = 4
    box_conv_features: int = 256
    box_fc: int = 1024
    score_threshold: float = 0.05
    detection_iou: float = 0.5
    max_detections: int = 100
    detection_pre_nms: int = 2000
    freeze_norm: bool = False
    dtype: str = "float32"


class RegionProposalNetwork(nn.Module):
    """The RPN head, shared by all levels; whatever levels are there pass it."""

    cfg: DetectorConfig

    @nn.compact
    def __call__(self, features: Features) -> tuple[list[Array], list[Array], list[Array]]:
        """Per level: objectness logits [B, A_l], box deltas [B, A_l, 4], hidden maps.

        Anchors are in (y, x, ratio) order; the hidden maps [B, H_l, W_l, C] are what the outputs
        are computed from.
        """
        cfg = self.cfg
        normal = nn.initializers.normal(0.01)
        convs = [
            nn.Conv(cfg.fpn_features, (3, 3), padding=1, dtype=cfg.dtype, kernel_init=normal)
            for _ in range(cfg.rpn_convs)
        ]
        anchors = len(cfg.anchor_ratios)
        objectness = nn.Conv(
            anchors, (1, 1), dtype=cfg.dtype, kernel_init=normal, name="objectness"
        )
        regression = nn.Conv(
            4 * anchors, (1, 1), dtype=cfg.dtype, kernel_init=normal, name="regression"
        )
        logits, deltas, hidden = [], [], []
        for name in (name for name in LEVELS if name in features):
            x = features[name]
            for conv in convs:
                x = nn.relu(conv(x))
            batch = x.shape[0]
            logits.append(objectness(x).reshape(batch, -1).astype(jnp.float32))
            deltas.append(regression(x).reshape(batch, -1, 4).astype(jnp.float32))
            hidden.append(x)
        return logits, deltas, hidden


class BoxHead(nn.Module):
    """Convolutions, one hidden layer, class logits and per-class box deltas."""

    cfg: DetectorConfig

    @nn.compact
    def __call__(self, pooled: Array, train: bool) -> tuple[Array, Array, Array]:
        """[N, P, P, C] pooled regions -> logits [N, K], deltas [N, K, 4], hidden [N, box_fc]."""
        cfg = self.cfg
        x = pooled
        for i in range(cfg.box_convs):
            x = nn.relu(ConvNorm(cfg.box_conv_features, 3, 1, cfg.dtype, name=f"conv{i}")(x, train))
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))  # -1 would not do for N = 0
        x = nn.relu(nn.Dense(cfg.box_fc, dtype=cfg.dtype, name="hidden")(flat))
        logits = nn.Dense(
            cfg.num_classes,
            dtype=cfg.dtype,
            kernel_init=nn.initializers.normal(0.01),
            name="classes",
        )(x)
        deltas = nn.Dense(
            4 * cfg.num_classes,
            dtype=cfg.dtype,
            kernel_init=nn.initializers.normal(0.001),
            name="boxes",
        )(x)
        return (
            logits.astype(jnp.float32),
            deltas.reshape(x.shape[0], cfg.num_classes, 4).astype(jnp.float32),
            x,
        )


class FasterRCNN(nn.Module):
    """The whole detector; `features` is the head, `detect` the tail."""

    cfg: DetectorConfig

    def setup(self) -> None:
        """Builds body, pyramid, proposal network and box head."""
        cfg = self.cfg
        dtype = jnp.dtype(cfg.dtype)
        self.body = ResNet(
            cfg.stem_features, cfg.stage_blocks, cfg.stage_features, cfg.bottleneck, dtype
        )
        self.fpn = FPN(cfg.fpn_features, dtype)
        self.rpn = RegionProposalNetwork(cfg)
        self.box_head = BoxHead(cfg)

    def features(self, image: Frames | Array, train: bool = False) -> Features:
        """The pyramid of uint8 or [0, 1] float images [B, H, W, 3], sides multiples of 32.

        `Frames` are resized first, to a canvas whose sides are multiples of 32.
        """
        return self.pyramid(network_input(image), train)

    def pyramid(self, x: Array, train: bool = False) -> Features:
        """P2..P6 [B, H_l, W_l, C] float32 of a normalised image [B, H, W, 3]."""
        train = train and not self.cfg.freeze_norm
        pyramid = self.fpn(self.body(x.astype(self.cfg.dtype), train), train)
        return {name: value.astype(jnp.float32) for name, value in pyramid.items()}

    def propose(self, features: Features, image_size: Array, count: int, train: bool = False):
        """Proposals of a pyramid.

        Args:
          features: P2..P6.
          image_size: [B, 2] (height, width) of the unpadded images, pixels.
          count: proposals per image.
          train: take as many candidates of each level as training does.

        Returns:
          (logits [B, A], deltas [B, A, 4], proposals [B, count, 4], valid [B, count]).
        """
        logits, deltas, _ = self.rpn(features)
        pre = self.cfg.rpn_pre_nms_train if train else self.cfg.rpn_pre_nms
        boxes, scores = [], []
        for score, delta, anchor in zip(logits, deltas, self.anchors(features), strict=True):
            top, index = jax.lax.top_k(score, min(pre, score.shape[1]))
            picked = jnp.take_along_axis(delta, index[..., None], 1)
            box = box_ops.decode(picked, jnp.asarray(anchor)[index], RPN_WEIGHTS)
            boxes.append(box_ops.clip(box, image_size[:, None]))
            scores.append(top)
        proposals, valid = _suppress_proposals(
            jax.lax.stop_gradient(boxes), jax.lax.stop_gradient(scores), self.cfg.rpn_iou, count
        )
        return jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1), proposals, valid

    def anchors(self, features: Features) -> list[np.ndarray]:
        """Anchors of every level, see `boxes.grid_anchors`."""
        shapes = [features[name].shape[1:3] for name in LEVELS]
        height, width = (n * SIZE_MULTIPLE for n in features["p5"].shape[1:3])
        return box_ops.grid_anchors(
            shapes, (height, width), self.cfg.anchor_sizes, self.cfg.anchor_ratios
        )

    def classify(self, features: Features, boxes: Array, train: bool = False):
        """Class logits [B, R, K] and deltas [B, R, K, 4] of boxes [B, R, 4]."""
        levels = [features[name] for name in LEVELS[: len(STRIDES)]]
        level = roi_align.assign_level(boxes, len(STRIDES), canonical_size=self.cfg.canonical_size)

        def pool(maps, rois, index):
            return roi_align.roi_align(
                maps, rois, index, strides=STRIDES, output_size=self.cfg.pool_size
            )

        pooled = jax.vmap(pool)(levels, boxes, level)
        train = train and not self.cfg.freeze_norm
        logits, deltas, _ = self.box_head(pooled.reshape(-1, *pooled.shape[2:]), train)
        lead = boxes.shape[:2]
        return logits.reshape(*lead, -1), deltas.reshape(*lead, -1, 4)

    def level_outputs(self, x: Array, boxes: Array, stride: int) -> dict[str, Array]:
        """What the tail computes from one level alone, hidden layers included.

        Args:
          x: [B, H, W, C], the level's features.
          boxes: [B, R, 4] regions in network pixels to pool from this level; R may be 0.
          stride: network pixels per feature pixel.

        Returns:
          Of the RPN "hidden" [B, H, W, C], "objectness" [B, A], "anchor_deltas" [B, A, 4]; of the
          box head "pooled" [B, R, P, P, C], "box_hidden" [B, R, F], "classes" [B, R, K] and
          "box_deltas" [B, R, K, 4].
        """
        (objectness,), (anchor_deltas,), (hidden,) = self.rpn({LEVELS[0]: x})
        index = jnp.zeros(boxes.shape[1], jnp.int32)

        def pool(one, rois):
            return roi_align.roi_align(
                [one], rois, index, strides=(stride,), output_size=self.cfg.pool_size
            )

        pooled = jax.vmap(pool)(x, boxes)
        outputs = self.box_head(pooled.reshape(-1, *pooled.shape[2:]), False)
        lead = boxes.shape[:2]
        classes, box_deltas, box_hidden = (y.reshape(*lead, *y.shape[1:]) for y in outputs)
        return {
            "hidden": hidden,
            "objectness": objectness,
            "anchor_deltas": anchor_deltas,
            "pooled": pooled,
            "box_hidden": box_hidden,
            "classes": classes,
            "box_deltas": box_deltas,
        }

    def level_regions(self, features: Features, image_size: Array, count: int) -> dict[str, Array]:
        """The best proposals that each level is pooled for.

        Args:
          features: P2..P6.
          image_size: [B, 2] (height, width) of the unpadded images, pixels.
          count: regions per level.

        Returns:
          {level: [B, count, 4]} of P2..P5 in network pixels, best first; padding has no area.
        """
        _, _, boxes, valid = self.propose(features, image_size, self.cfg.rpn_post_nms)
        level = roi_align.assign_level(boxes, len(STRIDES), canonical_size=self.cfg.canonical_size)
        found = {}
        for i, name in enumerate(LEVELS[: len(STRIDES)]):
            own = valid & (level == i)
            # Proposals are sorted by score, so the smallest indices are the best.
            order = jnp.argsort(jnp.where(own, 0, 1), axis=1, stable=True)[:, :count]
            picked = jnp.take_along_axis(jnp.where(own[..., None], boxes, 0.0), order[..., None], 1)
            found[name] = _pad_second(picked, count)
        return found

    def detect(self, features: Features, image_size: Array) -> dict[str, Array]:
        """Detections in network pixels from a pyramid, no pixels needed.

        Args:
          features: P2..P6, each [B, H_l, W_l, C].
          image_size: [B, 2] (height, width) of the unpadded images.

        Returns:
          {"boxes": [B, D, 4], "scores": [B, D], "labels": [B, D] int, "valid": [B, D] bool}, best
          first; padding has label 0.
        """
        cfg = self.cfg
        _, _, proposals, valid = self.propose(features, image_size, cfg.rpn_post_nms)
        logits, deltas = self.classify(features, proposals)
        scores = nn.softmax(logits)[..., 1:]
        boxes = box_ops.decode(deltas[..., 1:, :], proposals[..., None, :], ROI_WEIGHTS)
        boxes = box_ops.clip(boxes, image_size[:, None, None])
        labels = np.broadcast_to(np.arange(1, cfg.num_classes), scores.shape[1:])
        size = boxes[..., 2:] - boxes[..., :2]
        good = (scores > cfg.score_threshold) & (size.min(-1) >= 1e-2) & valid[..., None]

        def select(b, s, v):
            return nms.top_detections(
                b.reshape(-1, 4),
                s.reshape(-1),
                jnp.asarray(labels.reshape(-1)),
                v.reshape(-1),
                iou_threshold=cfg.detection_iou,
                pre=cfg.detection_pre_nms,
                post=cfg.max_detections,
            )

        out = jax.vmap(select)(boxes, scores, good)
        return dict(zip(("boxes", "scores", "labels", "valid"), out, strict=True))

    def __call__(self, image: Array, image_size: Array, train: bool = False):
        """Whole network; in training it touches every parameter once, for initialisation."""
        features = self.features(image, train)
        if train:
            _, _, proposals, _ = self.propose(features, image_size, 8)
            return self.classify(features, proposals, train)
        return self.detect(features, image_size)


def _suppress_proposals(boxes, scores, iou_threshold: float, count: int):
    """Suppression within each level, then the best `count` of all levels, with their validity."""
    most = max(b.shape[1] for b in boxes)
    padded = [_pad_second(b, most) for b in boxes]
    real = np.stack([np.arange(most) < b.shape[1] for b in boxes])
    all_boxes = jnp.stack(padded, 1)  # [B, L, most, 4]
    all_scores = jnp.stack([_pad_second(s, most) for s in scores], 1)
    size = (all_boxes[..., 2:] - all_boxes[..., :2]).min(-1)

    def one_level(b, v):
        return nms.nms_keep(b, jnp.zeros(most, jnp.int32), v, iou_threshold)

    keep = jax.vmap(jax.vmap(one_level))(all_boxes, (size >= MIN_PROPOSAL) & real[None])
    batch = all_boxes.shape[0]
    order = jnp.where(keep, all_scores, -jnp.inf).reshape(batch, -1)
    best, index = jax.lax.top_k(order, min(count, order.shape[1]))
    valid = jnp.isfinite(best)
    picked = jnp.take_along_axis(all_boxes.reshape(batch, -1, 4), index[..., None], 1)
    picked = jnp.where(valid[..., None], picked, 0.0)
    return _pad_second(picked, count), _pad_second(valid, count)


def _pad_second(x: Array, length: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
