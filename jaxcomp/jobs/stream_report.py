"""What a `.jxc` file holds and whether a codec fits it. Without a codec JAX is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcomp.codecs import bitstream
from jaxcomp.errors import BitstreamError, DataError, TableMismatchError

RESIDUAL = "residual_vq"  # codec kind of residual codes


def point_of(streams: Sequence[bitstream.Stream]) -> list[int]:
    """Rows of every codebook of a file of residual codes, as the names of its streams tell them."""
    rows = (stream.name.partition(".")[2] for stream in streams)
    return [int(n[:9]) for n in rows if n.isdecimal()]


def describe_stream(path: Path, codec: Any = None) -> tuple[dict[str, Any], list[BitstreamError]]:
    """The header, the streams and the metadata of a file, as far as they can be read.

    Args:
      path: the file.
      codec: a `PyramidCodec` to try on it; its streams are then decoded to integers.

    Returns:
      (what `inspect` prints, what is wrong with the file or does not fit the codec).

    Raises:
      DataError: the file cannot be read.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    description: dict[str, Any] = {"bytes": len(blob)}
    if blob.startswith(bitstream.MAGIC) and len(blob) > len(bitstream.MAGIC):
        description["version"] = blob[len(bitstream.MAGIC)]
    try:
        container, errors = _read(blob, codec)
    except BitstreamError as error:
        return description | {"errors": [_text(error)]}, [error]
    channels = codec.codec.in_channels if codec else None
    description |= _header(container)
    if container.kind == RESIDUAL:
        point = point_of(container.streams)
        description |= {"codebooks": len(point), "embeddings": point}
    description["streams"] = [_stream(stream, channels) for stream in container.streams]
    if codec:
        misfits, decoded = _try(container, codec)
        # The reader may have told already that it is of another model.
        told = any(isinstance(error, TableMismatchError) for error in errors)
        errors += [] if told else misfits
        description["codec"] = {
            "digest": codec.digest,
            "model": f"{codec.coder.digests[0]:016x}",
            "levels": list(codec.levels),
            "matches": False if misfits else (True if decoded else None),
            "decoded": decoded,
        }
    if errors:
        description["errors"] = [_text(error) for error in errors]
    return description, errors


def _read(blob: bytes, codec: Any) -> tuple[bitstream.Container, list[BitstreamError]]:
    """The file as the strict reader sees it, or else what can be salvaged and what is wrong."""
    channels = codec.tables.channels if codec else 1
    try:
        digests = codec.coder.digests if codec else None
        kind = "factorised" if codec else None
        return bitstream.read(blob, kind=kind, digest=digests, channels=channels), []
    except TableMismatchError as error:  # the codec says nothing about the file
        container, errors = _read(blob, None)
        return container, [error, *errors]
    except BitstreamError as error:
        container, errors = bitstream.salvage(blob, channels=channels)
        return container, errors or [error]


def _header(container: bitstream.Container) -> dict[str, Any]:
    return {
        "kind": container.kind,
        "model": f"{container.digest:016x}",
        "header_bytes": container.header_bytes,
        "meta": container.meta,
    }


def _stream(stream: bitstream.Stream, channels: int | None) -> dict[str, Any]:
    """One row; bits per value need the number of channels, which only the codec knows."""
    bits, positions = 8 * len(stream.payload), stream.shape[0] * stream.shape[1]
    row = {
        "name": stream.name,
        "shape": list(stream.shape) + ([channels] if channels else []),
        "latent_shape": list(stream.latent_shape),
        "lanes": stream.lanes,
        "bytes": len(stream.payload),
        "bits": bits,
        "bits_per_position": bits / positions,
    }
    return row | ({"bits_per_value": bits / positions / channels} if channels else {})


def _try(container: bitstream.Container, codec: Any) -> tuple[list[BitstreamError], list[str]]:
    """(why the codec cannot decode the streams, the names of those that it did decode)."""
    if container.digest not in codec.coder.digests:
        own = codec.coder.digests[0]
        text = f"coded with model {container.digest:016x}, the codec is {own:016x}"
        return [TableMismatchError(text)], []
    other = [s.name for s in container.streams if s.name not in codec.coder.models]
    if other:
        return [TableMismatchError(f"holds {other}, the codec is for {list(codec.levels)}")], []
    decoded = dict(
        zip(
            [stream.name for stream in container.streams],
            codec.coder.decode_streams(container.streams),
            strict=True,
        )
    )
    misfits = [one for one in decoded.values() if isinstance(one, BitstreamError)]
    return misfits, [k for k, one in decoded.items() if not isinstance(one, BitstreamError)]


def _text(error: BitstreamError) -> str:
    return f"{type(error).__name__}: {error}"
