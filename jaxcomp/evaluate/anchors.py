"""What a reader compares a learned codec with, behind one small interface.

kind         coded                                     anchors
"image"      the image, then the whole network         jpeg webp avif jpegxl
"feature"    the pyramid, then the tail                uniform-level uniform-channel
                                                       hevc-level hevc-channel vvc-level ...
"detections" the detections: all of it at the edge     boxes

  offer = anchors("feature")
  for anchor in offer.anchors:
      blob = anchor.encode(pyramid)      # complete, self-contained: len(blob) is the rate
      restored = anchor.decode(blob)
  offer.missing                          # {"vvc-level": "the FFmpeg of this PyAV ..."}
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from jaxcomp.evaluate.anchors_boxes import decode_detections, encode_detections
from jaxcomp.evaluate.anchors_feature import (
    BITS,
    decode_quantised,
    encode_quantised,
    zstd_module,
)
from jaxcomp.evaluate.anchors_image import (
    AnchorUnavailable,
    decode_image,
    encode_image,
    image_anchors,
    missing_image_anchors,
)
from jaxcomp.evaluate.anchors_video import (
    ENCODERS,
    QPS,
    decode_video,
    encode_video,
    video_module,
)

KINDS = ("image", "feature", "detections")
_RANGES = {"level": False, "channel": True}


@dataclasses.dataclass(frozen=True)
class Anchor:
    """One operating point of a coder that needs no training.

    Attributes:
      name: of the coder, as in "avif" or "hevc-channel".
      point: its setting: quality, bits of a symbol or QP; None if it has none.
      encode: kind "image": uint8 RGB [H, W, 3]; "feature": a pyramid {"p2": [1, H, W, C], ...} or a
        part of one; "detections": what `Detector.detect` returns -> bytes.
      decode: those bytes -> the same kind of thing. It raises `BitstreamError` on damage.
    """

    name: str
    point: int | None
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    @property
    def label(self) -> str:
        """Name and point, as in "avif-35"."""
        return self.name if self.point is None else f"{self.name}-{self.point}"


@dataclasses.dataclass(frozen=True)
class Offer:
    """The anchors of one kind.

    Attributes:
      anchors: those that work on this machine; of one name, the fewest bytes first.
      missing: {name: why it does not work here}.
    """

    anchors: tuple[Anchor, ...]
    missing: dict[str, str]


def anchors(kind: str) -> Offer:
    """The anchors of a kind: every point of those that this machine has, and what it lacks.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"anchors of kind {kind!r}; there are {', '.join(KINDS)}")
    if kind == "image":
        return _image_offer()
    if kind == "detections":
        return Offer((Anchor("boxes", None, encode_detections, decode_detections),), {})
    return _feature_offer()


def _image_offer() -> Offer:
    offered = tuple(
        Anchor(
            name,
            quality,
            functools.partial(encode_image, name, quality),
            functools.partial(decode_image, name),
        )
        for name, qualities in image_anchors().items()
        for quality in qualities
    )
    return Offer(offered, missing_image_anchors())


def _feature_offer() -> Offer:
    offered: list[Anchor] = []
    missing: dict[str, str] = {}
    for ranges, per_channel in _RANGES.items():
        name, encode = f"uniform-{ranges}", functools.partial(_quantised, per_channel=per_channel)
        _add(offered, missing, name, sorted(BITS), zstd_module, encode, decode_quantised)
    for codec in ENCODERS:
        check = functools.partial(video_module, codec)
        for ranges, per_channel in _RANGES.items():
            encode = functools.partial(_video, codec=codec, per_channel=per_channel)
            _add(offered, missing, f"{codec}-{ranges}", QPS[::-1], check, encode, decode_video)
    return Offer(tuple(offered), missing)


def _add(
    offered: list[Anchor],
    missing: dict[str, str],
    name: str,
    points: Sequence[int],
    check: Callable[[], object],
    encode: Callable[..., bytes],
    decode: Callable[[bytes], Any],
) -> None:
    """Adds every point of a coder, or the reason why it is not there."""
    try:
        check()
    except AnchorUnavailable as error:
        missing[name] = str(error)
        return
    offered += [Anchor(name, p, functools.partial(encode, p), decode) for p in points]


def _quantised(bits: int, features: Any, *, per_channel: bool) -> bytes:
    return encode_quantised(features, bits, per_channel=per_channel)


def _video(qp: int, features: Any, *, codec: str, per_channel: bool) -> bytes:
    return encode_video(features, qp, codec=codec, per_channel=per_channel)
