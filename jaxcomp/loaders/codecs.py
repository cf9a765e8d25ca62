"""A trained codec of one level or of a pyramid, as an object that makes bytes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Unpack

import jax
import numpy as np

from jaxcomp import trees
from jaxcomp.codecs.coding import Limits, Model
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.pyramid import PyramidCoder
from jaxcomp.codecs.tables import CdfTables
from jaxcomp.errors import BitstreamError, CheckpointError
from jaxcomp.models.fpn import LEVELS


def codec_tree(variables: Mapping[str, Any], tables: CdfTables) -> dict[str, Any]:
    """What `codec.npz` holds of a model."""
    return {**variables, "tables": np.frombuffer(tables.to_bytes(), np.uint8)}


class PyramidCodec:
    """A codec of pyramid levels with its integer tables: features to bytes and back.

    Attributes:
      coder: the models and what is done to the levels; see `jaxcomp.codecs.pyramid`.
      levels: all feature keys that it codes, as in ("p2", ..., "p6").
      stream_names: the streams of its files.
      tables: with the digest that stands in its files.
      meta: what is stored beside the weights (treatment, rate weight and its convention, detector).
    """

    def __init__(self, coder: PyramidCoder, meta: Mapping[str, Any]):
        """Wraps models; use `load_codec` to read them."""
        self.coder = coder
        self.meta = dict(meta)
        self.levels = coder.levels
        self.stream_names = coder.stream_names
        self.tables = coder.tables

    @property
    def codec(self) -> FactorisedCodec:
        """The network, of an assembled pyramid that of its first level."""
        return next(iter(self.coder.models.values())).codec

    @property
    def input(self) -> Mapping[str, Any] | None:
        """How images reached the network in training: the `rule` of `Detector.prepare`."""
        return self.meta.get("input")

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and tables, as `codec.npz` stores it: names the model."""
        return str(self.meta["digest"])

    def select(self, features: Any) -> dict[str, Any]:
        """What of `features` this codec codes: {level: [1, H, W, C]}.

        Args:
          features: a pyramid that holds the levels among others; for a codec of one level also its
            map alone.

        Raises:
          ShapeError: a level is missing.
        """
        return self.coder.select(features)

    def compress(
        self, features: Any, meta: Mapping[str, Any] | None = None, *, backend: str = "numba"
    ) -> bytes:
        """The `.jxc` bytes of one frame.

        Args:
          features: a pyramid of which this codec's levels are taken; see `select`.
          meta: small JSON values to carry along (image size, scale, class names).
          backend: who runs the entropy coder, one of `codecs.rans.BACKENDS`; the bytes are the
            same.

        Raises:
          ShapeError: wrong channels or shape.
          NonFiniteError: NaN or infinity in the features.
        """
        return self.coder.compress(features, meta, backend=backend)

    def decompress(self, blob: bytes, **limits: Unpack[Limits]) -> dict[str, jax.Array]:
        """{level: [1, H, W, C] float32} from `.jxc` bytes.

        Args:
          blob: the bytes of the file.
          **limits: what the file may ask for, and who decodes; see `codecs.limits.Limits`.

        Raises:
          BitstreamError: truncated, corrupt, too large, of another version or of another model.
        """
        return self.coder.decompress(blob, **limits)

    def decompress_partial(
        self, blob: bytes, **limits: Unpack[Limits]
    ) -> tuple[dict[str, jax.Array], list[BitstreamError]]:
        """What can be decoded of a damaged file, arguments as of `decompress`.

        Returns:
          (the maps of the undamaged streams, what was wrong with the others).

        Raises:
          BitstreamError: the header is damaged, or the file is of another model.
        """
        return self.coder.decompress_partial(blob, **limits)

    def check_detector(self, detector: Any) -> None:
        """Raises `CheckpointError` unless the codec was trained on this detector's features."""
        wanted = self.meta.get("detector_digest")
        if wanted and wanted != detector.digest:
            raise CheckpointError(
                f"the codec was trained on the features of another detector ({wanted[:12]}, "
                f"this one is {detector.digest[:12]}); give that one by --detector"
            )


class LevelCodec(PyramidCodec):
    """A codec of one pyramid level.

    Attributes:
      variables: of its network.
      level: the feature key it was trained for, as in "p4"; "t0" for level 0 of tokens.
    """

    def __init__(
        self, codec: FactorisedCodec, variables: Any, tables: CdfTables, meta: Mapping[str, Any]
    ):
        """Wraps a model; use `load_codec` to read one."""
        self.level = str(meta.get("feature") or LEVELS[meta["level"]])
        self.variables = variables
        self._model = Model(codec, variables, tables)
        super().__init__(PyramidCoder((self.level,), {self.level: self._model}), meta)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and tables: names the model.

        It is the one that `codec.npz` stores.
        """
        tree = codec_tree(self.variables, self._model.tables)
        return str(self.meta.get("digest") or trees.tree_digest(tree))
