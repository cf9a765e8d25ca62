"""Remote inference: the image itself, coded by the formats that people already use.

The bytes are complete files that any viewer opens. Every format is set the way a careful user
would: the file's own entropy coding optimised, chroma as the format does by default (JPEG, WebP and
AVIF halve it, JPEG XL does not), no metadata. JPEG, WebP and AVIF come with Pillow, AVIF only if it
was built with it; JPEG XL needs the package imagecodecs (extra "anchors").
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcomp.errors import CorruptStreamError, JaxcompError, ShapeError

# Six a format, rising, over what a detector still works with (about 0.1 to 2 bits a pixel).
QUALITIES: Mapping[str, tuple[int, ...]] = {
    "jpeg": (10, 20, 35, 50, 70, 85),
    "webp": (5, 15, 35, 55, 75, 90),
    "avif": (10, 20, 35, 50, 65, 80),
    "jpegxl": (15, 30, 45, 60, 75, 88),
}
_SETTINGS: Mapping[str, dict[str, Any]] = {
    "jpeg": {"optimize": True, "progressive": True},
    "webp": {"method": 6},
    "avif": {"speed": 6, "max_threads": 1},
}
_EFFORT = 7  # of JPEG XL; its own default


class AnchorUnavailable(JaxcompError):
    """This machine lacks what an anchor needs; the message names the package."""


def missing_image_anchors() -> dict[str, str]:
    """Formats that cannot be written on this machine, with the reason."""
    reasons = {name: _why_missing(name) for name in QUALITIES}
    return {name: reason for name, reason in reasons.items() if reason}


def image_anchors() -> dict[str, tuple[int, ...]]:
    """{format: its six qualities, rising} of the formats that this machine can write and read."""
    missing = missing_image_anchors()
    return {name: points for name, points in QUALITIES.items() if name not in missing}


def encode_image(name: str, quality: int, image: np.ndarray) -> bytes:
    """The file of an image.

    Args:
      name: a key of `QUALITIES`.
      quality: 1 to 100, as the format's own tools count; for JPEG XL that of cjxl.
      image: [H, W, 3] uint8 RGB.

    Raises:
      ShapeError: not such an image, or larger than the format allows.
      ValueError: unknown format, or quality out of range.
      AnchorUnavailable: the format is not there on this machine.
    """
    _check_available(name)
    if not 1 <= quality <= 100:
        raise ValueError(f"{name} quality {quality}; give 1 to 100")
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise ShapeError(f"image is {image.dtype} {image.shape}; uint8 [H, W, 3] is needed")
    try:
        if name == "jpegxl":
            return _encode_jpegxl(quality, np.ascontiguousarray(image))
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(image).save(out, name.upper(), quality=quality, **_SETTINGS[name])
    except (OSError, ValueError, RuntimeError) as error:
        raise ShapeError(f"{name} cannot hold an image of {image.shape}: {error}") from error
    return out.getvalue()


def decode_image(name: str, blob: bytes) -> np.ndarray:
    """[H, W, 3] uint8 RGB from a file of the format `name`.

    Raises:
      CorruptStreamError: damaged, cut short, or of another format.
      ValueError: unknown format.
      AnchorUnavailable: the format is not there on this machine.
    """
    _check_available(name)
    try:
        image = _decode_jpegxl(blob) if name == "jpegxl" else _decode_pillow(name, blob)
    except Exception as error:  # decoders raise anything on damage, down to struct.error
        raise CorruptStreamError(f"not a whole {name} file ({len(blob)} bytes): {error}") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise CorruptStreamError(f"the {name} file holds {image.dtype} {image.shape}, not RGB")
    return image


def _decode_pillow(name: str, blob: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(blob), formats=[name.upper()]) as image:
        return np.asarray(image.convert("RGB"))


def jpegxl_distance(quality: float) -> float:
    """Butteraugli distance of a quality up to 100, the rule of libjxl's own tools."""
    if quality >= 30:
        return 0.1 + (100 - quality) * 0.09
    return 53 / 3000 * quality**2 - 23 / 20 * quality + 25


def _encode_jpegxl(quality: int, image: np.ndarray) -> bytes:
    import imagecodecs

    distance = jpegxl_distance(quality)
    return bytes(imagecodecs.jpegxl_encode(image, distance=distance, effort=_EFFORT, numthreads=1))


def _decode_jpegxl(blob: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.jpegxl_decode(blob, numthreads=1)


def _check_available(name: str) -> None:
    if name not in QUALITIES:
        raise ValueError(f"image format {name!r}; there are {', '.join(QUALITIES)}")
    reason = _why_missing(name)
    if reason:
        raise AnchorUnavailable(reason)


def _why_missing(name: str) -> str | None:
    if name == "jpegxl":
        return _why_no_jpegxl()
    from PIL import features

    feature = {"jpeg": "jpg"}.get(name, name)
    if feature not in features.get_supported():
        return f"this Pillow is built without {name}; install Pillow from its wheels"
    return None


def _why_no_jpegxl() -> str | None:
    try:
        there = importlib.import_module("imagecodecs").JPEGXL.available
    except ImportError:
        return "jpegxl needs the package imagecodecs: pip install 'jaxcomp[anchors]'"
    return None if there else "this imagecodecs is built without JPEG XL"
