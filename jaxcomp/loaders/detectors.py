"""A split detector from a file."""

from __future__ import annotations

import functools
import importlib.resources
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import trees
from jaxcomp.data.images import check_image, fit_image, read_image
from jaxcomp.data.resize import canvas_size, shortest_size
from jaxcomp.errors import CheckpointError, ShapeError
from jaxcomp.loaders.files import DETECTOR_FILE, complete, find_file, read_kind
from jaxcomp.models.faster_rcnn import SIZE_MULTIPLE, FasterRCNN
from jaxcomp.models.fpn import LEVELS
from jaxcomp.models.transform import Frames, network_input
from jaxcomp.ops.compiling import inference_options
from jaxcomp.tasks.detect import detector_config

SHIPPED_DETECTOR = "detector_scenes.npz"
FOREIGN = (".pth", ".pt", ".safetensors")
PIXEL_BUCKET = 128  # images are padded to multiples of it before they are resized


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


def _read_detector(path: Path, bucket: int) -> Detector:
    if path.suffix in FOREIGN:
        raise CheckpointError(
            f"{str(path)!r} is a file of another framework: bring it in with `python -m jaxcomp "
            "import-weights`, and give the .npz that it makes"
        )
    tree, meta = read_kind(path, "detector")
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    with complete(path, "detector"):
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
    trees.check_same(trees.leaves_by_path(variables), trees.leaves_by_path(wanted), path)
    return Detector(model, variables, meta, bucket)


class Detector:
    """Faster R-CNN cut at its pyramid: `detect_from_features(get_fpn_features(x)) == detect(x)`.

    Attributes:
      model: the network.
      variables: its parameters and batch statistics.
      meta: what is stored beside the weights (classes, image size, accuracy, command).
      digest: SHA-256 of the variables.
      levels: the feature keys, finest first.
      channels: C of every level.
    """

    levels = LEVELS

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
        self.channels = model.cfg.fpn_features
        self.digest = str(meta.get("digest") or trees.tree_digest(variables))
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
        for name in LEVELS:
            if name not in features:
                raise ShapeError(f"features lack level {name!r}; the detector needs {LEVELS}")
            shape = np.shape(features[name])
            if len(shape) != 4 or shape[-1] != self.channels:
                raise ShapeError(
                    f"features[{name!r}] has shape {shape}; the detector needs "
                    f"[B, H, W, {self.channels}]"
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

    def features(self, variables: Any, images: Frames | Any) -> Any:
        """The pyramid of a batch; a pure function of the variables, for compiled steps."""
        return self.model.apply(variables, images, method="features")

    def predictions(self, variables: Any, features: Mapping[str, Any], image_size: Any) -> Any:
        """Padded detections of a pyramid; a pure function."""
        return self.model.apply(variables, features, image_size, method="detect")

    def head(self, images: Frames | Any) -> dict[str, jax.Array]:
        """The pyramid of a batch, unchecked: the hot path of training and evaluation."""
        return self._head(self.variables, self._input(images))

    def tail(self, features: Mapping[str, Any], image_size: Any) -> dict[str, jax.Array]:
        """Detections in network pixels, unchecked."""
        return self._tail(self.variables, dict(features), image_size)
