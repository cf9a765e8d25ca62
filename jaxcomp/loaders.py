"""Ready-made objects from files: a split detector and a feature codec that makes bytes.

These wrappers are conveniences for scripts and notebooks; all state is in plain arrays that they
hold and never change.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib.resources
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import checkpoint
from jaxcomp.codecs import bitstream
from jaxcomp.codecs.coding import MAX_VALUES, Model
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.pyramid import JOINT, PyramidCoder, shared_models
from jaxcomp.codecs.tables import CdfTables
from jaxcomp.data.images import check_image, fit_image, read_image
from jaxcomp.data.resize import canvas_size, shortest_size
from jaxcomp.errors import BitstreamError, CheckpointError, ShapeError
from jaxcomp.models.faster_rcnn import SIZE_MULTIPLE, FasterRCNN
from jaxcomp.models.fpn import LEVELS
from jaxcomp.models.transform import Frames, network_input
from jaxcomp.ops.compiling import inference_options
from jaxcomp.tasks.detect import detector_config

SHIPPED_DETECTOR = "detector_scenes.npz"
DETECTOR_FILE, CODEC_FILE = "detector.npz", "codec.npz"
FOREIGN = (".pth", ".pt", ".safetensors")
PIXEL_BUCKET = 128  # images are padded to multiples of it before they are resized


def find_file(path: str | os.PathLike[str], name: str) -> Path:
    """The weights file that a path means: a file, a run directory, or a pattern matching one.

    Args:
      path: a file, a directory that holds `name`, or a glob pattern; of several matches the newest.
      name: the file looked for in directories.

    Raises:
      CheckpointError: there is no such file.
    """
    matches = [Path(path)] if Path(path).exists() else [Path(p) for p in glob.glob(str(path))]
    files = [m / name if m.is_dir() else m for m in matches]
    files = sorted((f for f in files if f.is_file()), key=lambda f: f.stat().st_mtime)
    if not files:
        raise CheckpointError(
            f"no weights at {str(path)!r}: give a .npz file, or a finished run directory that "
            f"holds {name!r}"
        )
    return files[-1]


def load_detector(
    path: str | os.PathLike[str] | None = None, *, bucket: int = SIZE_MULTIPLE
) -> Detector:
    """A detector from weights; without a path the small one that ships with the package.

    Args:
      path: `detector.npz`, a run directory of `configs/detector.py`, or a pattern.
      bucket: detectors that keep the aspect of images pad them to multiples of this, itself a
        multiple of 32. 32 gives torchvision's numbers; a larger one compiles for fewer shapes.

    Raises:
      CheckpointError: the file is missing, truncated or not a detector.
      ShapeError: `bucket` is not a multiple of 32.
    """
    if bucket < 1 or bucket % SIZE_MULTIPLE:
        raise ShapeError(f"bucket={bucket} is not a positive multiple of {SIZE_MULTIPLE}")
    if not path:
        with importlib.resources.as_file(
            importlib.resources.files("jaxcomp") / "weights" / SHIPPED_DETECTOR
        ) as shipped:
            return _read_detector(Path(shipped), bucket)
    return _read_detector(find_file(path, DETECTOR_FILE), bucket)


def _read_kind(path: Path, kind: str) -> tuple[Any, dict[str, Any]]:
    tree, meta = checkpoint.load_npz(path)
    if meta.get("kind") != kind:
        raise CheckpointError(
            f"{str(path)!r} holds {meta.get('kind') or 'something else'!r}, a {kind} is needed"
        )
    return tree, meta


@contextlib.contextmanager
def _complete(path: Path, kind: str) -> Iterator[None]:
    """Words what goes wrong while a model is built from a file's record."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, BitstreamError) as error:
        raise CheckpointError(f"{str(path)!r} is not a complete {kind} ({error!r})") from error


def _read_detector(path: Path, bucket: int) -> Detector:
    if path.suffix in FOREIGN:
        raise CheckpointError(
            f"{str(path)!r} is a file of another framework: bring it in with `python -m jaxcomp "
            "import-weights`, and give the .npz that it makes"
        )
    tree, meta = _read_kind(path, "detector")
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    with _complete(path, "detector"):
        needed = ("classes", "height", "width")
        if meta.get("resize", "none") != "none":
            needed += ("min_side", "max_side")
        _ = [meta[name] for name in needed]
        model = FasterRCNN(detector_config(meta["model"]))
        wanted = jax.eval_shape(
            functools.partial(model.init, train=True),
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8),
            jax.ShapeDtypeStruct((1, 2), jnp.float32),
        )
    checkpoint.check_same(
        checkpoint.leaves_by_path(variables), checkpoint.leaves_by_path(wanted), path
    )
    return Detector(model, variables, meta, bucket)


