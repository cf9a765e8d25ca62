"""Residual codes of lidar features as an object: sweeps or features to bytes and back.

sensor   codec.compress(sweep, codebooks=3, embeddings=64) ──► blob ──► codec.prefix(blob, 1)
server   detector.tail(codec.decompress(blob)) ──► boxes
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs import residual_vq, rq_stream
from jaxcomp.codecs.rq_stream import Frame, Point, RqModel
from jaxcomp.errors import BitstreamError, CheckpointError, NonFiniteError, ShapeError
from jaxcomp.jobs.rq_files import load_rq, recorded_detector
from jaxcomp.loaders_lidar import LidarDetector, load_lidar_detector

_BUCKET = 1024  # pillars of a canvas are padded to a multiple, so that few sizes are compiled


def load_residual_codec(
    path: str | os.PathLike[str], detector: str | os.PathLike[str] | LidarDetector | None = None
) -> ResidualCodec:
    """Codebooks and tables as a codec.

    Args:
      path: `rq.npz`, a run directory of `configs/pointpillars_rq.py`, or a pattern.
      detector: the lidar detector whose features they code, or its weights; None: the one that the
        file names. It is read when it is needed first; to decompress it is not.

    Raises:
      CheckpointError: the file cannot be read, or has no tables, as the file of a single stage.
    """
    _, model, meta = load_rq(path)
    if model is None:
        raise CheckpointError(
            f"{str(path)!r} holds the codebooks of a stage without tables; give the rq.npz of a "
            "finished run"
        )
    return ResidualCodec(model, meta, detector, str(path))


class Quantiser:
    """Sweeps to frames of indices by one detector's head and one set of codebooks."""

    def __init__(self, detector: LidarDetector, rows: np.ndarray):
        """Compiles lazily, once for all points."""
        self.detector, self.rows = detector, jnp.asarray(rows)
        self.shape = detector.cfg.grid.shape
        self._run = jax.jit(functools.partial(residual_vq.quantise, chunk=residual_vq.CHUNK))

    def vectors(self, sweep: Any) -> tuple[np.ndarray, jax.Array, jax.Array]:
        """Cells, vectors and whether they exist, of the pillars of a sweep, padded."""
        x, pillars = self.detector.encode(sweep)
        if len(x) != 1:
            raise ShapeError(f"{len(x)} sweeps; a file holds one, give them one by one")
        return np.asarray(pillars.cells[0]), x[0], jnp.asarray(pillars.counts[0]) > 0

    def frame(self, vectors: tuple[np.ndarray, Any, Any], point: Point) -> Frame:
        """The frame of a point."""
        cells, x, real = vectors
        sizes = residual_vq.point_sizes(point, len(self.rows))
        indices = np.asarray(self._run(self.rows, x, real, sizes).indices)
        return rq_stream.frame_of(cells, indices, self.shape, point)


def with_encoder(detector: LidarDetector, encoder: Any) -> LidarDetector:
    """The detector with the head that was trained with the codebooks, if one was."""
    if encoder is None:
        return detector
    params = {**detector.variables["params"], "encoder": encoder}
    return LidarDetector(detector.model, {**detector.variables, "params": params}, {})


