"""The `.jxc` container: coded feature maps, the identity of their tables, and optional metadata.

    file   = "JXC" version | digest (8) | flags | [metadata chunk] | chunk ...
    chunk  = name | H W | shape byte | payload length | CRC-32 (4) | payload

docs/bitstream.md specifies every byte. The checksum of a chunk covers the file header, the chunk's
own header and its payload, so nothing that decides how to decode is left unprotected.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcomp.codecs.rans import MAX_LANES, read_varint, write_varint
from jaxcomp.errors import (
    BitstreamError,
    CorruptStreamError,
    StreamTooLargeError,
    TableMismatchError,
    TruncatedStreamError,
    VersionError,
)

MAGIC, VERSION = b"JXC", 1
KINDS = {"factorised": 0}
# Of all streams of a file together, checked before anything is allocated: decoding the symbols of a
# hostile file costs at most some 200 MB. A 2160x3840 frame has a hundredth in its largest level.
MAX_SYMBOLS = 1 << 24
MAX_META = 1 << 20  # bytes of JSON text, which take many times the memory once parsed
_META = 0x08  # flag bit; the codec kind is in bits 0-2, the number of streams above bit 3
_MAX_STREAMS = 15
_SEARCH = 64  # bytes, per byte of a damaged file, that the search for its chunks may look at


@dataclasses.dataclass(frozen=True)
class Stream:
    """One coded feature map.

    Attributes:
      name: which map ("p3"); at most 255 bytes of UTF-8, may be empty.
      shape: (H, W) of the features.
      stages: the latents are ceil(H / 2^stages) x ceil(W / 2^stages).
      lanes: of the rANS coder, a power of two, or 0 for its short form.
      payload: what `rans.encode` returned.
    """

    name: str
    shape: tuple[int, int]
    stages: int
    lanes: int
    payload: bytes

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        height, width = (-(-n // 2**self.stages) for n in self.shape)
        return height, width


@dataclasses.dataclass(frozen=True)
class Container:
    """A parsed file.

    Attributes:
      kind: the codec, a key of `KINDS`.
      digest: 64 bits that name the model.
      streams: the coded maps in order.
      meta: JSON metadata, None if there is none.
      header_bytes: everything that is not payload or metadata.
    """

    kind: str
    digest: int
    streams: tuple[Stream, ...]
    meta: Any = None
    header_bytes: int = 0


def write(kind: str, digest: int, streams: Sequence[Stream], meta: Mapping | None = None) -> bytes:
    """Packs streams into one file.

    Args:
      kind: a key of `KINDS`.
      digest: names the model, as `coding.identity_of`; or `CdfTables.digest` alone.
      streams: 1 to 15 of them.
      meta: anything JSON can hold (image size, scale, class names), or None.

    Returns:
      The bytes of the `.jxc` file.
    """
    if not 1 <= len(streams) <= _MAX_STREAMS:
        raise BitstreamError(f"{len(streams)} streams; a file holds 1 to {_MAX_STREAMS}")
    flags = KINDS[kind] | (_META if meta is not None else 0) | len(streams) << 4
    head = MAGIC + bytes([VERSION]) + struct.pack("<QB", digest, flags)
    parts = [head]
    if meta is not None:
        text = json.dumps(meta, separators=(",", ":")).encode()
        if len(text) > MAX_META:
            raise StreamTooLargeError(f"{len(text)} bytes of metadata; the limit is {MAX_META}")
        parts.append(_chunk(head, b"", text))
    parts += [_chunk(head, _stream_header(stream), stream.payload) for stream in streams]
    return b"".join(parts)


def read(
    blob: bytes,
    *,
    digest: int | tuple[int, ...] | None = None,
    channels: int = 1,
    max_symbols: int = MAX_SYMBOLS,
) -> Container:
    """Parses and checks a file.

    Args:
      blob: its bytes.
      digest: of the model that will decode it, or all that it may have; None to look at any file.
      channels: M, to compute the number of symbols that a stream announces.
      max_symbols: the most symbols that all streams together may announce.

    Returns:
      The container. Nothing is allocated in proportion to announced sizes.

    Raises:
      VersionError: not a `.jxc` file, or of a version or codec kind this reader does not know.
      TruncatedStreamError: the file ends early.
      CorruptStreamError: a checksum or field is wrong, or bytes follow the last chunk.
      TableMismatchError: coded with other tables.
      StreamTooLargeError: the streams announce more than `max_symbols`.
    """
    head, kind, coded_with, count, has_meta = _read_head(blob)
    position, meta, payloads = len(head), None, 0
    streams: list[Stream] = []
    if has_meta:
        body, position = _read_chunk(blob, head, position, position)
        meta, payloads = _parse_meta(body), len(body)
    for _ in range(count):
        stream, position = _read_stream(blob, head, position)
        _check_stream(stream, streams, channels, max_symbols)
        streams.append(stream)
        payloads += len(stream.payload)
    if position != len(blob):
        raise CorruptStreamError(f"{len(blob) - position} bytes follow the last stream")
    _check_digest(coded_with, digest)
    return Container(kind, coded_with, tuple(streams), meta, len(blob) - payloads)


def salvage(
    blob: bytes,
    *,
    digest: int | tuple[int, ...] | None = None,
    channels: int = 1,
    max_symbols: int = MAX_SYMBOLS,
) -> tuple[Container, list[BitstreamError]]:
    """Reads the undamaged chunks of a file.

    A damaged chunk is skipped by the length that it announces or, if no chunk begins there, by
    looking for the next place where one does.

    Args:
      blob: the bytes of the file; those of its header must be intact.
      digest: as for `read`.
      channels: as for `read`.
      max_symbols: as for `read`; a stream beyond it is left out.

    Returns:
      The container with the streams (and metadata) whose checksums hold, and what was wrong with
      the others, at least one error if anything is missing.

    Raises:
      VersionError, TruncatedStreamError, CorruptStreamError: the header of the file is damaged.
      TableMismatchError: coded with other tables.
    """
    head, kind, coded_with, count, has_meta = _read_head(blob)
    _check_digest(coded_with, digest)
    position, meta, payloads = len(head), None, 0
    errors: list[BitstreamError] = []
    streams: list[Stream] = []
    budget = _Budget((1 << 22) + _SEARCH * len(blob))
    if has_meta:
        try:
            body, position = _read_chunk(blob, head, position, position)
            meta, payloads = _parse_meta(body), len(body)
        except BitstreamError as error:
            errors.append(error)
            position = _next_chunk(blob, head, position, 0, budget)
    while position < len(blob) and len(streams) < count:
        try:
            stream, after = _read_stream(blob, head, position)
        except BitstreamError as error:
            errors.append(error)
            position = _next_chunk(blob, head, position, 1, budget)
            continue
        try:
            _check_stream(stream, streams, channels, max_symbols)
            streams.append(stream)
            payloads += len(stream.payload)
        except BitstreamError as error:
            errors.append(error)
        position = after
    if len(streams) < count and not errors:
        errors.append(TruncatedStreamError(f"{len(streams)} of {count} streams are in the file"))
    if len(streams) == count and position < len(blob):
        rest = len(blob) - position
        errors.append(CorruptStreamError(f"{rest} bytes follow the last stream"))
    return Container(kind, coded_with, tuple(streams), meta, len(blob) - payloads), errors


def _check_digest(coded_with: int, digest: int | tuple[int, ...] | None) -> None:
    accepted = (digest,) if isinstance(digest, int) else digest
    if accepted is not None and coded_with not in accepted:
        raise TableMismatchError(
            f"the stream was coded with model {coded_with:016x}, this one is {accepted[0]:016x}; "
            "use the checkpoint it was made with"
        )


def _check_stream(
    stream: Stream, before: Sequence[Stream], channels: int, max_symbols: int
) -> None:
    """Raises if a stream, with those before it, is too large or its name was used."""
    symbols = 0
    for height, width in (s.latent_shape for s in (*before, stream)):
        symbols += height * width * channels
    if symbols > max_symbols:
        height, width = stream.latent_shape
        raise StreamTooLargeError(
            f"stream {stream.name!r} announces {height}x{width}x{channels} symbols, with those "
            f"before more than the limit of {max_symbols}; raise max_symbols if the file is trusted"
        )
    if any(stream.name == other.name for other in before):
        raise CorruptStreamError(f"two streams have the name {stream.name!r}")


class _Budget:
    """Bytes that a search may still run through checksums."""

    def __init__(self, left: int):
        self.left = left


def _next_chunk(blob: bytes, head: bytes, damaged: int, names: int, budget: _Budget) -> int:
    """Where the stream chunk behind the damaged one begins; the file's end if none is found.

    `names` is 1 for a damaged stream chunk and 0 for the metadata, which have no name.
    """
    candidates: list[int] = []
    try:
        # Where the damaged chunk would end if its own header is right.
        if names:
            _, _, _, _, position = _read_stream_header(blob, damaged)
        else:
            position = damaged
        size, position = read_varint(blob, position)
        candidates.append(position + 4 + size)
    except BitstreamError:
        pass
    for start in itertools.chain(candidates, range(damaged + 1, len(blob))):
        budget.left -= 16
        try:
            _, _, _, _, position = _read_stream_header(blob, start)
            size, position = read_varint(blob, position)
        except BitstreamError:
            continue
        if position + 4 + size > len(blob):
            continue
        budget.left -= size
        if budget.left < 0:
            return len(blob)
        own, body = blob[start:position], blob[position + 4 : position + 4 + size]
        if struct.unpack_from("<I", blob, position)[0] == _checksum(head, own, body):
            return start
    return len(blob)


def _read_head(blob: bytes) -> tuple[bytes, str, int, int, bool]:
    """(header bytes, kind, digest, number of streams, has metadata)."""
    if blob[:3] != MAGIC[: len(blob)]:
        raise VersionError(f"the file begins with {bytes(blob[:3])!r}, not {MAGIC!r}: not .jxc")
    if len(blob) > 3 and blob[3] != VERSION:
        raise VersionError(f"version {blob[3]} of the .jxc format; this reader knows {VERSION}")
    if len(blob) < 13:
        raise TruncatedStreamError(f"{len(blob)} bytes are less than the file header of 13")
    digest, flags = struct.unpack_from("<QB", blob, 4)
    kinds = {number: name for name, number in KINDS.items()}
    if flags & 7 not in kinds:
        raise VersionError(f"codec kind {flags & 7}; this reader knows {KINDS}")
    if not flags >> 4:
        raise CorruptStreamError("the header announces no stream")
    return bytes(blob[:13]), kinds[flags & 7], digest, flags >> 4, bool(flags & _META)


def _stream_header(stream: Stream) -> bytes:
    name = stream.name.encode()
    if len(name) > 255 or not 0 <= stream.stages < 16 or min(stream.shape) < 1:
        raise BitstreamError(f"stream {stream.name!r}: name, stages or shape out of range")
    shape = write_varint(stream.shape[0]) + write_varint(stream.shape[1])
    # Four bits: log2 of the lanes, or 15 for the short form (-1 in two's complement).
    packed = stream.stages << 4 | (stream.lanes.bit_length() - 1) & 15
    return bytes([len(name)]) + name + shape + bytes([packed])


def _read_stream_header(blob: bytes, position: int) -> tuple[str, tuple[int, int], int, int, int]:
    """(name, shape, stages, lanes, position behind)."""
    if position >= len(blob):
        raise TruncatedStreamError(f"the file ends at byte {position}, before its last stream")
    end = position + 1 + blob[position]
    try:
        name = bytes(blob[position + 1 : end]).decode()
    except UnicodeDecodeError as error:
        raise CorruptStreamError(f"the stream name at byte {position} is not UTF-8") from error
    height, position = read_varint(blob, end)
    width, position = read_varint(blob, position)
    if position >= len(blob):
        raise TruncatedStreamError(f"the file ends inside the header of stream {name!r}")
    stages, code = blob[position] >> 4, blob[position] & 15
    lanes = 0 if code == 15 else 1 << code
    if min(height, width) < 1 or lanes > MAX_LANES:
        raise CorruptStreamError(f"stream {name!r}: shape {height}x{width}, {lanes} lanes")
    return name, (height, width), stages, lanes, position + 1


def _read_stream(blob: bytes, head: bytes, start: int) -> tuple[Stream, int]:
    """(stream, position behind) of the stream chunk at `start`."""
    name, shape, stages, lanes, position = _read_stream_header(blob, start)
    payload, position = _read_chunk(blob, head, start, position)
    return Stream(name, shape, stages, lanes, payload), position


def _chunk(head: bytes, own: bytes, body: bytes) -> bytes:
    own = own + write_varint(len(body))
    return own + struct.pack("<I", _checksum(head, own, body)) + body


def _read_chunk(blob: bytes, head: bytes, start: int, position: int) -> tuple[bytes, int]:
    """(body, position behind) of the chunk whose header began at `start`."""
    size, position = read_varint(blob, position)
    own, body = blob[start:position], bytes(blob[position + 4 : position + 4 + size])
    if len(blob) < position + 4 + size:
        raise TruncatedStreamError(
            f"a chunk of {size} bytes begins at byte {position + 4}; the file has {len(blob)}"
        )
    if struct.unpack_from("<I", blob, position)[0] != _checksum(head, own, body):
        raise CorruptStreamError(f"the checksum of the chunk at byte {start} is wrong")
    return body, position + 4 + size


def _checksum(head: bytes, own: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(own, zlib.crc32(head)))


def _parse_meta(body: bytes) -> Any:
    if len(body) > MAX_META:
        raise StreamTooLargeError(f"{len(body)} bytes of metadata; the limit is {MAX_META}")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptStreamError("the metadata are not JSON") from error
