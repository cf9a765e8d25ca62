"""Finding the chunks of a `.jxc` file behind a damaged one."""

from __future__ import annotations

import itertools
import struct

from jaxcomp.codecs import chunks
from jaxcomp.codecs.rans import read_varint
from jaxcomp.errors import BitstreamError

# Bytes that the search in one file may look at, most of them checksums over what might be a
# payload: 4 to 15 seconds. A chunk of n MB whose own header is damaged costs about 1.3e9 n.
MAX_SEARCH = 1 << 33
_START = 1024  # what looking at one place costs beside its checksum, in bytes of checksum


class Search:
    """Looks for the places in a file where an undamaged chunk begins.

    Attributes:
      limit: bytes that it may look at, in all calls together.
      exhausted: whether it had to stop there.
    """

    def __init__(self, blob: bytes, head: chunks.Head, limit: int):
        """Prepares.

        Args:
          blob: the file.
          head: its header, which is part of every checksum.
          limit: bytes that it may look at.
        """
        self._blob, self._head, self._left = blob, head, limit
        self.limit = limit
        self.exhausted = False

    def next_chunk(self, damaged: int, *, named: bool) -> int:
        """Where the first undamaged stream chunk behind a damaged chunk begins.

        Args:
          damaged: where the damaged one begins.
          named: whether it is that of a stream; metadata have no header but their length.

        Returns:
          The position, the end of the file if there is none or the limit was reached.
        """
        places = range(damaged + 1, len(self._blob))
        for start in itertools.chain(self._announced(damaged, named), places):
            end = self._end(start, named=True)
            self._left -= _START
            if end is None:
                continue
            self._left -= end[1] - end[0]
            if self._left < 0:
                self.exhausted = True
                break
            if self._whole(start, *end):
                return start
        return len(self._blob)

    def _announced(self, start: int, named: bool) -> list[int]:
        """Where a chunk ends if its own header is right."""
        end = self._end(start, named)
        return [] if end is None else [end[1]]

    def _end(self, start: int, named: bool) -> tuple[int, int] | None:
        """(begin, end) of the body of a chunk here, None if there cannot be one."""
        try:
            position = chunks.read_stream_header(self._blob, start)[-1] if named else start
            size, position = read_varint(self._blob, position)
        except BitstreamError:
            return None
        begin = position + 4
        return (begin, begin + size) if begin + size <= len(self._blob) else None

    def _whole(self, start: int, begin: int, end: int) -> bool:
        blob, head = self._blob, self._head.data
        (stored,) = struct.unpack_from("<I", blob, begin - 4)
        return stored == chunks.checksum(head, blob[start : begin - 4], blob[begin:end])