class ResidualCodec:
    """A sweep's features as a `.jxc` file of any point (k codebooks, n rows).

    Attributes:
      model: codebooks and tables; `model.digest` is in every file.
      meta: the record of the file: "sizes", "detector", ...
      digest: SHA-256 of the whole file's arrays.
    """

    def __init__(
        self,
        model: RqModel,
        meta: Mapping[str, Any],
        detector: str | os.PathLike[str] | LidarDetector | None = None,
        where: str = "",
    ):
        """Wraps codebooks; use `load_residual_codec` to read them."""
        self.model, self.where = model, where
        self.meta = {k: v for k, v in meta.items() if k not in ("encoder", "counts")}
        self.digest = str(meta.get("digest") or f"{model.digest:016x}")
        self._encoder, self._given = meta.get("encoder"), detector

    @functools.cached_property
    def detector(self) -> LidarDetector:
        """The lidar detector, with the head that was trained with the codebooks if one was.

        Raises:
          CheckpointError: it cannot be read, or is not the one that the codebooks were made for.
        """
        if not self._given:
            return with_encoder(recorded_detector(self.meta, self.where), self._encoder)
        detector = self._given
        if not isinstance(detector, LidarDetector):
            try:
                detector = load_lidar_detector(detector)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error}; give the detector of {self.where!r} (detector=, --detector)"
                ) from error
        wanted = self.meta.get("detector_digest")
        if wanted not in (None, detector.digest):
            raise CheckpointError(
                f"{self.where!r} was trained with the detector {wanted[:12]}, this one is "
                f"{detector.digest[:12]}; give that one (detector=, --detector), it was "
                f"{self.meta.get('detector')!r}"
            )
        return with_encoder(detector, self._encoder)

    @functools.cached_property
    def quantiser(self) -> Quantiser:
        """Of the codebooks."""
        return Quantiser(self.detector, self.model.rows)

    def point(
        self, codebooks: int | None = None, embeddings: int | Sequence[int] | None = None
    ) -> Point:
        """The rows of each codebook that takes part.

        Args:
          codebooks: how many; None: as many as `embeddings` names, or all.
          embeddings: rows of every codebook, or of each; None: the most.

        Raises:
          CheckpointError: the file does not hold the point.
          ShapeError: two numbers that contradict each other.
        """
        most = self.model.sizes()[-1]
        rows = [most] if embeddings is None else np.atleast_1d(np.asarray(embeddings)).tolist()
        if len(rows) == 1:
            rows *= len(self.model.rows) if codebooks is None else codebooks
        elif codebooks not in (None, len(rows)):
            raise ShapeError(
                f"embeddings {rows} for {codebooks} codebooks; give one number, or one for each"
            )
        return self.model.point(rows, repr(self.where) if self.where else "")

    def compress(
        self,
        source: Any,
        codebooks: int | None = None,
        embeddings: int | Sequence[int] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> bytes:
        """A sweep or its features as the bytes of a `.jxc` file.

        Args:
          source: the path of a `.bin`; [N, 4] points, N may be 0; or features of
            `LidarDetector.head`: {"bev": [1, rows, columns, C], "occupancy": [1, rows, columns]},
            or the canvas alone, whose cells of zeros hold no pillar.
          codebooks: see `point`.
          embeddings: see `point`.
          meta: anything JSON can hold.

        Raises:
          CheckpointError: the point is beyond the file, or there is no detector.
          DataError: the sweep cannot be read or is truncated.
          ShapeError: the source is neither, or of another detector.
          NonFiniteError: features are NaN or infinite.
        """
        point = self.point(codebooks, embeddings)
        is_map = isinstance(source, Mapping) or getattr(source, "ndim", 0) > 2
        vectors = self._pillars(source) if is_map else self.quantiser.vectors(source)
        return rq_stream.compress(self.quantiser.frame(vectors, point), self.model, meta)

    def decompress(self, blob: bytes, codebooks: int | None = None) -> dict[str, np.ndarray]:
        """The features of a file, ready for `LidarDetector.tail`.

        Args:
          blob: what `compress` gave.
          codebooks: decode the first ones alone; None: all.

        Returns:
          {"bev": float32 [1, rows, columns, C], "occupancy": bool [1, rows, columns]}, the same
          bits everywhere.

        Raises:
          TableMismatchError: of another kind, or made with other codebooks or tables.
          BitstreamError: damaged, truncated, too large, or of fewer codebooks than asked for.
        """
        blob = blob if codebooks is None else self.prefix(blob, codebooks)
        return self._features(rq_stream.decompress(blob, self.model))

    def decompress_partial(
        self, blob: bytes
    ) -> tuple[dict[str, np.ndarray], int, list[BitstreamError]]:
        """(features, codebooks they are of, what was wrong) of a cut or damaged file.

        Raises:
          BitstreamError: not even the map of pillars can be read.
        """
        frame, errors = rq_stream.decode_prefix(blob, self.model)
        return self._features(frame), len(frame.point), errors

    def prefix(self, blob: bytes, codebooks: int) -> bytes:
        """The file of the first codebooks alone; nothing is decoded.

        Raises:
          BitstreamError: as for `decompress`.
        """
        return rq_stream.prefix(blob, self.model, codebooks)

    def _features(self, frame: Frame) -> dict[str, np.ndarray]:
        bev = rq_stream.features(frame, self.model.rows)
        return {"bev": bev[None], "occupancy": frame.occupied[None]}

    def _pillars(self, source: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `Quantiser.vectors` gives, of a canvas."""
        whole = source if isinstance(source, Mapping) else {"bev": source}
        if "bev" not in whole:
            raise ShapeError(f"features {sorted(whole)}; 'bev' is needed")
        bev, shape = np.asarray(whole["bev"], np.float32), self.quantiser.shape
        bev = bev[None] if bev.ndim == 3 else bev
        wanted = (1, *shape, self.model.rows.shape[2])
        if bev.shape != wanted:
            raise ShapeError(f"features have shape {bev.shape}; this codec needs {wanted}")
        if not np.isfinite(bev).all():
            raise NonFiniteError("the features contain NaN or infinity")
        occupied = np.asarray(whole.get("occupancy", (bev != 0).any(-1))).astype(bool)
        if occupied.reshape(-1).shape != (shape[0] * shape[1],):
            raise ShapeError(f"occupancy has shape {occupied.shape}; this codec needs {wanted[:3]}")
        cells = np.flatnonzero(occupied)
        size = max(-(-len(cells) // _BUCKET), 1) * _BUCKET
        real = np.arange(size) < len(cells)
        padded = np.full(size, shape[0] * shape[1])
        padded[: len(cells)] = cells
        x = np.zeros((size, bev.shape[-1]), np.float32)
        x[: len(cells)] = bev.reshape(-1, bev.shape[-1])[cells]
        return padded, x, real
