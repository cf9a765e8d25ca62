"""Detections of images, feature files and streams, as one JSON (and a picture) a frame.

    image ── head ──► p2 … p6 ─┐
    .npz features ────────────►├─ levels of .jxc streams replace them ──► tail ──► boxes
    .jxc ── codec ────────────►┘  (or what decompress made of them)

Whatever comes first gives the levels that the streams do not hold. Boxes are in pixels of the
original image if the image is there or the stream (or the `.npz` made from it) carries its size.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from jaxcomp.codecs import bitstream
from jaxcomp.codecs.limits import Limits
from jaxcomp.data.images import read_image
from jaxcomp.errors import (
    BitstreamError,
    CheckpointError,
    DataError,
    ShapeError,
    TableMismatchError,
)
from jaxcomp.evaluate.pictures import draw_detections
from jaxcomp.jobs import feature_files, file_sets
from jaxcomp.jobs.coding_files import decode, read_bytes
from jaxcomp.jobs.file_runs import Done
from jaxcomp.loaders import Detector, FaceSplit, LevelCodec
from jaxcomp.workdir import atomic_write, json_text

INPUTS = (*file_sets.IMAGES, *file_sets.FEATURES, *file_sets.STREAMS)
_SIZES = ("image_size", "scale", "original_size")


@dataclasses.dataclass(frozen=True)
class Frame:
    """What one frame is read from and written to.

    Attributes:
      source: image, features or stream.
      streams: further streams or features, whose levels replace those of the source.
      out: the JSON to write, None to print only.
      picture: the PNG to write, None for none.
    """

    source: Path
    streams: tuple[Path, ...] = ()
    out: Path | None = None
    picture: Path | None = None

    @property
    def is_image(self) -> bool:
        """Whether the source is an image: everything that is not features or a stream."""
        ending = self.source.suffix.lower()
        return ending not in (*file_sets.FEATURES, *file_sets.STREAMS)


def find_frames(
    selection: file_sets.Selection,
    streams: Sequence[str],
    out: str | None,
    *,
    pictures: bool = True,
    protected: Sequence[Any] = (),
) -> list[Frame]:
    """The frames of a command.

    Args:
      selection: images, features or streams.
      streams: for one source, `.jxc` or `.npz` files; otherwise folders that hold NAME.jxc, or
        else NAME.npz, for each NAME.
      out: as for `file_sets.place_outputs`; None for one source: nothing is written.
      pictures: whether to draw on images.
      protected: files that must not be written.

    Raises:
      DataError: no place to write to, or an output is an input.
    """
    if out is None and not selection.single:
        raise DataError("several frames need --out FOLDER, where to write")
    items = file_sets.place_outputs(selection, out, ".json", protected)
    frames = []
    for item, (_, relative) in zip(items, selection.files, strict=True):
        further = tuple(_stream_of(Path(s), relative, selection.single) for s in streams)
        frame = Frame(item.source, further, item.out if out else None)
        if out and pictures and frame.is_image:
            name = f"{item.out.stem}_detections.png"
            frame = dataclasses.replace(frame, picture=item.out.with_name(name))
        frames.append(frame)
    read = [path for frame in frames for path in (frame.source, *frame.streams)]
    written = [path for frame in frames for path in (frame.out, frame.picture) if path]
    file_sets.refuse_overwriting(written, [*read, *protected])
    return frames


def _stream_of(given: Path, relative: Path, single: bool) -> Path:
    if given.is_dir():
        path, features = (given / relative.with_suffix(ending) for ending in (".jxc", ".npz"))
        return features if features.exists() and not path.exists() else path
    if not single:
        raise DataError(f"{str(given)!r} is not a folder; several frames need folders of streams")
    return given


class Finder:
    """Detects in one frame after another."""

    def __init__(
        self,
        detector: Detector | FaceSplit,
        codecs: Sequence[LevelCodec] = (),
        *,
        score: float = 0.3,
        **limits: Unpack[Limits],
    ):
        """Prepares.

        Args:
          detector: its head makes features of images, its tail boxes of features.
          codecs: those of the streams; a stream's digest says which is its own.
          score: the least score to tell.
          **limits: what a stream may ask for, and the backend; see `codecs.limits.Limits`.

        Raises:
          CheckpointError: a codec was trained on another detector, or on other image sizes.
        """
        for codec in codecs:
            codec.check_detector(detector)
        self.detector, self.codecs, self.score, self.limits = detector, codecs, score, limits
        self.rule = codecs[0].input if codecs else None
        if any(codec.input != self.rule for codec in codecs):
            raise CheckpointError(
                "the codecs were trained on images of different sizes; give those of one size"
            )
        self._made_with: dict[str, Any] = {
            "score": score,
            "detector": detector.digest,
            "codecs": [codec.digest for codec in codecs],
        }

    def up_to_date(self, frame: Frame) -> bool:
        """Whether JSON and picture are whole, newer than what they are made of, and made alike."""
        sources = [frame.source, *frame.streams]
        made = [path for path in (frame.out, frame.picture) if path]
        if frame.out is None or not all(file_sets.is_newer(path, sources) for path in made):
            return False
        try:
            record = json.loads(frame.out.read_text())
            same = {name: record[name] for name in self._made_with} == self._made_with
            return same and record["streams"] == [str(path) for path in frame.streams]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def __call__(self, frame: Frame) -> Done:
        """Detects in one frame, writes its files, and tells the rows.

        Raises:
          DataError: a file cannot be read, or a level is missing.
          ShapeError: the levels are of frames of different sizes.
          BitstreamError: a stream is damaged or of a codec that is not there.
          CheckpointError: a file cannot be written.
        """
        features, meta = self.features(frame)
        rows = self.rows(features, meta)
        unit = "pixels of the image" if meta else "pixels of the network"
        if frame.out:
            size = meta["original_size"][0] if meta else None
            record = {
                "source": str(frame.source),
                "streams": [str(path) for path in frame.streams],
                **self._made_with,
                "boxes": unit,
                "image_size": size,
                "detections": rows,
            }
            if frame.picture:
                found = [(row["label"], row["score"], row["box"]) for row in rows]
                atomic_write(frame.picture, draw_detections(read_image(frame.source), found))
            atomic_write(frame.out, json_text(record))
        lines = [
            f"{row['label']:<12} {row['score']:.3f}  {' '.join(f'{v:.1f}' for v in row['box'])}"
            for row in rows
        ]
        lines.append(f"{len(rows)} detections with a score of at least {self.score}, in {unit}")
        return Done("\n".join(lines))

    def features(self, frame: Frame) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
        """The whole pyramid of a frame, and the sizes that bring boxes to pixels of its image."""
        features, meta = self._read(frame.source, frame.is_image)
        for path in frame.streams:
            levels, other = self._read(path, False)
            features |= levels
            _check_same_frame(frame.source, meta, path, other)
            meta = meta or other
        missing = [level for level in self.detector.levels if level not in features]
        if missing:
            raise DataError(
                f"{str(frame.source)!r}: level {' '.join(missing)} missing; give the image, or "
                "further streams (--stream) with their codecs, too"
            )
        return features, meta

    def rows(
        self, features: Mapping[str, Any], meta: Mapping[str, np.ndarray] | None
    ) -> list[dict[str, Any]]:
        """{"label", "score", "box" xyxy} of every detection with enough score, best first."""
        found = self.detector.detect_from_features(features, meta)
        columns = (found["boxes"][0], found["scores"][0], found["labels"][0])
        return [
            {
                "label": self.detector.classes[int(label) - 1],
                "score": float(score),
                "box": [float(v) for v in box],
            }
            for box, score, label in zip(*columns, strict=True)
            if label > 0 and score >= self.score
        ]

    def _read(self, path: Path, is_image: bool) -> tuple[dict[str, Any], Any]:
        if is_image:
            image, meta = self.detector.prepare(str(path), self.rule)
            return dict(self.detector.get_fpn_features(image)), meta
        if path.suffix.lower() in file_sets.STREAMS:
            return self._decode(path)
        features, record = feature_files.read_features(path)
        for name, x in features.items():
            if not np.isfinite(x).all():
                raise DataError(f"{str(path)!r}: array {name!r} contains NaN or infinity")
        return features, sizes(path, record.get("meta"))

    def _decode(self, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
        blob = read_bytes(path)
        try:
            wanted = bitstream.read(blob).digest
            for codec in self.codecs:
                if wanted in codec.coder.digests:
                    features, meta, _ = decode(codec, blob, **self.limits)
                    return dict(features), sizes(path, meta)
        except BitstreamError as error:
            raise type(error)(f"{str(path)!r}: {error}") from error
        held = ", ".join(f"{c.coder.digests[0]:016x}" for c in self.codecs) or "none"
        raise TableMismatchError(
            f"{str(path)!r} was coded with model {wanted:016x}; the codecs given (--codec) have "
            f"{held}"
        )


def sizes(path: Path, meta: Any) -> dict[str, np.ndarray] | None:
    """The sizes in a stream's metadata, {name: [1, 2] float32}; None where it carries none.

    Raises:
      DataError: they are not pairs of positive numbers.
    """
    if not isinstance(meta, Mapping) or not all(name in meta for name in _SIZES):
        return None
    try:
        values = {name: np.asarray(meta[name], np.float32) for name in _SIZES}
    except (TypeError, ValueError, OverflowError):
        values = {}
    good = [x.shape == (2,) and np.isfinite(x).all() and (x > 0).all() for x in values.values()]
    if not good or not all(good):
        raise DataError(
            f"{str(path)!r}: the metadata {', '.join(_SIZES)} must be pairs of positive numbers"
        )
    return {name: x[None] for name, x in values.items()}


def _check_same_frame(source: Path, meta: Any, path: Path, other: Any) -> None:
    if not meta or not other:
        return
    one, two = (m["original_size"][0] for m in (meta, other))
    if not np.array_equal(one, two):
        ours, theirs = (f"{int(s[0])}x{int(s[1])}" for s in (one, two))
        raise ShapeError(
            f"{str(path)!r} is of an image of {theirs} pixels, {str(source)!r} of {ours}: they "
            "are frames of different sizes"
        )