class Detector:
    """Faster R-CNN cut at its pyramid: `detect_from_features(get_fpn_features(x)) == detect(x)`.

    Attributes:
      model: the network.
      variables: its parameters and batch statistics.
      meta: what is stored beside the weights (classes, image size, accuracy, command).
      digest: SHA-256 of the variables.
    """

    def __init__(
        self,
        model: FasterRCNN,
        variables: Any,
        meta: Mapping[str, Any],
        bucket: int = SIZE_MULTIPLE,
    ):
        """Wraps a network; use `load_detector` to read one."""
        self.model = model
        self.variables = variables
        self.meta = dict(meta)
        self.bucket = bucket
        self.classes = tuple(meta["classes"])
        self.digest = str(meta.get("digest") or checkpoint.tree_digest(variables))
        # Three programs, so that another size of photo does not compile the network again.
        self._input = jax.jit(network_input)
        options = inference_options()
        self._head, self._tail = (
            jax.jit(functools.partial(model.apply, method=name), compiler_options=options)
            for name in ("pyramid", "detect")
        )

    def compilations(self) -> int:
        """How often the network itself was compiled: once a half and shape."""
        return self._head._cache_size() + self._tail._cache_size()

    def prepare(
        self, image: Any, rule: Mapping[str, Any] | None = None
    ) -> tuple[Frames | np.ndarray, dict[str, np.ndarray]]:
        """Brings any image to the network's size.

        Args:
          image: a path, or uint8 RGB [H, W, 3].
          rule: {"resize", "height", "width", "min_side", "max_side"} instead of the detector's own,
            as `LevelCodec.input` has it: a codec should see what it was trained on.

        Returns:
          (input for `get_fpn_features`, meta), where meta {"image_size", "scale",
          "original_size"}, each [1, 2] (height, width), takes boxes back to the original.

        Raises:
          DataError: the file cannot be read as an image.
        """
        if isinstance(image, str | os.PathLike):
            image = read_image(image)
        rule = rule or self.meta
        if rule.get("resize", "none") == "none":
            return self._fit(np.asarray(image), rule)
        return self._frames(check_image(image), rule)

    def _fit(
        self, image: np.ndarray, rule: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Networks of one size see the image shrunk or grown into it."""
        fitted, fit = fit_image(image, rule["height"], rule["width"])
        original = np.asarray([[fit.height, fit.width]], np.float32)
        scale = np.full((1, 2), fit.scale, np.float32)
        size = np.minimum(np.round(original * scale), fitted.shape[:2])
        return fitted[None], {"image_size": size, "scale": scale, "original_size": original}

    def _frames(
        self, image: np.ndarray, rule: Mapping[str, Any]
    ) -> tuple[Frames, dict[str, np.ndarray]]:
        """The image as it is, with the size that the rule gives it."""
        native = image.shape[:2]
        size = (rule["height"], rule["width"])
        if rule["resize"] == "shortest":
            size = shortest_size(*native, rule["min_side"], rule["max_side"])
        room = canvas_size(*native, PIXEL_BUCKET)
        pixels = np.zeros((1, *room, 3), np.uint8)
        pixels[0, : native[0], : native[1]] = image
        original, new = (np.asarray([x], np.float32) for x in (native, size))
        frames = Frames(pixels, original, new, canvas_size(*size, self.bucket))
        return frames, {"image_size": new, "scale": new / original, "original_size": original}

    def get_fpn_features(self, image: Any) -> dict[str, jax.Array]:
        """The pyramid {"p2", ..., "p6"}, each [B, H_l, W_l, C] float32.

        Args:
          image: a path or one uint8 image [H, W, 3] of any size (see `prepare`), what `prepare`
            gives, or a batch [B, H, W, 3] whose sides are multiples of 32, taken as it is.
        """
        if isinstance(image, str | os.PathLike) or (
            not isinstance(image, Frames) and np.ndim(image) == 3
        ):
            image, _ = self.prepare(image)
        shape = (0, *image.canvas, 3) if isinstance(image, Frames) else np.shape(image)
        if len(shape) != 4 or any(n % SIZE_MULTIPLE for n in shape[1:3]):
            raise ShapeError(
                f"images have shape {shape}; a batch [B, H, W, 3] with sides that are "
                f"multiples of {SIZE_MULTIPLE} is needed (see Detector.prepare)"
            )
        return self.head(image)

    def detect_from_features(
        self, features: Mapping[str, Any], meta: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Detections from a (decompressed) pyramid; no pixels are needed.

        Args:
          features: {"p2", ..., "p6"}.
          meta: from `prepare`; without it boxes are in network pixels.

        Returns:
          {"boxes" [B, D, 4], "scores" [B, D], "labels" [B, D], "valid" [B, D]}; boxes in pixels of
          the original image if `meta` has its scale.

        Raises:
          ShapeError: a level is missing or has other channels than the network.
        """
        self._check(features)
        levels = {name: jnp.asarray(features[name], jnp.float32) for name in LEVELS}
        count = levels["p5"].shape[0]
        padded = [[n * SIZE_MULTIPLE for n in levels["p5"].shape[1:3]]] * count
        size = np.asarray((meta or {}).get("image_size", padded), np.float32)
        found = {k: np.array(v) for k, v in self._tail(self.variables, levels, size).items()}
        if meta is not None and "scale" in meta:
            scale = np.asarray(meta["scale"], np.float32)
            found["boxes"] /= np.concatenate([scale[:, ::-1]] * 2, 1)[:, None]
        return found

    def _check(self, features: Mapping[str, Any]) -> None:
        channels = self.model.cfg.fpn_features
        for name in LEVELS:
            if name not in features:
                raise ShapeError(f"features lack level {name!r}; the detector needs {LEVELS}")
            shape = np.shape(features[name])
            if len(shape) != 4 or shape[-1] != channels:
                raise ShapeError(
                    f"features[{name!r}] has shape {shape}; the detector needs "
                    f"[B, H, W, {channels}]"
                )
        height, width = np.shape(features["p5"])[1:3]
        for name, times in (("p2", 8), ("p3", 4), ("p4", 2), ("p6", 0.5)):
            wanted = (math.ceil(height * times), math.ceil(width * times))
            if np.shape(features[name])[1:3] != wanted:
                raise ShapeError(
                    f"features[{name!r}] is {np.shape(features[name])[1:3]}, but beside a p5 of "
                    f"{height}x{width} it must be {wanted}: they are of frames of different sizes"
                )

    def detect(self, image: Any) -> dict[str, np.ndarray]:
        """Detections of one image of any size (path or uint8 [H, W, 3]), in its own pixels."""
        prepared, meta = self.prepare(image)
        return self.detect_from_features(self.get_fpn_features(prepared), meta)

    def head(self, images: Frames | Any) -> dict[str, jax.Array]:
        """The pyramid of a batch, unchecked: the hot path of training and evaluation."""
        return self._head(self.variables, self._input(images))

    def tail(self, features: Mapping[str, Any], image_size: Any) -> dict[str, jax.Array]:
        """Detections in network pixels, unchecked."""
        return self._tail(self.variables, dict(features), image_size)


def load_codec(path: str | os.PathLike[str]) -> PyramidCodec:
    """A trained codec from `codec.npz`, a run directory of a codec's config, or a pattern.

    Returns:
      A `LevelCodec` for a codec of one level, else a `PyramidCodec`.

    Raises:
      CheckpointError: the file is missing, truncated or not a codec.
    """
    path = find_file(path, CODEC_FILE)
    tree, meta = _read_kind(path, "codec")
    with _complete(path, "codec"):
        treatment = meta.get("treatment", "level")
        if treatment == "level":
            _ = LEVELS[meta["level"]]
            return LevelCodec(*_read_model(path, tree, meta["model"]), meta)
        levels = tuple(meta["levels"])
        if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS):
            raise ValueError(f"levels {levels}")
        if treatment == "assembled":
            models = {
                name: Model(*_read_model(path, tree[name], meta["parts"][name]["model"]))
                for name in levels
            }
        elif treatment == "joint":
            models = {JOINT: Model(*_read_model(path, tree, meta["model"]))}
        elif treatment == "random":
            shared = _read_model(path, tree, meta["model"], len(levels))
            models = shared_models(*shared, levels)
        else:
            raise ValueError(f"treatment {treatment!r}")
    return PyramidCodec(PyramidCoder(levels, models), meta)


