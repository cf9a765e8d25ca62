"""FeatherFace and RetinaFace, cut at the feature pyramid.

    image ── MobileNetV1 ── gates ── pyramid ──► p3..p5 ── gates ── context ── mixer ── outputs
    └───────────────── head ────────────────┘   └─────────────────── tail ─────────────────────┘

FeatherFace: Kim et al., 2025 ("robust and lightweight face detection via optimal feature
integration"); RetinaFace: Deng et al., 2019, arXiv:1905.00641. Detections are padded and carry a
validity mask; their boxes and landmarks are in pixels of the network's input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.models.featherface_attention import Gates
from jaxcomp.models.featherface_config import PARAMETERS, VARIANTS, FaceConfig, face_config
from jaxcomp.models.featherface_context import Context, GroupedContext, Mixer, Outputs
from jaxcomp.models.featherface_pyramid import BiFPN, FacePyramid
from jaxcomp.models.mobilenet import MobileNetV1
from jaxcomp.ops import nms
from jaxcomp.ops import priors as prior_ops
from jaxcomp.types import Array, Features

__all__ = ["PARAMETERS", "VARIANTS", "FaceConfig", "FaceDetector", "face_config"]

FACE_LEVELS = ("p3", "p4", "p5")
FACE = 1  # class; 0 is the background
MEAN_BGR = (104.0, 117.0, 123.0)


def normalise_face_image(image: Array) -> Array:
    """RGB, uint8 or float [0, 1] -> float32 BGR [B, H, W, 3] minus the mean, not scaled."""
    x = image.astype(jnp.float32)
    if not jnp.issubdtype(image.dtype, jnp.integer):
        x = x * 255.0
    return x[..., ::-1] - np.asarray(MEAN_BGR, np.float32).reshape((1,) * (x.ndim - 1) + (3,))


def _neck(cfg: FaceConfig, dtype: jnp.dtype) -> nn.Module:
    if cfg.pyramid == "fpn":
        return FacePyramid(cfg.features, dtype)
    return BiFPN(cfg.features, cfg.cells, cfg.pyramid == "bifpn_light", dtype)


class FaceDetector(nn.Module):
    """The whole detector; `tail(head(image)) == model(image)`.

    Attributes:
      cfg: its sizes and parts.
      loops: deformable convolutions may run in loops of numba even where the batch statistics are
        fixed, as they may in training; see `ops.gather_sum`. Such a program cannot be exported.
    """

    cfg: FaceConfig
    loops: bool = False

    def setup(self) -> None:
        """Builds the parts."""
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        self.body = MobileNetV1(dtype)
        self.body_gates = Gates(cfg.body_gates, dtype) if cfg.body_gates != "none" else None
        self.neck = _neck(cfg, dtype)
        gated = cfg.pyramid_gates != "none"
        self.neck_gates = Gates(cfg.pyramid_gates, dtype) if gated else None
        context: Callable[[], nn.Module] = functools.partial(GroupedContext, dtype)
        if cfg.context != "grouped":
            context = functools.partial(Context, cfg.context == "deformable", dtype, self.loops)
        self.context = [context() for _ in FACE_LEVELS]
        self.mixer = [Mixer(cfg.mixer, dtype) for _ in FACE_LEVELS]
        self.outputs = [Outputs(cfg.anchors_per_place, dtype) for _ in FACE_LEVELS]

    def head(self, image: Array, train: bool = False) -> Features:
        """The pyramid of RGB images [B, H, W, 3] of any size, uint8 or float [0, 1]."""
        return self.pyramid(normalise_face_image(image), train)

    def body_maps(self, x: Array, train: bool = False) -> list[Array]:
        """Maps of the body, ungated, of normalised images."""
        return self.body(x.astype(self.cfg.dtype), train)

    def pyramid(self, x: Array, train: bool = False) -> Features:
        """{"p3", "p4", "p5"} float32 at strides 8, 16, 32 of normalised images [B, H, W, 3]."""
        return self.pyramid_of(self.body_maps(x, train), train)

    def pyramid_of(self, maps: list[Array], train: bool = False) -> Features:
        """The same of the maps of the body."""
        if self.body_gates is not None:
            maps = self.body_gates(maps, train)
        levels = zip(FACE_LEVELS, self.neck(maps, train), strict=True)
        return {name: level.astype(jnp.float32) for name, level in levels}

    def contexts(self, features: Features, train: bool = False) -> list[Array]:
        """Outputs of the context heads."""
        maps = [features[name].astype(self.cfg.dtype) for name in FACE_LEVELS]
        if self.neck_gates is not None:
            maps = self.neck_gates(maps, train)
        return [part(x, train) for part, x in zip(self.context, maps, strict=True)]

    def mixed(self, contexts: list[Array], train: bool = False) -> list[Array]:
        """What the outputs are computed from."""
        return [part(x, train) for part, x in zip(self.mixer, contexts, strict=True)]

    def tail(self, features: Features, train: bool = False) -> dict[str, Array]:
        """Raw predictions of a pyramid.

        Returns:
          float32 {"boxes": [B, A, 4], "classes": logits [B, A, 2], "landmarks": [B, A, 10]};
          anchors as `ops.priors.make_priors` orders them.
        """
        maps = self.mixed(self.contexts(features, train), train)
        levels = [part(x) for part, x in zip(self.outputs, maps, strict=True)]
        return {k: jnp.concatenate([level[k] for level in levels], 1) for k in levels[0]}

    def decode(self, maps: dict[str, Array], size: tuple[int, int]) -> dict[str, Array]:
        """Detections of raw predictions, see `decode`."""
        return decode(maps, size, self.cfg)

    def candidates(self, maps: dict[str, Array], size: tuple[int, int]) -> dict[str, Array]:
        """Detections before the suppression, see `candidates`."""
        return candidates(maps, size, self.cfg)

    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Raw predictions of images."""
        return self.tail(self.head(image, train), train)


