"""The parts of a `.jxc` file (docs/bitstream.md): file header, chunks with checksums, metadata.

What is here reads and writes one part at a time; `bitstream` puts them together.
"""

from __future__ import annotations

import dataclasses
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
KINDS = {"factorised": 0, "residual_vq": 1}
# Of all streams of a file together, checked before anything is allocated: decoding a hostile file
# costs 130 MB at most, in JAX 400 MB. A 2160x3840 frame has a hundredth in its largest level.
MAX_SYMBOLS = 1 << 24
MAX_META = 1 << 20  # bytes of JSON text, which take many times the memory once parsed
# Lists and objects within one another: far below the 1,000 at which Python's recursion ends, so
# that whoever prints or copies what was read does not fail.
MAX_DEPTH = 32
MAX_STREAMS = 15
META = 0x08  # flag bit; the codec kind is in bits 0-2, the number of streams above bit 3
_MAX_VARINT = (1 << 35) - 1  # what five groups of 7 bits hold


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
class Head:
    """The first 13 bytes of a file.

    Attributes:
      data: the bytes themselves, which every checksum covers.
      kind: the codec, a key of `KINDS`.
      digest: 64 bits that name the model.
      count: of streams.
      has_meta: whether a metadata chunk follows.
    """

    data: bytes
    kind: str
    digest: int
    count: int
    has_meta: bool


def write_head(kind: str, digest: int, count: int, has_meta: bool) -> bytes:
    """The 13 bytes of the file header.

    Raises:
      BitstreamError: an unknown kind, a digest of more than 64 bits, or too many streams.
    """
    if kind not in KINDS:
        raise BitstreamError(f"codec kind {kind!r}; this writer knows {', '.join(KINDS)}")
    if not _is_integer(digest) or not 0 <= digest < 1 << 64:
        raise BitstreamError(f"digest {digest!r} is not a number of 64 bits")
    if not 1 <= count <= MAX_STREAMS:
        raise BitstreamError(f"{count} streams; a file holds 1 to {MAX_STREAMS}")
    flags = KINDS[kind] | (META if has_meta else 0) | count << 4
    return MAGIC + bytes([VERSION]) + struct.pack("<QB", digest, flags)


def read_head(blob: bytes) -> Head:
    """What the file header says.

    Raises:
      VersionError: not a `.jxc` file, or of a version or codec kind this reader does not know.
      TruncatedStreamError: less than a header.
      CorruptStreamError: it announces no stream.
    """
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
    return Head(bytes(blob[:13]), kinds[flags & 7], digest, flags >> 4, bool(flags & META))


def write_stream(head: bytes, stream: Stream) -> bytes:
    """The chunk of one stream.

    Raises:
      BitstreamError: a field that the format cannot hold.
    """
    try:
        name = stream.name.encode()
    except UnicodeEncodeError as error:
        raise BitstreamError(f"stream name {stream.name!r} has no UTF-8 form") from error
    numbers = (*stream.shape, stream.stages, stream.lanes)
    if len(stream.shape) != 2 or not all(_is_integer(n) for n in numbers):
        raise BitstreamError(
            f"stream {stream.name!r}: shape {stream.shape}, {stream.stages} stages, "
            f"{stream.lanes} lanes: two integers and two more are needed"
        )
    if len(name) > 255 or not 0 <= stream.stages < 16 or min(stream.shape) < 1:
        raise BitstreamError(f"stream {stream.name!r}: name, stages or shape out of range")
    if max(*stream.shape, len(stream.payload)) > _MAX_VARINT:
        raise StreamTooLargeError(
            f"stream {stream.name!r}: shape {stream.shape} with a payload of "
            f"{len(stream.payload)} bytes; the format holds numbers below 2^35"
        )
    if not 0 <= stream.lanes <= MAX_LANES or stream.lanes & (stream.lanes - 1):
        raise BitstreamError(
            f"stream {stream.name!r}: {stream.lanes} lanes; 0 (the short form) or a power of two "
            f"up to {MAX_LANES} is needed"
        )
    shape = write_varint(stream.shape[0]) + write_varint(stream.shape[1])
    # Four bits: log2 of the lanes, or 15 for the short form (-1 in two's complement).
    packed = stream.stages << 4 | (stream.lanes.bit_length() - 1) & 15
    own = bytes([len(name)]) + name + shape + bytes([packed])
    return _chunk(head, own, stream.payload)


def read_stream_header(blob: bytes, position: int) -> tuple[str, tuple[int, int], int, int, int]:
    """(name, shape, stages, lanes, position behind) of the chunk that begins here."""
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


def read_stream(blob: bytes, head: Head, start: int) -> tuple[Stream, int]:
    """(stream, position behind) of the stream chunk at `start`."""
    name, shape, stages, lanes, position = read_stream_header(blob, start)
    payload, position = _read_chunk(blob, head, start, position, f"stream {name!r}")
    return Stream(name, shape, stages, lanes, payload), position


