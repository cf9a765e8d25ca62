"""The `.jxc` container: coded feature maps, the identity of their tables, and optional metadata.

    file   = "JXC" version | digest (8) | flags | [metadata chunk] | chunk ...
    chunk  = name | H W | shape byte | payload length | CRC-32 (4) | payload

docs/bitstream.md specifies every byte. The checksum of a chunk covers the file header, the chunk's
own header and its payload, so nothing that decides how to decode is left unprotected.

`write` and `read` agree: what one accepts, the other does, with the same limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcomp.codecs import chunks, searching
from jaxcomp.codecs.chunks import KINDS, MAGIC, MAX_META, MAX_SYMBOLS, VERSION, Stream
from jaxcomp.codecs.searching import MAX_SEARCH
from jaxcomp.errors import (
    BitstreamError,
    CorruptStreamError,
    TableMismatchError,
    TruncatedStreamError,
)

__all__ = [
    "KINDS",
    "MAGIC",
    "MAX_META",
    "MAX_SEARCH",
    "MAX_SYMBOLS",
    "VERSION",
    "Container",
    "Stream",
    "read",
    "salvage",
    "write",
]


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


def write(
    kind: str,
    digest: int,
    streams: Sequence[Stream],
    meta: Mapping | None = None,
    *,
    channels: int = 1,
    max_symbols: int = MAX_SYMBOLS,
) -> bytes:
    """Packs streams into one file.

    Args:
      kind: a key of `KINDS`.
      digest: names the model, as `coding.identity_of`; or `CdfTables.digest` alone.
      streams: 1 to 15 of them, of different names.
      meta: anything JSON can hold (image size, scale, class names), or None. Tuples come back as
        lists.
      channels: as for `read`.
      max_symbols: as for `read`: a file that a reader would refuse is not written.

    Returns:
      The bytes of the `.jxc` file.

    Raises:
      BitstreamError: an unknown kind, no stream or too many, two of one name, a field that the
        format cannot hold, or metadata that JSON cannot (NaN, infinity, NumPy scalars).
      StreamTooLargeError: more symbols or metadata than a reader takes.
    """
    head = chunks.write_head(kind, digest, len(streams), meta is not None)
    parts = [head]
    if meta is not None:
        parts.append(chunks.write_meta(head, meta))
    for i, stream in enumerate(streams):
        parts.append(chunks.write_stream(head, stream))
        chunks.check_stream(stream, streams[:i], channels, max_symbols)
    return b"".join(parts)


def read(
    blob: bytes,
    *,
    kind: str | None = None,
    digest: int | tuple[int, ...] | None = None,
    channels: int = 1,
    max_symbols: int = MAX_SYMBOLS,
) -> Container:
    """Parses and checks a file.

    Args:
      blob: its bytes.
      kind: that the codec decodes, a key of `KINDS`; None to look at any file.
      digest: of the model that will decode it, or all that it may have; None to look at any file.
      channels: M, to compute the number of symbols that a stream announces.
      max_symbols: the most symbols that all streams together may announce.

    Returns:
      The container. Nothing is allocated in proportion to announced sizes.

    Raises:
      VersionError: not a `.jxc` file, or of a version or codec kind this reader does not know.
      TableMismatchError: of another kind or coded with other tables; told before anything
        else, but for a damaged header, which the first checksum shows.
      TruncatedStreamError: the file ends early.
      CorruptStreamError: a checksum or field is wrong, or bytes follow the last chunk.
      StreamTooLargeError: the streams announce more than `max_symbols`.
    """
    head = chunks.read_head(blob)
    _check_model(blob, head, kind, digest)
    meta, payloads, position = chunks.read_meta(blob, head)
    streams: list[Stream] = []
    for _ in range(head.count):
        stream, position = chunks.read_stream(blob, head, position)
        chunks.check_stream(stream, streams, channels, max_symbols)
        streams.append(stream)
        payloads += len(stream.payload)
    if position != len(blob):
        raise CorruptStreamError(f"{len(blob) - position} bytes follow the last stream")
    return Container(head.kind, head.digest, tuple(streams), meta, len(blob) - payloads)


def _check_model(
    blob: bytes, head: chunks.Head, kind: str | None, digest: int | tuple[int, ...] | None
) -> None:
    """Raises `TableMismatchError`, or what the first chunk says of a damaged header."""
    try:
        chunks.check_kind(head.kind, kind)
        chunks.check_digest(head.digest, digest)
    except TableMismatchError:
        try:
            _, _, position = chunks.read_meta(blob, head)
            if not head.has_meta:
                chunks.read_stream(blob, head, position)
        except TruncatedStreamError:
            pass
        raise


def salvage(
    blob: bytes,
    *,
    kind: str | None = None,
    digest: int | tuple[int, ...] | None = None,
    channels: int = 1,
    max_symbols: int = MAX_SYMBOLS,
    max_search: int = MAX_SEARCH,
) -> tuple[Container, list[BitstreamError]]:
    """Reads the undamaged chunks of a file.

    A damaged chunk is skipped by the length that it announces or, if no chunk begins there, by
    looking for the next place where one does.

    Args:
      blob: the bytes of the file; those of its header must be intact.
      kind: as for `read`.
      digest: as for `read`.
      channels: as for `read`.
      max_symbols: as for `read`; a stream beyond it is left out.
      max_search: the most bytes that the search for chunks may look at, each as often as it does.

    Returns:
      The container with the streams (and metadata) whose checksums hold, and what was wrong with
      the others: one error for each damaged chunk, and a last one that tells how many streams are
      lost if they are more than those or the search stopped at `max_search`.

    Raises:
      VersionError, TruncatedStreamError, CorruptStreamError: the header of the file is damaged.
      TableMismatchError: of another kind or coded with other tables.
    """
    head = chunks.read_head(blob)
    chunks.check_kind(head.kind, kind)
    chunks.check_digest(head.digest, digest)
    search = searching.Search(blob, head, max_search)
    meta, payloads, position = None, 0, len(head.data)
    damaged: list[BitstreamError] = []  # metadata
    errors: list[BitstreamError] = []  # streams
    try:
        meta, payloads, position = chunks.read_meta(blob, head)
    except BitstreamError as error:
        damaged.append(error)
        position = search.next_chunk(position, named=False)
    streams: list[Stream] = []
    while position < len(blob) and len(streams) < head.count:
        try:
            stream, after = chunks.read_stream(blob, head, position)
        except BitstreamError as error:
            errors.append(error)
            position = search.next_chunk(position, named=True)
            continue
        position = after
        try:
            chunks.check_stream(stream, streams, channels, max_symbols)
        except BitstreamError as error:
            errors.append(error)
            continue
        streams.append(stream)
        payloads += len(stream.payload)
    lost = head.count - len(streams)
    if lost > len(errors) or (lost and search.exhausted):
        errors.append(_missing(head, streams, search))
    if len(streams) == head.count and position < len(blob):
        rest = len(blob) - position
        errors.append(CorruptStreamError(f"{rest} bytes follow the last stream"))
    box = Container(head.kind, head.digest, tuple(streams), meta, len(blob) - payloads)
    return box, damaged + errors


def _missing(
    head: chunks.Head, streams: Sequence[Stream], search: searching.Search
) -> BitstreamError:
    """Says how many streams were lost, beside which ones, and whether the search gave up."""
    lost = head.count - len(streams)
    found = " ".join(repr(stream.name) for stream in streams) or "none"
    text = f"{lost} of {head.count} streams are lost; found: {found}"
    if search.exhausted:
        return CorruptStreamError(
            f"{text}; the search for the others ended at its limit of {search.limit} bytes, "
            "raise max_search to go on"
        )
    return TruncatedStreamError(f"{text}; no other chunk in the file has its checksum right")