def priors(size: tuple[int, int], cfg: FaceConfig) -> np.ndarray:
    """Anchors of an image of (rows, columns), see `ops.priors.make_priors`."""
    return prior_ops.make_priors(*size, cfg.steps, cfg.min_sizes)


def candidates(maps: dict[str, Array], size: tuple[int, int], cfg: FaceConfig) -> dict[str, Array]:
    """The anchors with the best scores, decoded; no suppression.

    Args:
      maps: as `FaceDetector.tail` gives them.
      size: (rows, columns) of the network's input, static.
      cfg: sizes.

    Returns:
      {"boxes": [B, T, 4], "landmarks": [B, T, 10], "scores": [B, T], "valid": [B, T] bool}, best
      first, T = min(cfg.candidates, anchors), in pixels of the input. What is not finite or not
      above the threshold is not valid; it is zeros.
    """
    anchors = jnp.asarray(priors(size, cfg))
    scores = nn.softmax(maps["classes"])[..., FACE]
    finite = jnp.isfinite(scores)
    for name in ("boxes", "landmarks"):
        finite &= jnp.isfinite(maps[name]).all(-1)
    good = finite & (scores > cfg.score_threshold)
    count = min(cfg.candidates, scores.shape[1])
    best, index = jax.lax.top_k(jnp.where(good, scores, -jnp.inf), count)
    valid = jnp.isfinite(best)

    boxes, points = (
        jnp.take_along_axis(maps[name], index[..., None], 1) for name in ("boxes", "landmarks")
    )
    prior = anchors[index]
    boxes = jax.vmap(lambda d, p: prior_ops.decode_boxes(d, p, cfg.variances))(boxes, prior)
    points = jax.vmap(lambda d, p: prior_ops.decode_landmarks(d, p, cfg.variances))(points, prior)
    pixels = np.array([size[1], size[0]], np.float32)
    found = {
        "boxes": boxes * np.tile(pixels, 2).reshape(1, 1, -1),
        "landmarks": points * np.tile(pixels, prior_ops.POINTS).reshape(1, 1, -1),
        "scores": best,
    }
    return {**_masked(found, valid), "valid": valid}


def _masked(found: dict[str, Array], valid: Array) -> dict[str, Array]:
    """Zeros where not valid."""
    return {
        k: jnp.where(valid.reshape(valid.shape + (1,) * (v.ndim - valid.ndim)), v, 0.0)
        for k, v in found.items()
    }


def decode(maps: dict[str, Array], size: tuple[int, int], cfg: FaceConfig) -> dict[str, Array]:
    """Detections of raw predictions.

    Overlaps are those of areas with one pixel more on each side, as the original computes them.

    Args:
      maps: as `FaceDetector.tail` gives them.
      size: (rows, columns) of the network's input, static.
      cfg: sizes.

    Returns:
      {"boxes": [B, D, 4], "landmarks": [B, D, 10], "scores": [B, D], "valid": [B, D] bool}, best
      first, D = min(cfg.max_detections, cfg.candidates, anchors), in pixels of the input; zeros in
      the padding.
    """
    found = candidates(maps, size, cfg)
    wider = found["boxes"] + np.array([0, 0, 1, 1], np.float32).reshape(1, 1, 4)
    groups = jnp.zeros(found["scores"].shape[1], jnp.int32)

    def select(one: dict[str, Array], boxes: Array) -> dict[str, Array]:
        keep = nms.nms_keep(boxes, groups, one["valid"], cfg.nms_iou)
        # A stable sort moves the kept boxes to the front without changing their order.
        front = jnp.argsort(~keep, stable=True)[: cfg.max_detections]
        rows = {k: v[front] for k, v in one.items() if k != "valid"}
        return {**_masked(rows, keep[front]), "valid": keep[front]}

    return jax.vmap(select)(found, wider)
