"""Face detectors from files: images of any kind to boxes, scores and five landmarks."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import trees, weights_file
from jaxcomp.data.images import check_image, read_image
from jaxcomp.errors import CheckpointError, ConfigError, DataError, ShapeError
from jaxcomp.evaluate.widerface_protocols import InputProtocol, detect_image, merge
from jaxcomp.interop.featherface_names import abstract_variables
from jaxcomp.interop.featherface_weights import load_face_weights
from jaxcomp.models.featherface import FACE_LEVELS, MEAN_BGR, FaceConfig, FaceDetector

FACE_FILE, FACE_KIND = "face_detector.npz", "face_detector"
FOREIGN = (".pth", ".pt", ".tar", ".safetensors")
POINTS = 5


def load_face_detector(path: str | os.PathLike[str], *, bucket: int = 1) -> LoadedFaceDetector:
    """A face detector from its weights.

    Args:
      path: `face_detector.npz` as `import-weights` and training write it, a directory that holds
        one, or the file of a PyTorch FeatherFace or RetinaFace-0.25, whose kind is told from its
        tensors.
      bucket: images are padded with the mean colour to multiples of this. 1 gives the original's
        numbers and compiles for every size of image; 32 or 64 compiles for few, and moves the
        numbers near the right and lower border a little.

    Raises:
      CheckpointError: the file is missing, damaged or not a face detector.
      ConfigError: `bucket` is not positive.
    """
    if bucket < 1:
        raise ConfigError(f"bucket={bucket} is not positive; 1 pads nothing")
    path = Path(path) / FACE_FILE if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {str(path)!r}: give {FACE_FILE} or a .pth file")
    if path.suffix in FOREIGN:
        variables, cfg = load_face_weights(path)
        meta: dict[str, Any] = {"kind": FACE_KIND, "model": dataclasses.asdict(cfg)}
        return LoadedFaceDetector(FaceDetector(cfg), _to_jax(variables), meta, bucket)
    tree, meta = weights_file.load_npz(path)
    if meta.get("kind") != FACE_KIND:
        raise CheckpointError(
            f"{str(path)!r} holds {meta.get('kind')!r}, a face detector is needed"
        )
    try:
        model = FaceDetector(face_config_of(meta["model"]))
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{str(path)!r} is not a complete face detector ({error})") from error
    wanted = abstract_variables(model)
    found = trees.leaves_by_path(_to_jax(tree))
    nested = flax.traverse_util.unflatten_dict(wanted, sep="/")
    trees.check_same(found, trees.leaves_by_path(nested), path)
    return LoadedFaceDetector(model, _to_jax(tree), meta, bucket)


def face_config_of(record: Mapping[str, Any]) -> FaceConfig:
    """The sizes from a file's record, whose tuples became lists."""

    def freeze(value: Any) -> Any:
        return tuple(freeze(v) for v in value) if isinstance(value, list | tuple) else value

    return FaceConfig(**{name: freeze(value) for name, value in record.items()})


