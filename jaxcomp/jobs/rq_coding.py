"""Sweeps to `.jxc` files of residual codes, those back to features, and to lidar boxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.codecs import bitstream, chunks, rq_stream
from jaxcomp.errors import BitstreamError, DataError, TruncatedStreamError
from jaxcomp.jobs import feature_files
from jaxcomp.jobs.coding_files import read_bytes
from jaxcomp.jobs.detecting_files import Frame
from jaxcomp.jobs.file_runs import Done
from jaxcomp.jobs.file_sets import FEATURES, STREAMS, Item, is_newer
from jaxcomp.jobs.rq_codec import ResidualCodec
from jaxcomp.jobs.stream_report import describe_stream, point_of
from jaxcomp.workdir import atomic_write, json_text

SWEEPS = (".bin",)
INPUTS = (*SWEEPS, *FEATURES, *STREAMS)
BOXES = "x, y, z of the centre of the lower face, w, l, h (metres, lidar frame), yaw (radians)"


class Compressor:
    """Makes the `.jxc` file of a sweep or of its features."""

    def __init__(
        self,
        codec: ResidualCodec,
        codebooks: int | None = None,
        embeddings: Sequence[int] | None = None,
    ):
        """For one point; see `ResidualCodec.point`, also for the errors."""
        self.codec, self.point = codec, codec.point(codebooks, embeddings)

    def up_to_date(self, item: Item) -> bool:
        """Whether the stream is whole, newer than its source, of this codec and this point."""
        if not is_newer(item.out, [item.source]):
            return False
        try:
            frame = bitstream.read(
                item.out.read_bytes(), kind=rq_stream.KIND, digest=self.codec.model.digest
            )
        except (BitstreamError, OSError):
            return False
        return point_of(frame.streams) == list(self.point)

    def __call__(self, item: Item) -> Done:
        """Writes one stream.

        Raises:
          DataError: the source cannot be read or is truncated.
          ShapeError, NonFiniteError: its features cannot be coded.
          CheckpointError: the stream cannot be written, or the detector is not the codec's.
        """
        source = read_source(item.source)
        blob = self.codec.compress(source, len(self.point), self.point)
        atomic_write(item.out, blob)
        raw = 4 * int(np.prod([*self.codec.quantiser.shape, self.codec.model.rows.shape[2]]))
        line = f"{item.out}: {len(blob)} bytes for {point_words(self.point)}"
        return Done(f"{line} ({raw} bytes raw, {raw / len(blob):.0f}x)", raw, len(blob))


class Decompressor:
    """Makes the `.npz` of features of a `.jxc` file."""

    def __init__(
        self, codec: ResidualCodec, *, partial: bool = False, codebooks: int | None = None
    ):
        """With `partial`, what is undamaged of a file; with `codebooks`, the first ones alone."""
        self.codec, self.partial, self.codebooks = codec, partial, codebooks

    def up_to_date(self, item: Item) -> bool:
        """Whether the output is whole, newer than the stream and of this codec."""
        if not is_newer(item.out, [item.source]):
            return False
        record = feature_files.read_record(item.out) or {}
        same = record.get("codec") == self.codec.digest and not record.get("missing")
        return same and record.get("codebooks") == self.codebooks

    def __call__(self, item: Item) -> Done:
        """Writes the features of one stream.

        Raises:
          DataError: the stream cannot be read.
          BitstreamError: it is damaged, with `partial` the map of pillars is, or of another codec.
          CheckpointError: the features cannot be written.
        """
        blob = read_bytes(item.source)
        if self.partial:
            features, damage, _ = read_partial(self.codec, blob)
        else:
            features, damage = self.codec.decompress(blob, self.codebooks), []
        record: dict[str, Any] = {"codec": self.codec.digest, "codebooks": self.codebooks}
        record["meta"] = bitstream.salvage(blob)[0].meta
        arrays = {"bev": features["bev"]}
        feature_files.write_features(
            item.out, arrays, {**record, "missing": damage} if damage else record
        )
        line = f"{item.out}: bev {arrays['bev'].shape}, {features['occupancy'].sum()} pillars"
        return Done(line, arrays["bev"].nbytes, len(blob), "; ".join(damage))


class Finder:
    """Lidar boxes of streams, features or sweeps."""

    def __init__(self, codec: ResidualCodec, *, score: float = 0.3, partial: bool = False):
        """Detections below `score` are not told; with `partial`, cut streams are read too."""
        self.codec, self.score, self.partial = codec, score, partial
        self._made_with = {
            "score": score,
            "detector": codec.detector.digest,
            "codecs": [codec.digest],
        }

    def up_to_date(self, frame: Frame) -> bool:
        """Whether the JSON is newer than what it is made of, and made alike."""
        if frame.out is None or not is_newer(frame.out, [frame.source]):
            return False
        try:
            record = json.loads(frame.out.read_text())
            same = {name: record[name] for name in self._made_with} == self._made_with
            return same and not record.get("missing")
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def __call__(self, frame: Frame) -> Done:
        """Detects in one frame, writes its JSON, and tells the rows.

        Raises:
          DataError, ShapeError, BitstreamError: the source cannot be read or is of another codec;
            with `partial`, it holds no whole codebook.
          CheckpointError: the JSON cannot be written.
        """
        if frame.streams:
            raise DataError("a lidar stream holds all features; give it alone, without the sweep")
        detector, source = self.codec.detector, frame.source
        features, damage = self._features(source)
        rows = self._rows(detector.tail(features))
        if frame.out:
            record = {"source": str(source), **self._made_with, "boxes": BOXES, "detections": rows}
            record |= {"missing": damage} if damage else {}
            atomic_write(frame.out, json_text(record))
        lines = [
            f"{row['label']:<12} {row['score']:.3f}  {' '.join(f'{v:.2f}' for v in row['box'])}"
            for row in rows
        ]
        lines.append(f"{len(rows)} detections with a score of at least {self.score}: {BOXES}")
        return Done("\n".join(lines), damaged="; ".join(damage))

    def _features(self, source: Path) -> tuple[Any, list[str]]:
        """Features of a source, and what of a stream could not be read."""
        ending = source.suffix.lower()
        if ending not in STREAMS:
            found = read_source(source)
            return self.codec.detector.head(found) if ending in SWEEPS else found, []
        blob = read_bytes(source)
        if not self.partial:
            return self.codec.decompress(blob), []
        features, damage, count = read_partial(self.codec, blob)
        if not count:
            raise TruncatedStreamError("; ".join([*damage, "there is nothing to detect in"]))
        return features, damage

    def _rows(self, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        columns = (found[name][0] for name in ("boxes", "scores", "labels", "valid"))
        return [
            {
                "label": self.codec.detector.classes[int(label)],
                "score": float(score),
                "box": [float(v) for v in box],
            }
            for box, score, label, valid in zip(*columns, strict=True)
            if valid and score >= self.score
        ]


def read_partial(
    codec: ResidualCodec, blob: bytes
) -> tuple[dict[str, np.ndarray], list[str], int]:  # fmt: skip
    """What a cut or damaged file still holds.

    Returns:
      (features; of a damaged file what is wrong and how many codebooks were read; that number).

    Raises:
      BitstreamError: not even the map of pillars can be read, or the file is of another codec.
    """
    features, count, errors = codec.decompress_partial(blob)
    held = chunks.read_head(blob).count - 1
    words = [f"{count} of {held} codebooks could be read"] if errors else []
    words += [f"{type(error).__name__}: {error}" for error in errors]
    return features, words, count


def read_source(path: Path) -> Any:
    """A `.bin` as its path, features as {"bev": [1, rows, columns, C]}.

    Raises:
      DataError: another ending, or features that cannot be read.
    """
    ending = path.suffix.lower()
    if ending in FEATURES:
        return dict(feature_files.read_features(path, ["bev"])[0])
    if ending not in SWEEPS:
        raise DataError(f"{str(path)!r} is no sweep; residual codes are of .bin, .npy or .npz")
    return str(path)


def point_words(point: Sequence[int]) -> str:
    """3 codebooks x 64; 256 + 256 + 16 of a mixed point."""
    if len(set(point)) == 1:
        return f"{len(point)} codebook{'s' if len(point) > 1 else ''} x {point[0]}"
    return " + ".join(map(str, point))


def describe(path: Path, codec: ResidualCodec) -> tuple[dict[str, Any], list[BitstreamError]]:
    """`describe_stream` of a file, and whether the codec decodes it."""
    description, errors = describe_stream(path)
    tried: dict[str, Any] = {"digest": codec.digest, "model": f"{codec.model.digest:016x}"}
    try:
        frame = rq_stream.decompress(read_bytes(path), codec.model)
        tried |= {"matches": True, "pillars": int(frame.occupied.sum())}
    except BitstreamError as error:
        tried["matches"] = False
        errors = errors or [error]
    description["codec"] = tried
    if errors:
        description["errors"] = [f"{type(error).__name__}: {error}" for error in errors]
    return description, errors
