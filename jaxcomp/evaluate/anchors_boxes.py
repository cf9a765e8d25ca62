"""Local inference: the whole network at the edge, which sends its detections alone.

    file    = "JXB" version | flag | body | CRC-32 (4)
    body    = count | labels | scores | x | y | width | height       flag 0: as it is, 1: zlib
    count, labels, and the scores' steps down: varints; box columns: zigzag varints

Boxes in quarters of a pixel, scores in 255ths, best first. docs/bitstream.md says what a varint
is.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np

from jaxcomp.codecs.rans import read_varint, write_varint
from jaxcomp.errors import CorruptStreamError, NonFiniteError, ShapeError, VersionError

MAGIC = b"JXB\x01"
STEPS_PER_PIXEL = 4
SCORE_STEPS = 255
MAX_DETECTIONS = 1 << 16
_LIMIT = 1 << 28  # of coordinates in quarter pixels: what a varint of 4 bytes with a sign holds


def encode_detections(detections: Mapping[str, np.ndarray]) -> bytes:
    """The detections of one frame.

    Args:
      detections: {"boxes" [D, 4] xyxy pixels, "scores" [D] 0 to 1, "labels" [D] int from 0}, and
        "valid" [D] if rows are padding; each may have a leading axis of one frame, as
        `Detector.detect` returns it.

    Raises:
      ShapeError: arrays do not fit together, more than 65536 of them, a label below 0, a score
        beyond 0 to 1, or a coordinate beyond 2^26 pixels.
      NonFiniteError: NaN or infinity in boxes or scores.
    """
    boxes, scores, labels = _checked(detections)
    order = np.argsort(-scores, kind="stable")
    steps = np.rint(scores[order] * SCORE_STEPS).astype(np.int64)
    edges = np.rint(boxes[order] * STEPS_PER_PIXEL).astype(np.int64)
    edges[:, 2:] -= edges[:, :2]
    falls = -np.diff(steps, prepend=SCORE_STEPS)
    columns = [labels[order], falls, *((edges << 1) ^ (edges >> 63)).T]
    numbers = [len(boxes), *(int(n) for column in columns for n in column)]
    body = b"".join(map(write_varint, numbers))
    packed = zlib.compress(body, 9)
    flag, body = (b"\x01", packed) if len(packed) < len(body) else (b"\x00", body)
    data = MAGIC + flag + body
    return data + struct.pack("<I", zlib.crc32(data))


def _checked(detections: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes [D, 4] float64, scores [D] float64, labels [D] int64), checked, without padding."""
    boxes, scores, labels = (np.asarray(detections[k]) for k in ("boxes", "scores", "labels"))
    valid = np.asarray(detections.get("valid", np.ones(labels.shape, bool)), bool)
    if boxes.ndim == 3 and len(boxes) == 1:
        if not all(x.ndim and len(x) == 1 for x in (scores, labels, valid)):
            raise ShapeError("boxes have an axis of frames that scores, labels or valid lack")
        boxes, scores, labels, valid = boxes[0], scores[0], labels[0], valid[0]
    count = len(boxes) if boxes.ndim == 2 else -1
    if boxes.shape != (count, 4) or any(x.shape != (count,) for x in (scores, labels, valid)):
        raise ShapeError(
            f"boxes {boxes.shape}, scores {scores.shape}, labels {labels.shape}, valid "
            f"{valid.shape}; [D, 4] and [D] of one frame are needed"
        )
    boxes, scores = (x[valid].astype(np.float64) for x in (boxes, scores))
    labels = labels[valid].astype(np.int64)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise NonFiniteError("detections hold NaN or infinity in boxes or scores")
    if len(boxes) > MAX_DETECTIONS or (labels < 0).any() or (labels > MAX_DETECTIONS).any():
        raise ShapeError(f"{len(boxes)} detections; 65536 at most, with labels from 0 to 65536")
    if (np.abs(boxes) * STEPS_PER_PIXEL > _LIMIT).any() or (np.abs(scores - 0.5) > 0.5).any():
        raise ShapeError("a box reaches beyond 2^26 pixels, or a score beyond 0 to 1")
    return boxes, scores, labels


def decode_detections(blob: bytes) -> dict[str, np.ndarray]:
    """{"boxes" [D, 4] float32, "scores" [D] float32, "labels" [D] int32}, best score first.

    Raises:
      VersionError: not such a file.
      CorruptStreamError: damaged or cut short.
    """
    numbers, count = _numbers(_body(blob))
    columns = np.asarray(numbers, np.int64).reshape(6, count)
    coded = columns[2:].T
    edges = (coded >> 1) ^ -(coded & 1)
    edges[:, 2:] += edges[:, :2]
    steps = SCORE_STEPS - np.cumsum(columns[1])
    if (steps < 0).any():
        raise CorruptStreamError("scores of the detections fall below 0")
    return {
        "boxes": (edges / STEPS_PER_PIXEL).astype(np.float32),
        "scores": (steps / SCORE_STEPS).astype(np.float32),
        "labels": columns[0].astype(np.int32),
    }


def _body(blob: bytes) -> bytes:
    if blob[: len(MAGIC)] != MAGIC:
        raise VersionError(f"the file begins with {blob[:4]!r}; detections begin with {MAGIC!r}")
    if len(blob) < len(MAGIC) + 5 or zlib.crc32(blob[:-4]) != struct.unpack("<I", blob[-4:])[0]:
        raise CorruptStreamError("the checksum of the detections does not hold; send them again")
    flag, body = blob[len(MAGIC)], blob[len(MAGIC) + 1 : -4]
    if flag not in (0, 1):
        raise CorruptStreamError(f"flag {flag} of the detections; 0 or 1 is known")
    if flag == 0:
        return body
    try:
        inflate = zlib.decompressobj()
        # No file of ours is larger: 6 numbers of at most 5 bytes a detection, and their count.
        body = inflate.decompress(body, 30 * MAX_DETECTIONS + 5)
    except zlib.error as error:
        raise CorruptStreamError(f"the detections cannot be unpacked: {error}") from error
    if not inflate.eof or inflate.unused_data:
        raise CorruptStreamError("the packed detections do not end where they should")
    return body


def _numbers(body: bytes) -> tuple[list[int], int]:
    count, position = read_varint(body, 0)
    if count > MAX_DETECTIONS or 6 * count > len(body) - position:
        raise CorruptStreamError(f"{count} detections announced in {len(body)} bytes")
    numbers = []
    for _ in range(6 * count):
        number, position = read_varint(body, position)
        numbers.append(number)
    if position != len(body):
        raise CorruptStreamError(f"{len(body) - position} bytes follow the detections")
    return numbers, count
