"""The file of the feature anchors: maps of a pyramid with their ranges, and nothing outside it.

    file  = "JXA" version | method | count | level ... | CRC-32 (4)
    level = name length | name | H | W | C | parameter | ranges | payload length | payload

Numbers are varints (docs/bitstream.md). `method` says what the payloads are; its bit 7 is set where
every channel has a range of its own (scale as float32, then two bytes a channel), clear where the
level has one (two float32). A file of several levels is as long as the files of each alone, less
the 10 bytes around each.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.codecs.rans import read_varint, write_varint
from jaxcomp.errors import (
    CorruptStreamError,
    NonFiniteError,
    ShapeError,
    StreamTooLargeError,
    TruncatedStreamError,
    VersionError,
)

MAGIC = b"JXA\x01"
AROUND = len(MAGIC) + 2 + 4  # bytes of a file that are not of a level
METHODS = {"zstd": 0, "hevc": 1, "vvc": 2}
MAX_VALUES = 1 << 26  # of all levels together, checked before anything is allocated: 256 MB decoded
_CHANNEL = 0x80
_ZERO = 127  # the code of 0; others are scale * 2^(-code / 8), bit 7 the sign
_PER_OCTAVE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """One coded feature map.

    Attributes:
      name: feature key, at most 255 bytes of UTF-8.
      shape: (H, W, C).
      parameter: bits of a symbol; of the video methods the number of columns of tiles.
      low: [1] or [C] float32, the value of symbol 0.
      high: [1] or [C] float32, the value of the last symbol.
      payload: of the method.
    """

    name: str
    shape: tuple[int, int, int]
    parameter: int
    low: np.ndarray
    high: np.ndarray
    payload: bytes


def check_pyramid(features: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{level: [H, W, C] float32} of a pyramid of one frame.

    Args:
      features: {"p2": [1, H, W, C], ...}, finite.

    Raises:
      ShapeError: no levels, another rank, several frames, an empty map, or more than 255 levels.
      NonFiniteError: NaN, infinity, or a number beyond float32.
    """
    if not 1 <= len(features) <= 255:
        raise ShapeError(f"{len(features)} feature levels; 1 to 255 are needed")
    if sum(np.size(x) for x in features.values()) > MAX_VALUES:
        raise StreamTooLargeError(f"more than {MAX_VALUES} feature values in a frame")
    maps = {}
    for name, value in features.items():
        value = np.asarray(value)
        if value.ndim != 4 or value.shape[0] != 1 or not value.size:
            raise ShapeError(f"features[{name!r}] has shape {value.shape}; [1, H, W, C] is needed")
        with np.errstate(over="ignore"):
            maps[name] = value[0].astype(np.float32)
        if not np.isfinite(maps[name]).all():
            raise NonFiniteError(f"features[{name!r}] holds NaN or infinity")
    return maps