def _read_model(
    path: Path, tree: Mapping[str, Any], model: Mapping[str, Any], levels: int = 0
) -> tuple[FactorisedCodec, Any, CdfTables]:
    """Network, variables and tables; `levels` if the statistics are those of so many levels."""
    codec = FactorisedCodec(**model)
    arrays = dict(tree)
    tables = CdfTables.from_bytes(np.asarray(arrays.pop("tables"), np.uint8).tobytes())
    size = 2**codec.stages
    x = jax.ShapeDtypeStruct((1, size, size, codec.in_channels), jnp.float32)
    wanted: Any = jax.eval_shape(codec.init, jax.random.key(0), x)
    if levels:
        stats = dict(wanted["stats"])
        for name in ("mean", "scale"):
            stats[name] = jax.ShapeDtypeStruct((levels, *stats[name].shape), jnp.float32)
        wanted = {**wanted, "stats": stats}
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
    checkpoint.check_same(
        checkpoint.leaves_by_path(variables), checkpoint.leaves_by_path(wanted), path
    )
    return codec, variables, tables


def codec_tree(variables: Mapping[str, Any], tables: CdfTables) -> dict[str, Any]:
    """What `codec.npz` holds of a model."""
    return {**variables, "tables": np.frombuffer(tables.to_bytes(), np.uint8)}


