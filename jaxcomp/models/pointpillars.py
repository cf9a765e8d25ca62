"""PointPillars, cut at the bird's-eye-view canvas (Lang et al., 2019, arXiv:1812.05784).

    sweep ── voxelise ── encode ── scatter ──► canvas ──► backbone ── neck ── outputs ── decode
    └───────────────── head ──────────────┘   └───────────────────── tail ───────────────────┘

The canvas is [B, rows (y), columns (x), C]. Every shape is static; detections are padded and carry
a validity mask.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.models.pointpillars_config import PointPillarsConfig
from jaxcomp.models.pointpillars_layers import ConvNormRelu, PillarEncoder, scatter
from jaxcomp.ops import anchors3d, rotated_jax
from jaxcomp.ops.voxelise import Pillars
from jaxcomp.types import Array

__all__ = ["Pillars", "PointPillars", "PointPillarsConfig"]

DIRECTIONS = 2
BOX = 7
RARE = 0.01  # probability that a fresh network gives to every class


class Backbone(nn.Module):
    """Strided blocks of 3x3 convolutions."""

    cfg: PointPillarsConfig

    @nn.compact
    def __call__(self, x: Array, train: bool) -> list[Array]:
        """Canvas to the outputs of the blocks."""
        cfg, outputs = self.cfg, []
        sizes = zip(cfg.block_features, cfg.block_convs, cfg.block_strides, strict=True)
        for block, (features, convs, stride) in enumerate(sizes):
            for i in range(1 + convs):
                layer = ConvNormRelu(
                    features, 3, stride if i == 0 else 1, momentum=cfg.norm_momentum,
                    dtype=jnp.dtype(cfg.dtype), name=f"block{block}_conv{i}",
                )  # fmt: skip
                x = layer(x, train)
            outputs.append(x)
        return outputs


class Neck(nn.Module):
    """Brings the blocks to the resolution of the first and joins them."""

    cfg: PointPillarsConfig

    @nn.compact
    def __call__(self, blocks: list[Array], train: bool) -> Array:
        """[B, H / 2^i, W / 2^i, C_i] to [B, H, W, sum of neck_features]."""
        joined, factor = [], 1
        for i, (x, features) in enumerate(zip(blocks, self.cfg.neck_features, strict=True)):
            factor *= self.cfg.block_strides[i] if i else 1
            layer = ConvNormRelu(
                features, stride=factor, up=True, momentum=self.cfg.norm_momentum,
                dtype=jnp.dtype(self.cfg.dtype), name=f"up{i}",
            )  # fmt: skip
            joined.append(layer(x, train))
        return jnp.concatenate(joined, -1)


class Outputs(nn.Module):
    """Class scores, boxes and directions of every anchor, as one matrix product."""

    cfg: PointPillarsConfig

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """[B, H, W, C] -> {"classes": [B, H, W, A K], "boxes": [.., A 7], "directions": [.., A 2]}.

        The values of an anchor are beside each other: anchor a and class k are channel a K + k.
        """
        count = self.cfg.anchors_per_place
        widths = {
            "classes": count * len(self.cfg.classes),
            "boxes": count * BOX,
            "directions": count * DIRECTIONS,
        }
        normal = nn.initializers.normal(0.01)
        rare = nn.initializers.constant(math.log(RARE / (1 - RARE)))
        kernels, biases = [], []
        for name, width in widths.items():
            start = rare if name == "classes" else nn.initializers.zeros
            kernels.append(self.param(f"{name}_kernel", normal, (x.shape[-1], width)))
            biases.append(self.param(f"{name}_bias", start, (width,)))
        kernel = jnp.concatenate(kernels, 1).astype(x.dtype)
        y = jax.lax.dot_general(x, kernel, (((3,), (0,)), ((), ()))).astype(jnp.float32)
        y = y + jnp.concatenate(biases).reshape(1, 1, 1, -1)
        ends = np.cumsum(list(widths.values()))[:-1]
        return dict(zip(widths, jnp.split(y, ends, -1), strict=True))


class PointPillars(nn.Module):
    """The whole detector; `tail(head(pillars)) == model(pillars)`."""

    cfg: PointPillarsConfig

    def setup(self) -> None:
        """Builds encoder, backbone, neck and outputs."""
        cfg = self.cfg
        self.encoder = PillarEncoder(
            cfg.encoder_features, cfg.grid, cfg.max_points, cfg.norm_momentum
        )
        self.backbone = Backbone(cfg)
        self.neck = Neck(cfg)
        self.outputs = Outputs(cfg)

    def encode(self, pillars: Pillars, train: bool = False) -> Array:
        """Vectors of the pillars, float32 [B, P, C]; zeros in the padding."""
        return self.encoder(pillars, train)

    def head(self, pillars: Pillars, train: bool = False) -> Array:
        """The canvas float32 [B, rows, columns, C] of voxelised sweeps; zeros without a pillar."""
        return scatter(self.encode(pillars, train), pillars.cells, self.cfg.grid)

    def tail(self, canvas: Array, train: bool = False) -> dict[str, Array]:
        """Raw maps of a canvas, see `Outputs`."""
        return self.outputs(self.neck(self.backbone(canvas, train), train))

    def decode(self, maps: dict[str, Array]) -> dict[str, Array]:
        """Detections of raw maps, see `decode`."""
        return decode(maps, self.cfg)

    def detect(self, canvas: Array) -> dict[str, Array]:
        """Detections of a canvas, see `decode`."""
        return self.decode(self.tail(canvas))

    def __call__(self, pillars: Pillars, train: bool = False) -> dict[str, Array]:
        """Raw maps of voxelised sweeps."""
        return self.tail(self.head(pillars, train), train)


def anchors(cfg: PointPillarsConfig) -> np.ndarray:
    """float32 [rows, columns, classes, yaws, 7], see `anchors3d.make_anchors`."""
    return anchors3d.make_anchors(cfg.low, cfg.high, cfg.map_shape, cfg.kinds, cfg.anchor_yaws)


def per_anchor(maps: dict[str, Array], cfg: PointPillarsConfig) -> dict[str, Array]:
    """The maps by anchor: classes [B, A, K], boxes [B, A, 7], directions [B, A, 2]."""
    widths = {"classes": len(cfg.classes), "boxes": BOX, "directions": DIRECTIONS}
    return {k: maps[k].reshape(maps[k].shape[0], -1, width) for k, width in widths.items()}


def candidates(maps: dict[str, Array], cfg: PointPillarsConfig) -> dict[str, Array]:
    """The anchors with the highest class score, decoded; no threshold, no suppression.

    Returns:
      {"index": [B, T] int, "scores": [B, T, K], "boxes": [B, T, 7] without the direction,
      "directions": [B, T] 0 or 1}, best first.
    """
    flat = per_anchor(maps, cfg)
    count = min(cfg.candidates, flat["classes"].shape[1])
    _, index = jax.lax.top_k(flat["classes"].max(-1), count)
    picked = {k: jnp.take_along_axis(v, index[..., None], 1) for k, v in flat.items()}
    prior = jnp.asarray(anchors(cfg).reshape(-1, BOX))[index]
    return {
        "index": index,
        "scores": nn.sigmoid(picked["classes"]),
        "boxes": anchors3d.decode(picked["boxes"], prior),
        "directions": picked["directions"].argmax(-1),
    }


def decode(maps: dict[str, Array], cfg: PointPillarsConfig) -> dict[str, Array]:
    """Detections of raw maps: best anchors, suppression by class, direction.

    Args:
      maps: as `PointPillars.tail` gives them; values that are not finite give no detection.
      cfg: sizes.

    Returns:
      {"boxes": [B, D, 7] lidar boxes (see `anchors3d`), yaw in [0, 2 pi) or [-pi, 0) by direction,
      "scores": [B, D], "labels": [B, D] int, 0 upwards, "valid": [B, D] bool}, best first; padding
      is zeros.
    """
    maps = {k: jnp.where(jnp.isfinite(v), v, -1e4 if k == "classes" else 0.0)
            for k, v in maps.items()}  # fmt: skip
    found = candidates(maps, cfg)
    boxes = found["boxes"]
    yaw = anchors3d.directed_yaw(boxes[..., 6], found["directions"])
    directed = jnp.concatenate([boxes[..., :6], yaw[..., None]], -1)

    def select(raw: Array, boxes: Array, scores: Array) -> tuple[Array, ...]:
        rectangles = raw[:, jnp.array([0, 1, 3, 4, 6])]
        overlap = rotated_jax.iou_matrix(rectangles, rectangles)

        def one_class(score: Array) -> Array:
            order = jnp.argsort(-score, stable=True)
            return rotated_jax.nms_keep(overlap, order, score > cfg.score_threshold, cfg.nms_iou)

        keep = jax.vmap(one_class, 1, 1)(scores)
        flat = jnp.where(keep, scores, -1.0).T.reshape(-1)  # class after class
        best, place = jax.lax.top_k(flat, min(cfg.max_detections, flat.shape[0]))
        valid = best > 0
        label, row = place // scores.shape[0], place % scores.shape[0]
        return (
            jnp.where(valid[:, None], boxes[row], 0.0),
            jnp.where(valid, best, 0.0),
            jnp.where(valid, label, 0).astype(jnp.int32),
            valid,
        )

    out = jax.vmap(select)(boxes, directed, found["scores"])
    return dict(zip(("boxes", "scores", "labels", "valid"), out, strict=True))