def find_ranges(
    x: np.ndarray, percentile: float, *, per_channel: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), [1] or [C] float32, as a decoder will read them.

    Args:
      x: [H, W, C] float32.
      percentile: of the values that are not above the range; as many are not below it. One extreme
        value in a corner then does not take the resolution of all others. 100 for all values.
      per_channel: a range for each channel.
    """
    columns = np.moveaxis(x, -1, 0).reshape(x.shape[-1] if per_channel else 1, -1)
    low = np.percentile(columns, 100 - percentile, axis=1, method="lower")
    high = np.percentile(columns, percentile, axis=1, method="higher")
    if not per_channel:
        return low, high
    return _read_ranges(_write_ranges(low, high, True), 0, len(low), True)[:2]


def _write_ranges(low: np.ndarray, high: np.ndarray, per_channel: bool) -> bytes:
    if not per_channel:
        return struct.pack("<2f", low[0], high[0])
    scale = np.float32(max(np.abs(low).max(), np.abs(high).max()))
    codes = np.concatenate([_code_above(-low, scale) ^ 0x80, _code_above(high, scale)])
    return struct.pack("<f", scale) + codes.astype(np.uint8).tobytes()


def _code_above(x: np.ndarray, scale: np.float32) -> np.ndarray:
    """[C] codes of the next number that is not below x, |x| <= scale."""
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = -_PER_OCTAVE * np.log2(np.abs(x.astype(np.float64)) / scale)
    # 1e-4 of a step absorbs rounding, so that a range that was read is written as it was.
    up, down = np.floor(octaves + 1e-4), np.ceil(octaves - 1e-4)
    positive = np.clip(np.nan_to_num(up, posinf=_ZERO), 0, _ZERO - 1)
    negative = 0x80 | np.clip(np.nan_to_num(down, posinf=_ZERO), 0, _ZERO).astype(np.int64)
    codes = np.where(x > 0, positive, negative).astype(np.int64)
    return np.where(x == 0, _ZERO, codes)


def _read_ranges(
    blob: bytes, position: int, channels: int, per_channel: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """(low, high, position behind them)."""
    end = position + (4 + 2 * channels if per_channel else 8)
    if end > len(blob):
        raise TruncatedStreamError("the file ends inside the ranges of a level")
    if not per_channel:
        ends = np.frombuffer(blob[position:end], "<f4").astype(np.float32)
    else:
        scale = np.frombuffer(blob[position : position + 4], "<f4").astype(np.float64)
        codes = np.frombuffer(blob[position + 4 : end], np.uint8).astype(np.int64)
        size = np.where(codes & 0x7F == _ZERO, 0.0, np.exp2(-(codes & 0x7F) / _PER_OCTAVE))
        ends = (np.where(codes & 0x80, -scale, scale) * size).astype(np.float32)
    low, high = np.split(ends, 2)
    if not (np.isfinite(ends).all() and (low <= high).all()):
        raise CorruptStreamError("a level has a range that is not finite or upside down")
    return low, high, end


def write(method: str, levels: Sequence[Level], *, per_channel: bool) -> bytes:
    """Packs coded maps into a file."""
    head = MAGIC + bytes([METHODS[method] | (_CHANNEL if per_channel else 0), len(levels)])
    data = head + b"".join(_write_level(level, per_channel) for level in levels)
    return data + struct.pack("<I", zlib.crc32(data))


def _write_level(level: Level, per_channel: bool) -> bytes:
    name = level.name.encode()
    if len(name) > 255:
        raise ShapeError(f"level name of {len(name)} bytes; 255 at most")
    numbers = b"".join(map(write_varint, (*level.shape, level.parameter)))
    ranges = _write_ranges(level.low, level.high, per_channel)
    size = write_varint(len(level.payload))
    return write_varint(len(name)) + name + numbers + ranges + size + level.payload


def read(blob: bytes, max_values: int = MAX_VALUES) -> tuple[str, list[Level]]:
    """(method, coded maps) of a file.

    Args:
      blob: its bytes.
      max_values: the most feature values that all levels together may announce.

    Raises:
      VersionError: not such a file, or of a method or version that is not known.
      TruncatedStreamError: too short to be one.
      CorruptStreamError: the checksum or a field does not hold.
      StreamTooLargeError: announces more than `max_values`.
    """
    if blob[: len(MAGIC)] != MAGIC:
        raise VersionError(f"the file begins with {blob[:4]!r}; a feature anchor with {MAGIC!r}")
    if len(blob) < AROUND:
        raise TruncatedStreamError(f"{len(blob)} bytes are no feature anchor")
    if zlib.crc32(blob[:-4]) != struct.unpack("<I", blob[-4:])[0]:
        raise CorruptStreamError("the checksum does not hold: the file is damaged or cut short")
    flags, count, body = blob[len(MAGIC)], blob[len(MAGIC) + 1], blob[:-4]
    names = {number: name for name, number in METHODS.items()}
    if flags & ~_CHANNEL not in names:
        raise VersionError(f"method {flags & ~_CHANNEL} of the feature anchor is not known")
    position, levels, values = len(MAGIC) + 2, list[Level](), 0
    for _ in range(count):
        level, position = _read_level(body, position, bool(flags & _CHANNEL), max_values - values)
        if level.name in (other.name for other in levels):
            raise CorruptStreamError(f"level {level.name!r} is in the file twice")
        levels.append(level)
        values += int(np.prod(level.shape, dtype=object))
    if position != len(body) or not levels:
        raise CorruptStreamError(f"{len(body) - position} bytes follow {len(levels)} levels")
    return names[flags & ~_CHANNEL], levels


def _read_level(
    body: bytes, position: int, per_channel: bool, max_values: int
) -> tuple[Level, int]:
    length, position = read_varint(body, position)
    raw, position = _take(body, position, length)
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptStreamError(f"a level has the name {raw!r}") from error
    fields = []
    for _ in range(4):
        number, position = read_varint(body, position)
        fields.append(number)
    height, width, channels, parameter = fields
    if not height * width * channels:
        raise CorruptStreamError(f"level {name!r} announces an empty map")
    if height * width * channels > max_values:
        raise StreamTooLargeError(
            f"level {name!r} announces {height}x{width}x{channels} values, {max_values} are allowed"
        )
    low, high, position = _read_ranges(body, position, channels, per_channel)
    size, position = read_varint(body, position)
    payload, position = _take(body, position, size)
    return Level(name, (height, width, channels), parameter, low, high, payload), position


def _take(body: bytes, position: int, size: int) -> tuple[bytes, int]:
    if position + size > len(body):
        raise TruncatedStreamError(f"the file ends {position + size - len(body)} bytes too early")
    return body[position : position + size], position + size
