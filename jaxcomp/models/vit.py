"""Vision transformer without a classification head (Dosovitskiy et al., 2021, arXiv:2010.11929).

    images ── patches ── linear ── + positions ── CLS ++ tokens ── blocks ── norm ──► [B, 1 + N, D]

Tokens are in raster order. A subset of them can be encoded alone: the patches of the others are not
even embedded, so that the cost falls with the share that is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxcomp.errors import ConfigError, ShapeError
from jaxcomp.models.transformer import INIT, layer_norm, make_blocks
from jaxcomp.types import Array

ENCODER_EPSILON = 1e-6
POSITIONS = ("learned", "sincos")
# What uint8 pixels become: the usual ImageNet normalisation, RGB.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of an encoder; the defaults are ViT-B/16 on 224 x 224 pixels.

    Attributes:
      image_size: (rows, columns) of the images, or one number for both.
      patch: side of a patch; it divides the image.
      width: of a token.
      depth: blocks.
      heads: of the attention; they divide the width.
      mlp_ratio: hidden width of the MLP over the width.
      positions: "learned" embeddings, or fixed "sincos".
      rope: rotary embedding of the places in every attention, beside `positions`.
      layer_scale, drop_path: see `transformer.Block`.
      remat: see `transformer.make_blocks`.
      dtype: compute type; parameters stay float32.

    Raises:
      ConfigError: a size is out of range or does not divide another.
    """

    image_size: tuple[int, int] = (224, 224)
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    positions: str = "learned"
    rope: bool = False
    layer_scale: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", (self.image_size, self.image_size))
        object.__setattr__(self, "image_size", tuple(self.image_size))
        for name in ("patch", "width", "depth", "heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        if len(self.image_size) != 2 or any(n < 1 or n % self.patch for n in self.image_size):
            raise ConfigError(
                f"image_size={self.image_size} is not two positive multiples of patch={self.patch}"
            )
        if self.positions not in POSITIONS:
            raise ConfigError(f"positions={self.positions!r} is none of {', '.join(POSITIONS)}")
        check_heads("heads", self.heads, self.width, self.rope)
        if self.positions == "sincos" and self.width % 4:
            raise ConfigError(f"width={self.width} must be a multiple of 4 for positions='sincos'")
        if not self.mlp_ratio > 0 or not 0 <= self.drop_path < 1 or self.layer_scale < 0:
            raise ConfigError(
                f"mlp_ratio={self.mlp_ratio} must be more than 0, drop_path={self.drop_path} in "
                f"[0, 1), layer_scale={self.layer_scale} at least 0"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patches."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def hidden(self) -> int:
        """Hidden width of the MLPs."""
        return round(self.width * self.mlp_ratio)


def check_heads(name: str, heads: int, width: int, rope: bool) -> None:
    """Raises `ConfigError` unless heads of an attention fit its width."""
    if heads < 1 or width % heads:
        raise ConfigError(f"{name}={heads} does not divide the width {width}")
    if rope and (width // heads) % 4:
        raise ConfigError(
            f"{name}={heads} makes heads of {width // heads} channels; rope needs multiples of 4"
        )


SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}


def encoder_type(name: str) -> dict[str, Any]:
    """Sizes by name: "base", or in full "vit_base_patch16_224" with patch and image side.

    Raises:
      ConfigError: the name is unknown.
    """
    words = name.split("_")
    whole = words[0] == "vit"
    size, rest = words[whole and len(words) > 1], words[2:] if whole else words[1:]
    numbers = [word.removeprefix("patch") for word in rest]
    if size not in SIZES or (rest and not whole) or not all(_positive(n) for n in numbers):
        raise ConfigError(
            f"encoder_type={name!r} is unknown; use one of {', '.join(SIZES)}, or a full name "
            "like 'vit_base_patch16_224'"
        )
    names = ["patch" if word.startswith("patch") else "image_size" for word in rest]
    return {**SIZES[size], **dict(zip(names, map(int, numbers), strict=True))}


def _positive(text: str) -> bool:
    return text.isdigit() and int(text) > 0


def places(grid: tuple[int, int]) -> np.ndarray:
    """float32 [N, 2], (row, column) of every patch in raster order."""
    return np.moveaxis(np.indices(grid), 0, -1).reshape(-1, 2).astype(np.float32)


def sincos(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed positions float32 [N, width]: sines and cosines of rows, then of columns.

    Vaswani et al., 2017 (arXiv:1706.03762), equation of section 3.5, on two axes.
    """
    rates = 1e4 ** (-np.arange(width // 4) / (width // 4))
    angles = places(grid)[:, :, None] * rates  # [N, 2, width / 4]
    parts = [f(angles[:, axis]) for axis in (0, 1) for f in (np.sin, np.cos)]
    return np.concatenate(parts, 1).astype(np.float32)


def normalise_image(image: Array) -> Array:
    """uint8 pixels [B, H, W, 3] to float32, ImageNet-normalised; floats are left as they are."""
    if image.dtype != jnp.uint8:
        return image.astype(jnp.float32)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (MEAN, STD))
    return (image.astype(jnp.float32) / 255.0 - mean) / std


def patchify(image: Array, patch: int) -> Array:
    """[B, H, W, C] to [B, N, patch patch C], raster order in and between patches."""
    b, height, width, c = image.shape
    x = image.reshape(b, height // patch, patch, width // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


def take_tokens(x: Array, index: Array) -> Array:
    """Rows of [B or 1, N, D] at `index` int [B, K]."""
    x = jnp.broadcast_to(x, (index.shape[0], *x.shape[1:]))
    return jnp.take_along_axis(x, index[..., None], 1)


class ViT(nn.Module):
    """The encoder."""

    cfg: ViTConfig

    def setup(self) -> None:
        """Makes embeddings and blocks."""
        cfg = self.cfg
        shape = (cfg.patch, cfg.patch, 3, cfg.width)
        flat = nn.initializers.truncated_normal(0.02)
        self.patch_kernel = self.param("patch_kernel", flat, shape)
        self.patch_bias = self.param("patch_bias", nn.initializers.zeros, (cfg.width,))
        self.class_token = self.param("class_token", INIT, (1, 1, cfg.width))
        if cfg.positions == "learned":
            self.positions = self.param("positions", INIT, (1, 1 + cfg.tokens, cfg.width))
        else:
            fixed = np.pad(sincos(cfg.grid, cfg.width), ((1, 0), (0, 0)))
            self.positions = jnp.asarray(fixed)[None]
        self.blocks = make_blocks(
            cfg.depth, remat=cfg.remat, drop_path=cfg.drop_path, heads=cfg.heads,
            hidden=cfg.hidden, epsilon=ENCODER_EPSILON, layer_scale=cfg.layer_scale,
            dtype=jnp.dtype(cfg.dtype),
        )  # fmt: skip
        self.norm = layer_norm(ENCODER_EPSILON, jnp.dtype(cfg.dtype))

    def patch_positions(self) -> Array:
        """Position embeddings of the patches, float32 [1, N, D]."""
        return self.positions[:, 1:]

    def __call__(
        self,
        images: Array,
        *,
        keep: Array | None = None,
        index: Array | None = None,
        valid: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Encodes images.

        Args:
          images: [B, H, W, 3], uint8 pixels or normalised floats.
          keep: float or bool [B, N]; tokens times it (positions included) go in, none is dropped.
          index: int [B, K], the only tokens that go in.
          valid: bool [B, K], which of those are real; the others change nothing.
          train: drop paths; needs the stream "dropout" then.

        Returns:
          [B, 1 + N (or K), D] in the compute type, the class token first.

        Raises:
          ShapeError: the images have another size or type than the config says.
        """
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        check_images(images, cfg.image_size)
        x = patchify(normalise_image(images), cfg.patch)
        spots = jnp.asarray(places(cfg.grid))[None]
        positions = self.patch_positions()
        if index is not None:
            x, positions, spots = (take_tokens(y, index) for y in (x, positions, spots))
        kernel = self.patch_kernel.reshape(-1, cfg.width).astype(dtype)
        x = x.astype(dtype) @ kernel + self.patch_bias.astype(dtype).reshape(1, 1, -1)
        x = x + positions.astype(dtype)
        if keep is not None:
            x = x * keep.astype(dtype)[..., None]
        first = (self.class_token + self.positions[:, :1]).astype(dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, cfg.width)), x], 1)
        if valid is not None:
            valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        turned = jnp.pad(spots, ((0, 0), (1, 0), (0, 0))) if cfg.rope else None
        for block in self.blocks:
            x = block(x, valid, turned, train)
        return self.norm(x)


def check_images(images: Array, size: tuple[int, int]) -> None:
    """Raises `ShapeError` unless images are [B, *size, 3], uint8 or floating."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1:] != (*size, 3):
        raise ShapeError(
            f"images have shape {list(shape)}, [B, {size[0]}, {size[1]}, 3] is needed; "
            "resize them or set image_size"
        )
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ShapeError(f"images are {images.dtype}; give uint8 pixels or normalised floats")
