"""What happens to pixels before a network: one normalisation, one resize, padding with zeros.

    uint8 pixels ── normalise ── resize to `image_size` ── pad to the canvas ──► network

The order is that of torchvision's `GeneralizedRCNNTransform`. Nothing else in the package
normalises images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from jaxcomp.ops.resize import resize_into
from jaxcomp.types import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Frames(flax.struct.PyTreeNode):
    """Images at their native size, and the size that the network shall see.

    Attributes:
      pixels: uint8 or float [0, 1] RGB [B, H, W, 3]; beyond `native_size` they are padding.
      native_size: [B, 2] (rows, columns) of the real part.
      image_size: [B, 2] (rows, columns) after resizing.
      canvas: (rows, columns) of the network's input, static.
    """

    pixels: Array
    native_size: Array
    image_size: Array
    canvas: tuple[int, int] = flax.struct.field(pytree_node=False)


def frames_of(batch: Mapping[str, Any], canvas: tuple[int, int]) -> Frames | Array:
    """The network's input from a batch: its images as they are, or `Frames` of native images."""
    if "native_size" not in batch:
        return batch["image"]
    return Frames(batch["image"], batch["native_size"], batch["image_size"], canvas)


def network_input(images: Frames | Array) -> Array:
    """Normalised float32 [B, H, W, 3]; `Frames` are resized and padded with zeros."""
    if not isinstance(images, Frames):
        return normalise_image(images)
    pixels = normalise_image(images.pixels)
    return resize_into(pixels, images.native_size, images.image_size, images.canvas)


def normalise_image(image: Array) -> Array:
    """ImageNet normalisation of uint8 [0, 255] or float [0, 1] RGB."""
    x = image.astype(jnp.float32)
    if jnp.issubdtype(image.dtype, jnp.integer):
        x = x / 255.0
    shape = (1,) * (x.ndim - 1) + (3,)
    mean = np.asarray(IMAGENET_MEAN, np.float32).reshape(shape)
    return (x - mean) / np.asarray(IMAGENET_STD, np.float32).reshape(shape)
