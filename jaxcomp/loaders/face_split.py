"""A face detector behind the interface of `loaders.Detector`, for what codes its features."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcomp.data.images import check_image, read_image
from jaxcomp.data.photos import on_canvas
from jaxcomp.errors import ShapeError
from jaxcomp.evaluate.widerface_protocols import InputProtocol, merge
from jaxcomp.loaders.detectors import Detector, load_detector
from jaxcomp.loaders_face import LoadedFaceDetector, load_face_detector
from jaxcomp.models.featherface import FACE_LEVELS, FaceDetector
from jaxcomp.ops.compiling import inference_options
from jaxcomp.types import Array, Features

KINDS = ("faster_rcnn", "face")


class FaceSplit:
    """A face detector cut at its pyramid of three levels.

    Batches have one size whose sides are multiples of 32; images stand at the upper left, and what
    they do not fill has the mean colour.

    Attributes:
      model: the network.
      variables: its parameters and batch statistics.
      meta: what is stored beside the weights.
      digest: SHA-256 of the variables.
      levels: the feature keys, finest first.
      channels: C of every level.
      classes: names of labels 1, 2, ...
    """

    levels = FACE_LEVELS
    classes = ("Face",)

    def __init__(self, detector: LoadedFaceDetector):
        """Wraps a loaded detector."""
        self.model: FaceDetector = detector.model
        self.variables, self.meta = detector.variables, detector.meta
        self.digest = detector.digest
        self.channels = detector.model.cfg.features
        options = inference_options()
        self._head = jax.jit(self.features, compiler_options=options)
        apply = functools.partial(self.model.apply, method=_candidates)
        self._tail = jax.jit(apply, static_argnames="size", compiler_options=options)

    def features(self, variables: Any, images: Any) -> Features:
        """The pyramid of images [B, H, W, 3], uint8 or float [0, 1] RGB; a pure function."""
        found: Any = self.model.apply(variables, images, method="head")
        return found

    def predictions(self, variables: Any, features: Any, image_size: Any) -> Any:
        """The raw outputs of a pyramid; a pure function. The size of the images does not matter."""
        del image_size
        return self.model.apply(variables, features, method="tail")

    def prepare(
        self, image: Any, rule: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Brings any image to the network: shrunk if it is large, padded to multiples of 32.

        Args:
          image: a path, or uint8 RGB [H, W, 3].
          rule: {"height", "width"} that it may have at most, as `PyramidCodec.input` has them: a
            codec should see what it was trained on. None leaves its size.

        Returns:
          (uint8 [1, H', W', 3], meta {"image_size", "scale", "original_size"}, each [1, 2]).

        Raises:
          DataError: the file cannot be read as an image.
        """
        pixels = read_image(image) if isinstance(image, str | os.PathLike) else check_image(image)
        original = pixels.shape[:2]
        most = (rule["height"], rule["width"]) if rule else original
        scale = min(1.0, *(a / b for a, b in zip(most, original, strict=True)))
        largest = (max(1, round(n * scale)) for n in original)
        multiple = self.model.cfg.steps[-1]
        canvas, size = on_canvas(pixels, *(math.ceil(n / multiple) * multiple for n in largest))
        sizes = {"image_size": size, "original_size": original}
        meta = {k: np.asarray([v], np.float32) for k, v in sizes.items()}
        return canvas[None], {**meta, "scale": meta["image_size"] / meta["original_size"]}

    def get_fpn_features(self, image: Any) -> Features:
        """The pyramid of an image as `prepare` gives it, or of what `prepare` takes."""
        if isinstance(image, str | os.PathLike) or np.ndim(image) == 3:
            image, _ = self.prepare(image)
        return self.head(image)

    def detect_from_features(
        self, features: Mapping[str, Any], meta: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Padded detections of a (decompressed) pyramid, in pixels of the original image.

        Raises:
          ShapeError: a level is missing or of another size than the others.
        """
        self._check(features)
        found = self.tail({k: np.asarray(features[k], np.float32) for k in FACE_LEVELS}, None)
        if meta is not None and "scale" in meta:
            scale = np.asarray(meta["scale"], np.float32)
            found["boxes"] /= np.concatenate([scale[:, ::-1]] * 2, 1)[:, None]
        return found

    def _check(self, features: Mapping[str, Any]) -> None:
        coarse = np.shape(features.get("p5", ()))
        for i, name in enumerate(FACE_LEVELS):
            times = 2 ** (len(FACE_LEVELS) - 1 - i)
            shape = np.shape(features.get(name, ()))
            wanted = (coarse[0], *(n * times for n in coarse[1:3]), self.channels) if coarse else 0
            if shape != wanted:
                raise ShapeError(
                    f"features[{name!r}] has shape {shape}; beside a p5 of {coarse} the detector "
                    f"needs {wanted or '[B, H, W, C]'}"
                )

    def head(self, images: Any) -> Features:
        """The pyramid {"p3", "p4", "p5"}, each [B, H_l, W_l, C] float32, of a batch."""
        return self._head(self.variables, images)

    def tail(self, features: Mapping[str, Any], image_size: Any) -> dict[str, np.ndarray]:
        """Padded detections {"boxes" [B, D, 4], "scores", "labels", "valid" [B, D]}, best first.

        Args:
          features: {"p3", "p4", "p5"} of images whose sides are multiples of 32.
          image_size: unused; boxes are in pixels of the input and may reach beyond the image.
        """
        del image_size
        levels = {name: features[name] for name in FACE_LEVELS}
        rows, columns = (n * self.model.cfg.steps[-1] for n in np.shape(levels["p5"])[1:3])
        found = jax.device_get(self._tail(self.variables, levels, size=(rows, columns)))
        return _padded([self._kept(found, i) for i in range(len(found["scores"]))], self.most)

    @property
    def most(self) -> int:
        """Detections that an image can have."""
        return self.model.cfg.max_detections

    def _kept(self, found: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
        """What is left of the candidates of one image; on the host, where few need comparing."""
        count = int(found["valid"][row].sum())  # the valid ones come first
        one = {k: found[k][row][:count] for k in ("boxes", "scores", "landmarks")}
        cfg = self.model.cfg
        return merge(one, InputProtocol("", iou=cfg.nms_iou, most=cfg.max_detections))


def _candidates(model: FaceDetector, features: Features, size: tuple[int, int]) -> dict[str, Array]:
    return model.candidates(model.tail(features), size)


def _padded(rows: list[dict[str, np.ndarray]], most: int) -> dict[str, np.ndarray]:
    out = {
        "boxes": np.zeros((len(rows), most, 4), np.float32),
        "scores": np.zeros((len(rows), most), np.float32),
        "labels": np.zeros((len(rows), most), np.int32),
        "valid": np.zeros((len(rows), most), bool),
    }
    for i, row in enumerate(rows):
        count = len(row["scores"])
        out["boxes"][i, :count], out["scores"][i, :count] = row["boxes"], row["scores"]
        out["labels"][i, :count], out["valid"][i, :count] = 1, True
    return out


def load_split_detector(
    path: str | os.PathLike[str] | None = None, kind: str = "faster_rcnn"
) -> Detector | FaceSplit:
    """A detector cut at its pyramid, of a kind.

    Args:
      path: as of `load_detector` for "faster_rcnn", as of `load_face_detector` for "face".
      kind: one of `KINDS`.

    Raises:
      CheckpointError: the file is missing, damaged or no detector of this kind.
    """
    if kind == "face":
        return FaceSplit(load_face_detector(Path(path or "")))
    return load_detector(path)
