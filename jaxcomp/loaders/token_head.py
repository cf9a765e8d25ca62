"""The frozen encoder of an H-JEPA behind the interface of a detector's head: images to token maps.

    pictures ── target encoder ── level l ──► tokens [B, N_l, D] ──► map [B, h, w, D], "t0" ... "t3"

`HJEPAConfig.map_shape` says how tokens lie in a map.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcomp.data.images import check_image, read_image
from jaxcomp.data.pictures import fitted
from jaxcomp.errors import NonFiniteError
from jaxcomp.loaders.hjepa import HJEPAModel, load_hjepa
from jaxcomp.types import Features

KIND = "hjepa"  # the "detector_kind" of codecs of tokens


def feature_name(level: int) -> str:
    """Of a level's map in files: "t0". Every letter of a name is a byte of a small file."""
    return f"t{level}"


class TokenHead:
    """Images to token maps of every level.

    Attributes:
      model: the network.
      digest: SHA-256 of its weights.
      classes: none; it detects nothing.
    """

    classes = ()

    def __init__(self, model: HJEPAModel):
        """Wraps a loaded network."""
        self.model, self.digest = model, model.digest

    def prepare(
        self, image: Any, rule: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Brings any image to the network: its largest centred square, or crop of that shape.

        Args:
          image: a path, or uint8 RGB [H, W, 3].
          rule: not needed: the network has one size.

        Returns:
          (uint8 [1, H', W', 3], meta {"original_size" [1, 2]}).

        Raises:
          DataError: the file cannot be read as an image.
        """
        del rule
        pixels = read_image(image) if isinstance(image, str | os.PathLike) else check_image(image)
        size = np.asarray([pixels.shape[:2]], np.float32)
        return fitted(pixels, *self.model.cfg.encoder.image_size)[None], {"original_size": size}

    def get_fpn_features(self, images: Any) -> Features:
        """{"t0": float32 [B, h, w, D], ...} of images as `prepare` gives them."""
        levels = range(self.model.cfg.num_hierarchies)
        return {feature_name(level): self.maps(images, level) for level in levels}

    def maps(self, images: Any, level: int) -> np.ndarray:
        """One level's maps, float32 [B, h, w, D], of uint8 images [B, H, W, 3].

        Raises:
          ConfigError: there is no such level.
          NonFiniteError: the tokens hold NaN or infinity.
        """
        tokens = np.asarray(self.model.extract_features(images, level).astype(jnp.float32))
        if not np.isfinite(tokens).all():
            raise NonFiniteError(
                f"tokens of level {level} hold NaN or infinity; the H-JEPA has diverged, train it "
                "anew with a lower learning rate"
            )
        return tokens.reshape(len(tokens), *self.model.cfg.map_shape(level), tokens.shape[-1])


def load_token_head(path: str | os.PathLike[str]) -> TokenHead:
    """The head of `hjepa.npz` or of a run directory that holds it.

    Raises:
      CheckpointError: it is missing, damaged, or of another kind.
    """
    return TokenHead(load_hjepa(path))
