"""The held-out frames that all points share, and the pyramids of the detector's head on them.

One frame at a time: the detector compiles once for each size, its times are those of a single
frame, and every point sees features that do not depend on how frames were batched.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcomp import data
from jaxcomp.errors import DataError, NonFiniteError
from jaxcomp.evaluate.detection import image_sizes
from jaxcomp.jobs.frozen_features import AnyDetector, held_out_batches, with_truth
from jaxcomp.jobs.job import canvas_of
from jaxcomp.models.transform import frames_of

CACHE_LIMIT = 2 * 2**30  # bytes of features that are kept in memory; above it they are made again
_TRUTH = ("boxes", "labels", "valid", "ignore")
_HASHED = ("image", "boxes", "labels", "valid", "ignore", "image_id")
Batch = Mapping[str, np.ndarray]
Pyramid = dict[str, np.ndarray]


class HeldOut:
    """Frames and features, each of one frame: images [1, H, W, 3], levels [1, H_l, W_l, C].

    Attributes:
      detector: whose head makes the features.
      count: number of frames.
      digest: SHA-256 of the pixels and labels of all frames, in order.
      pixels: [F] pixels of the stored images.
      image_ids: [F].
      cached: whether the features are kept.
    """

    def __init__(self, config: Any, detector: AnyDetector, frames: int = 0):
        """Looks at the first `frames` held-out frames of a config, or at all for 0.

        Raises:
          DataError: the data are missing, broken or hold no held-out frame.
        """
        self.detector = detector
        self._canvas = canvas_of(config)
        self._images = data.make_splits(config, 1)
        self._most = frames
        self._truth: list[dict[str, np.ndarray]] = []
        self._label = functools.partial(with_truth, config, detector)
        digest, sizes, ids = hashlib.sha256(), [], []
        for batch in self.batches():
            for name in _HASHED:
                digest.update(name.encode() + np.ascontiguousarray(batch[name]).tobytes())
            sizes.append(int(np.prod(np.asarray(batch.get("native_size", image_sizes(batch)))[0])))
            ids.append(int(batch["image_id"][0]))
        if not ids:
            raise DataError("no held-out frame can be read; check the data of the config")
        digest.update(json.dumps([*self._canvas, config.data.resize]).encode())
        self.count, self.digest = len(ids), digest.hexdigest()
        self.pixels, self.image_ids = np.asarray(sizes, np.int64), np.asarray(ids, np.int64)
        self._features: list[Pyramid] = []
        self.cached = False

    def batches(self) -> Iterator[Batch]:
        """The frames in order, each a batch of one; frames that cannot be read are left out."""
        found = 0
        for batch in held_out_batches(self._images):
            if not batch["mask"][0]:
                continue
            if found == len(self._truth):  # that of photos without labels takes the detector
                (labelled,) = self._label([batch])
                self._truth.append({name: np.asarray(labelled[name]) for name in _TRUTH})
            yield {**batch, **self._truth[found]}
            found += 1
            if found == self._most:
                return

    def head(self, batch: Batch) -> Pyramid:
        """The pyramid of a frame.

        Raises:
          NonFiniteError: the features hold NaN or infinity.
        """
        found = self.detector.head(frames_of(batch, self._canvas))
        pyramid = {level: np.asarray(found[level]) for level in self.detector.levels}
        for level, x in pyramid.items():
            if not np.isfinite(x).all():
                raise NonFiniteError(f"the detector's {level!r} features hold NaN or infinity")
        return pyramid

    def tail(self, pyramid: Mapping[str, Any], batch: Batch) -> dict[str, np.ndarray]:
        """Padded detections of a frame in the network's pixels."""
        found = self.detector.tail(pyramid, image_sizes(batch))
        return {name: np.asarray(value) for name, value in found.items()}

    def pyramids(self) -> Iterator[tuple[Batch, Pyramid]]:
        """Frames with their features, from memory where they fit into `CACHE_LIMIT`."""
        for i, batch in enumerate(self.batches()):
            if i < len(self._features):
                yield batch, self._features[i]
                continue
            pyramid = self.head(batch)
            if i == 0:
                size = sum(x.nbytes for x in pyramid.values())
                about = size * float(self.pixels.sum() / self.pixels[0])  # photos differ in size
                self.cached = about <= CACHE_LIMIT
            if self.cached and i == len(self._features):
                self._features.append(pyramid)
            yield batch, pyramid

    def pixels_of(self, batch: Batch) -> np.ndarray:
        """The stored image of a frame, uint8 [H, W, 3], without padding."""
        height, width = np.asarray(batch.get("native_size", image_sizes(batch)))[0].astype(int)
        return np.asarray(batch["image"][0, :height, :width])

    def with_pixels(self, batch: Batch, image: np.ndarray) -> Batch:
        """The frame with another picture of the same size."""
        pixels = np.array(batch["image"])
        pixels[0, : image.shape[0], : image.shape[1]] = image
        return {**batch, "image": pixels}


def timed(function: Any, *args: Any) -> tuple[Any, float]:
    """(result, milliseconds) of a call, until its arrays are there."""
    start = time.perf_counter()
    out = jax.block_until_ready(function(*args))
    return out, 1e3 * (time.perf_counter() - start)