def _to_jax(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


class LoadedFaceDetector:
    """A face detector cut at its pyramid: `detect_from_features(get_features(x)) == detect(x)`.

    Attributes:
      model: the network.
      variables: its parameters and batch statistics.
      meta: what is stored beside the weights.
      bucket: see `load_face_detector`.
      digest: SHA-256 of the variables.
    """

    def __init__(
        self, model: FaceDetector, variables: Any, meta: Mapping[str, Any], bucket: int = 1
    ):
        """Wraps a network; use `load_face_detector` to read one."""
        self.model = model
        self.variables = variables
        self.meta = dict(meta)
        self.bucket = bucket
        self.digest = str(meta.get("digest") or trees.tree_digest(variables))
        self._head = jax.jit(functools.partial(model.apply, method="head"))

        def tail(model: FaceDetector, features: Any, size: tuple[int, int]) -> dict[str, Any]:
            return model.candidates(model.tail(features), size)

        apply = functools.partial(model.apply, method=tail)
        self._tail = jax.jit(apply, static_argnames="size")

    def prepare(self, image: Any) -> np.ndarray:
        """Any image as uint8 RGB [H, W, 3].

        Args:
          image: a path, or uint8 [H, W] or [H, W, 1] gray, [H, W, 3] RGB, [H, W, 4] RGBA, whose
            transparency is dropped.

        Raises:
          DataError: the file cannot be read, or the array is of another kind.
        """
        if isinstance(image, str | os.PathLike):
            return read_image(image)
        array = np.asarray(image)
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim == 3 and array.shape[2] == 1:
            array = np.repeat(array, 3, 2)
        elif array.ndim == 3 and array.shape[2] == 4:
            array = array[..., :3]
        return check_image(array)

    def get_features(self, image: Any) -> dict[str, jax.Array]:
        """The pyramid {"p3", "p4", "p5"}, each [1, H_l, W_l, C] float32, of one image."""
        return self._head(self.variables, self._pad(self.prepare(image)))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) that the network sees of an image."""
        return -(-height // self.bucket) * self.bucket, -(-width // self.bucket) * self.bucket

    def detect_from_features(
        self, features: Mapping[str, Any], size: tuple[int, int], *, least: float | None = None
    ) -> dict[str, np.ndarray]:
        """Faces from a (decompressed) pyramid; no pixels are needed.

        Args:
          features: {"p3", "p4", "p5"}, each [1, H_l, W_l, C].
          size: (rows, columns) of the image.
          least: score from which faces count; None for all above the configured threshold.

        Returns:
          As `detect`.

        Raises:
          ShapeError: a level is missing or of another size than such an image gives.
        """
        padded = self.padded_size(*size)
        self._check(features, padded)
        return self._finish(self._candidates(features, padded), least)

    def _check(self, features: Mapping[str, Any], padded: tuple[int, int]) -> None:
        cfg = self.model.cfg
        for name, step in zip(FACE_LEVELS, cfg.steps, strict=True):
            wanted = (1, *(-(-n // step) for n in padded), cfg.features)
            shape = np.shape(features.get(name, ()))
            if shape != wanted:
                raise ShapeError(
                    f"features[{name!r}] has shape {shape}; an image padded to {padded[0]} x "
                    f"{padded[1]} has {wanted}"
                )

    def scan(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Candidates of an image before suppression, best first; see `widerface_protocols`.

        Args:
          image: RGB [H, W, 3], uint8 or float32 [0, 1].
        """
        padded = self.padded_size(*image.shape[:2])
        return self._candidates(self._head(self.variables, self._pad(image)), padded)

    def _pad(self, image: np.ndarray) -> np.ndarray:
        """With the mean colour, which the network sees as zeros."""
        height, width = image.shape[:2]
        rows, columns = self.padded_size(height, width)
        if (rows, columns) == (height, width):
            return image[None]
        full = np.empty((1, rows, columns, 3), image.dtype)
        whole = np.issubdtype(image.dtype, np.integer)
        full[:] = np.array(MEAN_BGR[::-1], np.float32) / (1.0 if whole else 255.0)
        full[0, :height, :width] = image
        return full

    def _candidates(
        self, features: Mapping[str, Any], padded: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        levels = {name: jnp.asarray(features[name], jnp.float32) for name in FACE_LEVELS}
        found = self._tail(self.variables, levels, size=padded)
        count = int(found["valid"][0].sum())  # the valid ones come first
        boxes, points, scores = (
            np.asarray(found[k][0])[:count] for k in ("boxes", "landmarks", "scores")
        )
        return {"boxes": boxes, "scores": scores, "landmarks": points.reshape(-1, POINTS, 2)}

    def _finish(self, found: dict[str, np.ndarray], least: float | None) -> dict[str, np.ndarray]:
        cfg = self.model.cfg
        how = InputProtocol("", iou=cfg.nms_iou, most=cfg.max_detections)
        kept = merge(found, how)
        if least is None:
            return kept
        good = kept["scores"] >= least
        return {name: value[good] for name, value in kept.items()}

    def detect(
        self,
        image: Any,
        *,
        least: float | None = None,
        protocol: str | InputProtocol | None = None,
    ) -> dict[str, np.ndarray]:
        """Faces of one image of any kind and size.

        Args:
          image: see `prepare`.
          least: score from which faces count; None for all above the configured threshold.
          protocol: how to look at it, see `widerface_protocols`; None for once, as it is.

        Returns:
          {"boxes": float32 [N, 4] x1, y1, x2, y2, "scores": [N], "landmarks": [N, 5, 2] x, y}, best
          first, in pixels of the image; boxes may reach beyond it.

        Raises:
          DataError: the image cannot be read or is of another kind.
        """
        pixels = self.prepare(image)
        if protocol is None:
            return self._finish(self.scan(pixels), least)
        found = detect_image(self, pixels, protocol)
        good = found["scores"] >= (0.0 if least is None else least)
        return {name: value[good] for name, value in found.items()}

    def detect_all(
        self, images: Sequence[Any], *, least: float | None = None
    ) -> list[dict[str, np.ndarray] | DataError]:
        """Faces of many images, one after the other; for one that cannot be read its error."""
        results: list[dict[str, np.ndarray] | DataError] = []
        for image in images:
            try:
                results.append(self.detect(image, least=least))
            except DataError as error:
                results.append(error)
        return results
