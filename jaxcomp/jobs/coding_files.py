"""Images and feature files to `.jxc` files and back, one frame at a time.

Frames are coded one by one, so that a file's bytes do not depend on which others were coded with
it; the network of a batch gives other last bits. Batches of 8 took 0.7 of the time of the codec,
which is little beside the detector's head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from jaxcomp import loaders
from jaxcomp.codecs import bitstream
from jaxcomp.codecs.limits import Limits
from jaxcomp.errors import BitstreamError, DataError
from jaxcomp.jobs import feature_files
from jaxcomp.jobs.file_runs import Done
from jaxcomp.jobs.file_sets import FEATURES, Item, is_newer
from jaxcomp.loaders import Detector, FaceSplit, LevelCodec, token_head
from jaxcomp.workdir import atomic_write


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


class Compressor:
    """Makes the `.jxc` file of an image or of a feature file."""

    def __init__(
        self,
        codec: LevelCodec,
        detector: str | None = None,
        *,
        metadata: bool = True,
        backend: str = "numba",
    ):
        """Prepares; the detector is loaded when the first image comes.

        Args:
          codec: what codes.
          detector: of `load_detector`; its head makes the features of images.
          metadata: whether streams carry image size, scale and class names.
          backend: of the entropy coder.
        """
        self.codec, self.metadata, self.backend = codec, metadata, backend
        self._path = detector

    @functools.cached_property
    def detector(self) -> Detector | FaceSplit | token_head.TokenHead:
        """The detector, checked to be the codec's."""
        kind = self.codec.meta.get("detector_kind", "faster_rcnn")
        if kind == token_head.KIND:
            detector = token_head.load_token_head(self._path or self.codec.meta["detector"])
        else:
            detector = loaders.load_split_detector(self._path, kind)
        self.codec.check_detector(detector)
        return detector

    def up_to_date(self, item: Item) -> bool:
        """Whether the stream is whole, newer than its source and made with this codec."""
        if not is_newer(item.out, [item.source]):
            return False
        coder = self.codec.coder
        try:
            blob = item.out.read_bytes()
            container = bitstream.read(
                blob, digest=coder.digests[0], channels=coder.tables.channels
            )
        except (BitstreamError, OSError):
            return False
        # Images always have metadata; feature files may have none to pass on.
        with_meta = container.meta is not None
        image = item.source.suffix.lower() not in FEATURES
        fits = with_meta == self.metadata if image else self.metadata or not with_meta
        names = {stream.name for stream in container.streams}
        return fits and (names == set(coder.models) or coder.joint)

    def __call__(self, item: Item) -> Done:
        """Writes one stream.

        Raises:
          DataError: the source cannot be read.
          ShapeError, NonFiniteError: its features cannot be coded.
          CheckpointError: the stream cannot be written, or the detector is not the codec's.
        """
        features, meta = self._features(item.source)
        blob = self.codec.compress(features, meta if self.metadata else None, backend=self.backend)
        atomic_write(item.out, blob)
        raw = 4 * sum(x.size for x in self.codec.select(features).values())
        levels, ratio = " ".join(self.codec.levels), raw / len(blob)
        line = f"{item.out}: {len(blob)} bytes for {levels} ({raw} bytes raw, {ratio:.0f}x)"
        return Done(line, raw, len(blob))

    def _features(self, source: Path) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
        if source.suffix.lower() in FEATURES:
            features, record = feature_files.read_features(source, self.codec.levels)
            return features, record.get("meta")
        detector = self.detector
        image, meta = detector.prepare(str(source), self.codec.input)
        plain = {name: [_number(v) for v in value[0]] for name, value in meta.items()}
        classes = {"classes": list(detector.classes)}
        return detector.get_fpn_features(image), {**plain, **classes}


def _number(value: np.float32) -> int | float:
    """The shortest number that is this float32: metadata are bytes of the stream."""
    return int(value) if value == int(value) else float(str(value))


class Decompressor:
    """Makes the `.npz` of features of a `.jxc` file."""

    def __init__(self, codec: LevelCodec, *, partial: bool = False, **limits: Unpack[Limits]):
        """Prepares.

        Args:
          codec: the one that coded.
          partial: whether to write what is undamaged of a damaged file.
          **limits: what a file may ask for, and the backend; see `codecs.limits.Limits`.
        """
        self.codec, self.partial, self.limits = codec, partial, limits

    def up_to_date(self, item: Item) -> bool:
        """Whether the output is whole, newer than the stream and of this codec."""
        if not is_newer(item.out, [item.source]):
            return False
        record = feature_files.read_record(item.out) or {}
        return record.get("codec") == self.codec.digest and not record.get("missing")

    def __call__(self, item: Item) -> Done:
        """Writes the features of one stream.

        Raises:
          DataError: the stream cannot be read.
          BitstreamError: it is damaged, with `partial` all of it, or of another codec.
          CheckpointError: the features cannot be written.
        """
        blob = read_bytes(item.source)
        features, meta, damage = decode(self.codec, blob, self.partial, **self.limits)
        record = {"codec": self.codec.digest, "meta": meta}
        feature_files.write_features(
            item.out, features, {**record, "missing": damage} if damage else record
        )
        raw = 4 * sum(x.size for x in features.values())
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in features.items())
        return Done(f"{item.out}: {shapes}", raw, len(blob), "; ".join(damage))


def decode(
    codec: LevelCodec, blob: bytes, partial: bool = False, **limits: Unpack[Limits]
) -> tuple[dict[str, np.ndarray], Any, list[str]]:
    """The features of a stream, its metadata, and with `partial` what could not be read of it.

    Raises:
      BitstreamError: it is damaged, with `partial` all of it, too large, or of another codec.
    """
    symbols = limits.get("max_symbols")
    reading = {} if symbols is None else {"max_symbols": symbols}
    if not partial:
        features = codec.decompress(blob, **limits)
        meta, damage = bitstream.read(blob, **reading).meta, []
    else:
        features, errors = codec.decompress_partial(blob, **limits)
        meta = bitstream.salvage(blob, **reading)[0].meta
        damage = [f"{type(error).__name__}: {error}" for error in errors]
        damage += [f"{name} is missing" for name in codec.levels if name not in features]
        if not features:
            raise errors[0] if errors else BitstreamError("there is nothing in the file to decode")
    return {name: np.asarray(x) for name, x in features.items()}, meta, damage
