"""Faster R-CNN with a feature pyramid, cut at the pyramid (Ren et al., 2015; Lin et al., 2017).

    image ── normalise ── ResNet ── FPN ──► P2..P6 ──► RPN ──► proposals ──► RoIAlign ── box head
    └────────────── head ──────────────┘   └───────────────────── tail ─────────────────────────┘

Every shape is static: proposals and detections are padded and carry a validity mask.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.models.fpn import FPN, LEVELS
from jaxcomp.models.layers import ConvNorm
from jaxcomp.models.resnet import ResNet
from jaxcomp.ops import boxes as box_ops
from jaxcomp.ops import nms, roi_align
from jaxcomp.types import Array, Features

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
STRIDES = (4, 8, 16, 32)  # of P2..P5, the levels that boxes are pooled from
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
      rpn_post_nms_train: the latter in training.
      rpn_iou: overlap above which proposals suppress each other.
      pool_size: RoIAlign output.
      canonical_size: box size, in pixels, that belongs to level 4.
      box_convs, box_conv_features, box_fc: the box head; one hidden layer after the convolutions.
      score_threshold, detection_iou, max_detections: post-processing.
      detection_pre_nms: candidates (region and class) that enter the last suppression.
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
    detection_pre_nms: int = 1000
    dtype: str = "float32"


class RegionProposalNetwork(nn.Module):
    """The RPN head, shared by all levels."""

    cfg: DetectorConfig

    @nn.compact
    def __call__(self, features: Features) -> tuple[list[Array], list[Array]]:
        """Per level: objectness logits [B, A_l] and box deltas [B, A_l, 4], (y, x, ratio) order."""
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
        logits, deltas = [], []
        for name in LEVELS:
            x = features[name]
            for conv in convs:
                x = nn.relu(conv(x))
            batch = x.shape[0]
            logits.append(objectness(x).reshape(batch, -1).astype(jnp.float32))
            deltas.append(regression(x).reshape(batch, -1, 4).astype(jnp.float32))
        return logits, deltas


class BoxHead(nn.Module):
    """Convolutions, one hidden layer, class logits and per-class box deltas."""

    cfg: DetectorConfig

    @nn.compact
    def __call__(self, pooled: Array, train: bool) -> tuple[Array, Array]:
        """[N, P, P, C] pooled regions -> logits [N, K], deltas [N, K, 4]."""
        cfg = self.cfg
        x = pooled
        for i in range(cfg.box_convs):
            x = nn.relu(ConvNorm(cfg.box_conv_features, 3, 1, cfg.dtype, name=f"conv{i}")(x, train))
        x = nn.relu(nn.Dense(cfg.box_fc, dtype=cfg.dtype, name="hidden")(x.reshape(x.shape[0], -1)))
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

    def features(self, image: Array, train: bool = False) -> Features:
        """The pyramid of uint8 or [0, 1] float images [B, H, W, 3], sides multiples of 32."""
        x = normalise_image(image).astype(self.cfg.dtype)
        pyramid = self.fpn(self.body(x, train), train)
        return {name: value.astype(jnp.float32) for name, value in pyramid.items()}

    def propose(self, features: Features, image_size: Array, count: int):
        """Proposals of a pyramid.

        Args:
          features: P2..P6.
          image_size: [B, 2] (height, width) of the unpadded images, pixels.
          count: proposals per image.

        Returns:
          (logits [B, A], deltas [B, A, 4], proposals [B, count, 4], valid [B, count]).
        """
        logits, deltas = self.rpn(features)
        anchors = self.anchors(features)
        boxes, scores, groups = [], [], []
        for level, (score, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            top, index = jax.lax.top_k(score, min(self.cfg.rpn_pre_nms, score.shape[1]))
            picked = jnp.take_along_axis(delta, index[..., None], 1)
            boxes.append(box_ops.decode(picked, jnp.asarray(anchor)[index], RPN_WEIGHTS))
            scores.append(top)
            groups.append(np.full(top.shape[1], level, np.int32))
        all_boxes = box_ops.clip(jnp.concatenate(boxes, 1), image_size[:, None])
        proposals, valid = _suppress_proposals(
            jax.lax.stop_gradient(all_boxes),
            jax.lax.stop_gradient(jnp.concatenate(scores, 1)),
            np.concatenate(groups),
            self.cfg.rpn_iou,
            count,
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
        logits, deltas = self.box_head(pooled.reshape(-1, *pooled.shape[2:]), train)
        lead = boxes.shape[:2]
        return logits.reshape(*lead, -1), deltas.reshape(*lead, -1, 4)

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


def normalise_image(image: Array) -> Array:
    """ImageNet normalisation of uint8 [0, 255] or float [0, 1] RGB; the only one in the package."""
    x = image.astype(jnp.float32)
    if jnp.issubdtype(image.dtype, jnp.integer):
        x = x / 255.0
    shape = (1,) * (x.ndim - 1) + (3,)
    mean = np.asarray(IMAGENET_MEAN, np.float32).reshape(shape)
    return (x - mean) / np.asarray(IMAGENET_STD, np.float32).reshape(shape)


def _suppress_proposals(boxes, scores, groups, iou_threshold, count):
    size = boxes[..., 2:] - boxes[..., :2]

    def one(b, s, v):
        out = nms.top_detections(
            b, s, jnp.asarray(groups), v, iou_threshold=iou_threshold, pre=b.shape[0], post=count
        )
        return out[0], out[3]

    return jax.vmap(one)(boxes, scores, size.min(-1) >= 1e-3)
