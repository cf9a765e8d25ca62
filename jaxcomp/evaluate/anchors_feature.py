"""The plainest feature codec: uniform quantisation in a robust range, then a general compressor.

Symbols of one channel stand together, rows after rows; where two fit into a byte they share one,
which saves 2 to 5 % against a byte each. The bytes are a whole file (`anchors_stream`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from jaxcomp.errors import CorruptStreamError
from jaxcomp.evaluate import anchors_stream as stream
from jaxcomp.evaluate.anchors_image import AnchorUnavailable

# Bits of a symbol: percentile that the range reaches to. The fewer the bits, the more a narrow
# range gains in resolution over what it cuts off: these are near the least squared error on
# features of the small detector. With one and two bits the anchors reach down to where codecs
# are, so that the curves have a range in common.
PERCENTILES: Mapping[int, float] = {8: 99.99, 6: 99.9, 4: 99.5, 3: 99.0, 2: 93.0, 1: 80.0}
BITS = tuple(PERCENTILES)
_ZSTD_LEVEL = 19


def zstd_module() -> ModuleType:
    """The package zstandard.

    Raises:
      AnchorUnavailable: it is not installed.
    """
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise AnchorUnavailable(
            "the quantised features need the package zstandard: pip install 'jaxcomp[anchors]'"
        ) from error


def quantise(x: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """Symbols 0 to 2^bits - 1 of values clipped to their range, uint16.

    Args:
      x: [H, W, C] float32.
      low: [1] or [C], the value of symbol 0.
      high: [1] or [C], the value of the last; equal to `low` where a channel is constant.
      bits: 1 to 16.
    """
    last = 2**bits - 1
    width = high.astype(np.float64) - low
    position = (x - low.astype(np.float64)) / np.where(width > 0, width, 1.0)
    return np.rint(last * np.clip(position, 0.0, 1.0)).astype(np.uint16)


def dequantise(symbols: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """[H, W, C] float32 values of symbols; arguments as for `quantise`."""
    width = high.astype(np.float64) - low
    return (low + symbols * (width / (2**bits - 1))).astype(np.float32)


def pack(symbols: np.ndarray, bits: int) -> bytes:
    """Symbols [H, W, C] of up to 8 bits, channel after channel; two a byte where two fit."""
    flat = np.ascontiguousarray(np.moveaxis(symbols, -1, 0), np.uint8).ravel()
    if 2 * bits > 8:
        return flat.tobytes()
    pairs = np.append(flat, np.zeros(flat.size % 2, np.uint8)).reshape(-1, 2)
    return (pairs[:, 0] << bits | pairs[:, 1]).astype(np.uint8).tobytes()


def unpack(data: bytes, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    """Inverse of `pack`, [H, W, C] uint8.

    Raises:
      CorruptStreamError: a symbol has more than `bits` bits.
    """
    height, width, channels = shape
    flat = np.frombuffer(data, np.uint8)
    if 2 * bits <= 8:
        flat = np.stack([flat >> bits, flat & (2**bits - 1)], 1).ravel()[: np.prod(shape)]
    if flat.max() >= 2**bits:
        raise CorruptStreamError(f"symbol {flat.max()} in a map of {bits} bits")
    return np.moveaxis(flat.reshape(channels, height, width), 0, -1)


def packed_size(shape: tuple[int, int, int], bits: int) -> int:
    """Bytes that `pack` gives."""
    values = int(np.prod(shape, dtype=object))
    return values if 2 * bits > 8 else -(-values // 2)


def encode_quantised(features: Mapping[str, Any], bits: int, *, per_channel: bool) -> bytes:
    """The file of a pyramid of one frame, or of one level of it.

    Args:
      features: {"p2": [1, H, W, C], ...}; a part of the pyramid is coded the same way.
      bits: one of `BITS`.
      per_channel: a range for each channel; two bytes a channel more, and finer steps in quiet
        channels.

    Raises:
      ShapeError, NonFiniteError, StreamTooLargeError: see `anchors_stream.check_pyramid`.
      ValueError: other bits.
      AnchorUnavailable: zstandard is not installed.
    """
    if bits not in BITS:
        raise ValueError(f"{bits} bits; there are {', '.join(map(str, BITS))}")
    compressor = zstd_module().ZstdCompressor(level=_ZSTD_LEVEL)
    levels = []
    for name, x in stream.check_pyramid(features).items():
        low, high = stream.find_ranges(x, PERCENTILES[bits], per_channel=per_channel)
        payload = compressor.compress(pack(quantise(x, low, high, bits), bits))
        levels.append(stream.Level(name, x.shape, bits, low, high, payload))
    return stream.write("zstd", levels, per_channel=per_channel)


def decode_quantised(blob: bytes, *, max_values: int = stream.MAX_VALUES) -> dict[str, np.ndarray]:
    """{level: [1, H, W, C] float32} of a file of `encode_quantised`.

    Raises:
      BitstreamError: damaged, cut short, of another method, or larger than `max_values`.
      AnchorUnavailable: zstandard is not installed.
    """
    return {
        level.name: dequantise(symbols, level.low, level.high, level.parameter)[None]
        for level, symbols in decode_symbols(blob, max_values=max_values)
    }


def decode_symbols(
    blob: bytes, *, max_values: int = stream.MAX_VALUES
) -> list[tuple[stream.Level, np.ndarray]]:
    """The levels of a file, each with its symbols [H, W, C] uint8; raises as `decode_quantised`."""
    method, levels = stream.read(blob, max_values)
    if method != "zstd":
        raise CorruptStreamError(f"a file of method {method}; this decoder is for zstd")
    return [(level, _symbols(level)) for level in levels]


def _symbols(level: stream.Level) -> np.ndarray:
    zstandard, bits = zstd_module(), level.parameter
    if not 1 <= bits <= 8:
        raise CorruptStreamError(f"level {level.name!r} has symbols of {bits} bits")
    wanted = packed_size(level.shape, bits)
    try:
        # The frame says how much it unpacks to: looked at before anything of that size is made.
        announced = zstandard.frame_content_size(level.payload)
        if announced != wanted:
            raise CorruptStreamError(
                f"level {level.name!r} unpacks to {announced} bytes instead of {wanted}"
            )
        data = zstandard.ZstdDecompressor().decompress(level.payload)
    except zstandard.ZstdError as error:
        raise CorruptStreamError(f"level {level.name!r} cannot be unpacked: {error}") from error
    if len(data) != wanted:
        raise CorruptStreamError(f"level {level.name!r} ends after {len(data)} of {wanted} bytes")
    return unpack(data, level.shape, bits)
