"""How an image is given to a face detector: the named protocols behind published figures.

An AP without its protocol says little: small faces are found because images are enlarged, and
looking at an image ten times costs ten times as much. So results name one of `PROTOCOLS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from jaxcomp.errors import ConfigError
from jaxcomp.ops import nms_host

MIRRORED = (1, 0, 2, 4, 3)  # eyes and corners of the mouth change sides


@dataclasses.dataclass(frozen=True)
class InputProtocol:
    """Sizes an image is looked at in, and how what is found is put together.

    Attributes:
      what: a sentence for tables.
      short_side: pixels that the shorter side gets; 0 leaves the image as it is.
      long_side: limit of the longer side, pixels.
      factors: of that size, one look each.
      flip: look at the mirrored image too.
      vote: merge by voting, see `nms_host.vote`; else greedy suppression.
      iou: overlap above which (voting: from which) boxes are the same face.
      score: detections at or below are dropped.
      most: detections that an image may have; the best are kept.
    """

    what: str
    short_side: int = 0
    long_side: int = 0
    factors: tuple[float, ...] = (1.0,)
    flip: bool = False
    vote: bool = False
    iou: float = 0.4
    score: float = 0.02
    most: int = 750

    def scales(self, height: int, width: int) -> list[float]:
        """Factors of the sides of an image, one for each look."""
        base = 1.0
        if self.short_side:
            base = self.short_side / min(height, width)
            if round(base * max(height, width)) > self.long_side:
                base = self.long_side / max(height, width)
        return [base * factor for factor in self.factors]


PROTOCOLS: Mapping[str, InputProtocol] = {
    "vga640": InputProtocol("longer side 640, one look", 640, 640),
    "original": InputProtocol("as it is, one look"),
    "resize1600": InputProtocol("shorter side 1600, longer at most 2150, one look", 1600, 2150),
    "multiscale_flip": InputProtocol(
        "shorter sides 500 to 1700 (or longer 750 to 2550), each mirrored too, ten looks, voting",
        800, 1200, (500 / 800, 1.0, 1100 / 800, 1400 / 800, 1700 / 800), flip=True, vote=True,
    ),
}  # fmt: skip


class Scanner(Protocol):
    """What a detector must do to be evaluated."""

    def scan(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """All candidates of an RGB image [H, W, 3], uint8 or float32 [0, 1], before suppression.

        Returns:
          {"boxes": [N, 4] x1, y1, x2, y2 and "landmarks": [N, 5, 2] in its pixels, "scores": [N]}.
        """
        ...


def protocol_of(name: str | InputProtocol) -> InputProtocol:
    """The protocol of a name.

    Raises:
      ConfigError: there is none of it.
    """
    if isinstance(name, InputProtocol):
        return name
    if name not in PROTOCOLS:
        raise ConfigError(f"input protocol {name!r} is none of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def detect_image(
    detector: Scanner, image: np.ndarray, protocol: str | InputProtocol = "original"
) -> dict[str, Any]:
    """Faces of an image by a protocol.

    Args:
      detector: as `load_face_detector` gives it.
      image: uint8 RGB [H, W, 3].
      protocol: its name, or one of your own.

    Returns:
      {"boxes": float32 [N, 4] x1, y1, x2, y2, "scores": [N], "landmarks": [N, 5, 2]}, best first,
      in pixels of the image; boxes may reach beyond it.
    """
    how = protocol_of(protocol)
    looks = [
        _look(detector, image, scale, mirrored)
        for scale in how.scales(*image.shape[:2])
        for mirrored in ((False, True) if how.flip else (False,))
    ]
    found = {key: np.concatenate([look[key] for look in looks]) for key in looks[0]}
    order = np.argsort(-found["scores"], kind="stable")
    order = order[found["scores"][order] > how.score]
    return merge({key: value[order] for key, value in found.items()}, how)


def merge(found: Mapping[str, np.ndarray], how: InputProtocol) -> dict[str, np.ndarray]:
    """Suppression or voting of sorted candidates, then the best `how.most`."""
    boxes, scores, points = (found[k] for k in ("boxes", "scores", "landmarks"))
    if how.vote:
        boxes, scores, points = nms_host.vote(boxes, scores, points, how.iou)
    else:
        keep = nms_host.suppress(boxes, how.iou)
        boxes, scores, points = boxes[keep], scores[keep], points[keep]
    parts = {"boxes": boxes, "scores": scores, "landmarks": points}
    return {k: v[: how.most].astype(np.float32) for k, v in parts.items()}


def _look(
    detector: Scanner, image: np.ndarray, scale: float, mirrored: bool
) -> dict[str, np.ndarray]:
    """Candidates of one look, in pixels of the image."""
    seen = image if scale == 1.0 else rescale(image, scale)
    found = dict(detector.scan(np.ascontiguousarray(seen[:, ::-1]) if mirrored else seen))
    if mirrored:
        width = seen.shape[1]
        boxes, points = found["boxes"].copy(), found["landmarks"][:, MIRRORED].copy()
        boxes[:, [0, 2]] = width - found["boxes"][:, [2, 0]]
        points[..., 0] = width - points[..., 0]
        found |= {"boxes": boxes, "landmarks": points}
    found["boxes"], found["landmarks"] = found["boxes"] / scale, found["landmarks"] / scale
    return found


def rescale(image: np.ndarray, scale: float) -> np.ndarray:
    """Bilinear with pixel centres at one half, no smoothing: uint8 [H, W, 3] to float32 [0, 1].

    Sides are rounded; the scale itself, not the quotient of the sides, places the pixels.
    """
    x = image.astype(np.float32) / np.float32(255)
    for axis in (0, 1):
        count = max(round(x.shape[axis] * scale), 1)
        place = np.maximum((np.arange(count) + 0.5) / scale - 0.5, 0)
        low = np.minimum(place.astype(np.int64), x.shape[axis] - 1)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = (place - low).clip(0, 1).astype(np.float32)
        weight = weight.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x


def to_predictions(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """Faces as rows of a prediction file, [N, 5]: x, y, width, height, score."""
    boxes = np.asarray(found["boxes"], np.float64).reshape(-1, 4)
    scores = np.asarray(found["scores"], np.float64).reshape(-1, 1)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores], 1)