def check_stream(stream: Stream, before: Sequence[Stream], channels: int, max_symbols: int) -> None:
    """Raises if a stream, with those before it, is too large or its name was used."""
    symbols = 0
    for height, width in (s.latent_shape for s in (*before, stream)):
        symbols += height * width * channels
    if symbols > max_symbols:
        height, width = stream.latent_shape
        raise StreamTooLargeError(
            f"stream {stream.name!r} announces {height}x{width}x{channels} symbols, with those "
            f"before more than the limit of {max_symbols}; raise it (max_symbols, --max-symbols) "
            "if the file is trusted"
        )
    if any(stream.name == other.name for other in before):
        raise CorruptStreamError(f"two streams have the name {stream.name!r}")


def check_digest(coded_with: int, digest: int | tuple[int, ...] | None) -> None:
    """Raises `TableMismatchError` unless a file's digest is one of those wanted."""
    accepted = (digest,) if isinstance(digest, int) else digest
    if accepted is not None and coded_with not in accepted:
        raise TableMismatchError(
            f"the stream was coded with model {coded_with:016x}, this one is {accepted[0]:016x}; "
            "use the checkpoint it was made with"
        )


def check_kind(coded_as: str, kind: str | None) -> None:
    """Raises `TableMismatchError` unless a file is of the kind wanted."""
    if kind is not None and coded_as != kind:
        raise TableMismatchError(
            f"the stream is of the codec kind {coded_as!r}, this codec decodes {kind!r}; use the "
            "checkpoint it was made with"
        )


def write_meta(head: bytes, meta: Any) -> bytes:
    """The metadata chunk.

    Raises:
      BitstreamError: what JSON cannot hold, or would give back as something else; or nested more
        than `MAX_DEPTH` deep.
      StreamTooLargeError: more than `MAX_META` bytes.
    """
    try:
        text = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
        parsed = json.loads(text)
        deep = _deeper(parsed, MAX_DEPTH)
        same = deep or parsed == _as_lists(meta)
    except (TypeError, ValueError, RecursionError) as error:
        raise BitstreamError(f"the metadata are not JSON ({error}); give plain values") from error
    if deep:
        raise BitstreamError(f"the metadata are nested more than {MAX_DEPTH} deep; flatten them")
    if not same:
        raise BitstreamError("the metadata do not survive JSON: the names must be text")
    if len(text) > MAX_META:
        raise StreamTooLargeError(f"{len(text)} bytes of metadata; the limit is {MAX_META}")
    return _chunk(head, b"", text)


def read_meta(blob: bytes, head: Head) -> tuple[Any, int, int]:
    """(metadata, bytes of their text, position behind their chunk); None and 0 if there are none.

    Raises:
      TruncatedStreamError, CorruptStreamError, StreamTooLargeError: they cannot be read.
    """
    start = len(head.data)
    if not head.has_meta:
        return None, 0, start
    body, position = _read_chunk(blob, head, start, start, "metadata")
    return parse_meta(body), len(body), position


def parse_meta(body: bytes) -> Any:
    """JSON text in UTF-8 to values.

    Raises:
      StreamTooLargeError: more than `MAX_META` bytes.
      CorruptStreamError: no UTF-8, no JSON (NaN is none), or nested more than `MAX_DEPTH` deep.
    """
    if len(body) > MAX_META:
        raise StreamTooLargeError(f"{len(body)} bytes of metadata; the limit is {MAX_META}")
    try:
        # Of bytes, `json.loads` would take UTF-16 and UTF-32 as well.
        meta = json.loads(body.decode("utf-8"), parse_constant=_refuse)
        deep = _deeper(meta, MAX_DEPTH)
    except RecursionError:
        deep = True
    except ValueError as error:
        raise CorruptStreamError("the metadata are not JSON in UTF-8") from error
    if deep:
        raise CorruptStreamError(f"the metadata are JSON nested more than {MAX_DEPTH} deep")
    return meta


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _deeper(value: Any, limit: int) -> bool:
    """Whether lists and dictionaries are nested more than `limit` deep; a plain value is 0 deep."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(limit):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inner for v in values if isinstance(v, list | dict)]
    return bool(level)


def checksum(head: bytes, own: bytes, body: bytes) -> int:
    """CRC-32 over file header, the chunk's own header and its body."""
    return zlib.crc32(body, zlib.crc32(own, zlib.crc32(head)))


def _chunk(head: bytes, own: bytes, body: bytes) -> bytes:
    own = own + write_varint(len(body))
    return own + struct.pack("<I", checksum(head, own, body)) + body


def _read_chunk(blob: bytes, head: Head, start: int, position: int, what: str) -> tuple[bytes, int]:
    """(body, position behind) of the chunk whose header began at `start`."""
    size, position = read_varint(blob, position)
    own, body = blob[start:position], bytes(blob[position + 4 : position + 4 + size])
    if len(blob) < position + 4 + size:
        raise TruncatedStreamError(
            f"a chunk of {size} bytes ({what}) begins at byte {position + 4}; the file has "
            f"{len(blob)}"
        )
    if struct.unpack_from("<I", blob, position)[0] != checksum(head.data, own, body):
        raise CorruptStreamError(f"the checksum of the chunk at byte {start} ({what}) is wrong")
    return body, position + 4 + size


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_lists(value: Any) -> Any:
    """What JSON makes of tuples."""
    if isinstance(value, list | tuple):
        return [_as_lists(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _as_lists(v) for k, v in value.items()}
    return value