def save_codec(
    path: str | os.PathLike[str], tree: Mapping[str, Any], meta: Mapping[str, Any]
) -> PyramidCodec:
    """Writes `codec.npz` and reads it back.

    Args:
      path: the file.
      tree: `codec_tree` of the model, or {level: codec_tree} of an assembled pyramid.
      meta: its record: "model", and "level" or "treatment" and "levels".

    Returns:
      The codec that the file holds.
    """
    checkpoint.export_npz(Path(path), dict(tree), {"kind": "codec", **meta})
    return load_codec(path)


def assemble_pyramid(parts: Sequence[LevelCodec], path: str | os.PathLike[str]) -> PyramidCodec:
    """One codec of several levels from the codecs of each, saved as one file.

    Args:
      parts: codecs of different levels, trained on one detector and one size of images.
      path: the `codec.npz` to write.

    Returns:
      The codec that the file holds: its streams have the tables of their levels, and its digest is
      that of the set.

    Raises:
      CheckpointError: two parts are of one level, or they do not belong together.
    """
    named = {part.level: part for part in parts}
    if not parts or len(named) < len(parts):
        raise CheckpointError(
            f"parts for {' '.join(part.level for part in parts) or 'no level'}: give one a level"
        )
    for name, what in (("detector_digest", "detectors"), ("input", "sizes of images")):
        if any(part.meta.get(name) != parts[0].meta.get(name) for part in parts):
            raise CheckpointError(f"the parts were trained on different {what}; give those of one")
    levels = [level for level in LEVELS if level in named]
    kept = ("detector", "detector_digest", "input")
    shared = {k: parts[0].meta[k] for k in kept if k in parts[0].meta}
    tree = {name: codec_tree(named[name].variables, named[name].tables) for name in levels}
    records = {name: dict(named[name].meta) for name in levels}
    record = {"treatment": "assembled", "levels": levels, "parts": records, **shared}
    return save_codec(path, tree, record)


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

    def decompress(
        self,
        blob: bytes,
        *,
        max_symbols: int = bitstream.MAX_SYMBOLS,
        max_values: int = MAX_VALUES,
        backend: str = "numba",
    ) -> dict[str, jax.Array]:
        """{level: [1, H, W, C] float32} from `.jxc` bytes.

        Args:
          blob: the bytes of the file.
          max_symbols: the most latents that it may announce.
          max_values: the most values of its maps together.
          backend: who runs the entropy decoder, one of `codecs.rans.BACKENDS`.

        Raises:
          BitstreamError: truncated, corrupt, of another version or of another model.
        """
        limits = {"max_symbols": max_symbols, "max_values": max_values, "backend": backend}
        return self.coder.decompress(blob, **limits)

    def decompress_partial(
        self,
        blob: bytes,
        *,
        max_symbols: int = bitstream.MAX_SYMBOLS,
        max_values: int = MAX_VALUES,
        backend: str = "numba",
    ) -> tuple[dict[str, jax.Array], list[BitstreamError]]:
        """What can be decoded of a damaged file, arguments as of `decompress`.

        Returns:
          (the maps of the undamaged streams, what was wrong with the others).

        Raises:
          BitstreamError: the header is damaged, or the file is of another model.
        """
        limits = {"max_symbols": max_symbols, "max_values": max_values, "backend": backend}
        return self.coder.decompress_partial(blob, **limits)

    def check_detector(self, detector: Detector) -> None:
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
      level: the feature key it was trained for, as in "p4".
    """

    def __init__(
        self, codec: FactorisedCodec, variables: Any, tables: CdfTables, meta: Mapping[str, Any]
    ):
        """Wraps a model; use `load_codec` to read one."""
        self.level = LEVELS[meta["level"]]
        self.variables = variables
        self._model = Model(codec, variables, tables)
        super().__init__(PyramidCoder((self.level,), {self.level: self._model}), meta)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and tables: names the model.

        It is the one that `codec.npz` stores.
        """
        tree = codec_tree(self.variables, self._model.tables)
        return str(self.meta.get("digest") or checkpoint.tree_digest(tree))
