"""What a coded feature map of a lidar sweep is compared with: other ways to send the sweep.

    points-lzma   points rounded to a step, in file order, differences as byte planes, LZMA
    points-laz    the same points as LAZ (laspy with lazrs)
    points-draco  the same points by Draco, without intensity (DracoPy)
    bev-8bit      the dense canvas, 8 bits a value and a range per channel, zstd (zlib without it)

Whoever gets the points can run the whole network; the last one is what a feature sender does
without any training. `lidar_anchors` tells which are installed.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxcomp.errors import CorruptStreamError, TruncatedStreamError

STEPS = (0.01, 0.02)  # metres
_HEAD = struct.Struct("<If")
_LIMIT = 4_000_000  # points; checked before anything is allocated
_NEEDS = {"points-laz": ("laspy", "lazrs"), "points-draco": ("DracoPy",)}


@dataclasses.dataclass(frozen=True)
class LidarAnchor:
    """One way to send a sweep.

    Attributes:
      name: of the coder and its step.
      sends: "points" (float32 [N, 4]) or "bev" (a canvas [rows, columns, C]).
      encode: that to bytes.
      decode: bytes back; points may come in another order, and lose what the format does not hold.
    """

    name: str
    sends: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]


def lidar_anchors(steps: tuple[float, ...] = STEPS) -> tuple[list[LidarAnchor], dict[str, str]]:
    """The anchors that are installed, and why the others are missing."""
    coders: Mapping[str, tuple[Callable[..., bytes], Callable[[bytes], np.ndarray]]] = {
        "points-lzma": (encode_planes, decode_planes),
        "points-laz": (_encode_laz, _decode_laz),
        "points-draco": (_encode_draco, _decode_draco),
    }
    found, missing = [], {}
    for name, (encode, decode) in coders.items():
        absent = [m for m in _NEEDS.get(name, ()) if importlib.util.find_spec(m) is None]
        if absent:
            missing[name] = f"{' and '.join(absent)} is not installed"
            continue
        for step in steps:
            run = functools.partial(encode, step=step)
            found.append(LidarAnchor(f"{name}-{100 * step:g}cm", "points", run, decode))
    found.append(LidarAnchor("bev-8bit", "bev", encode_canvas, decode_canvas))
    return found, missing


def encode_planes(points: np.ndarray, step: float) -> bytes:
    """Rounded points in their order: differences, zigzag, one plane for each byte, LZMA.

    Args:
      points: float32 [N, 4] x, y, z (metres) and intensity in [0, 1].
      step: metres.
    """
    points = _finite(points)
    grid = np.round(points[:, :3].astype(np.float64) / step).astype(np.int64)
    delta = np.diff(grid, axis=0, prepend=np.zeros((1, 3), np.int64))
    folded = ((delta << 1) ^ (delta >> 63)).astype("<u4")
    planes = folded.T.copy().view(np.uint8).reshape(3, -1, 4).transpose(0, 2, 1)
    shine = np.round(np.clip(points[:, 3], 0, 1) * 255).astype(np.uint8)
    body = planes.tobytes() + shine.tobytes()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
    packed = lzma.compress(body, lzma.FORMAT_RAW, filters=filters)
    return _HEAD.pack(len(points), step) + packed


def decode_planes(blob: bytes) -> np.ndarray:
    """What `encode_planes` coded, float32 [N, 4].

    Raises:
      TruncatedStreamError, CorruptStreamError: the bytes are damaged.
    """
    if len(blob) < _HEAD.size:
        raise TruncatedStreamError(f"{len(blob)} bytes are less than the header of coded points")
    count, step = _HEAD.unpack_from(blob)
    if count > _LIMIT:
        raise CorruptStreamError(f"{count} points; at most {_LIMIT} are decoded")
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
    try:
        machine = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        body = machine.decompress(blob[_HEAD.size :], 13 * count + 1)
    except lzma.LZMAError as error:
        raise CorruptStreamError(f"coded points: {error}") from error
    if len(body) != 13 * count:
        raise CorruptStreamError(f"coded points: {len(body)} bytes for {count} points")
    planes = np.frombuffer(body, np.uint8, 12 * count).reshape(3, 4, count)
    folded = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<u4")[..., 0].astype(np.int64)
    grid = np.cumsum((folded >> 1) ^ -(folded & 1), axis=1).T
    shine = np.frombuffer(body, np.uint8, count, 12 * count)[:, None] / 255
    return np.concatenate([grid * float(step), shine], 1).astype(np.float32)


def _finite(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float32).reshape(-1, 4)
    return points[np.isfinite(points).all(1)]


def _encode_laz(points: np.ndarray, step: float) -> bytes:
    import laspy

    points = _finite(points)
    header = laspy.LasHeader(point_format=0, version="1.2")
    header.scales, header.offsets = np.full(3, step), np.zeros(3)
    las = laspy.LasData(header)
    las.x, las.y, las.z = points[:, :3].astype(np.float64).T
    las.intensity = np.round(np.clip(points[:, 3], 0, 1) * 255).astype(np.uint16)
    out = io.BytesIO()
    las.write(out, do_compress=True)
    return out.getvalue()


def _decode_laz(blob: bytes) -> np.ndarray:
    import laspy

    las = laspy.read(io.BytesIO(blob))
    columns = (las.x, las.y, las.z, np.asarray(las.intensity) / 255)
    return np.stack([np.asarray(c, np.float64) for c in columns], 1).astype(np.float32)


def _encode_draco(points: np.ndarray, step: float) -> bytes:
    import DracoPy

    points = _finite(points)[:, :3].astype(np.float64)
    if not len(points):
        return b""
    reach = float(np.ptp(points, axis=0).max())
    bits = max(1, int(np.ceil(np.log2(max(reach / step, 1) + 1))))
    origin = points.min(0)
    return DracoPy.encode(
        points, quantization_bits=bits, compression_level=10, quantization_range=step * 2**bits,
        quantization_origin=origin,
    )  # fmt: skip


def _decode_draco(blob: bytes) -> np.ndarray:
    """Points without intensity: the mean of KITTI's stands for it."""
    import DracoPy

    if not blob:
        return np.zeros((0, 4), np.float32)
    xyz = np.asarray(DracoPy.decode(blob).points, np.float32).reshape(-1, 3)
    return np.concatenate([xyz, np.full((len(xyz), 1), 0.3, np.float32)], 1)


def encode_canvas(canvas: np.ndarray) -> bytes:
    """A canvas [rows, columns, C] with 8 bits a value between the extremes of its channel."""
    low, high = (np.asarray(f(canvas, axis=(0, 1)), np.float32) for f in (np.min, np.max))
    step = np.where(high > low, (high - low) / 255, 1).astype(np.float32)
    planes = np.round((canvas - low) / step).astype(np.uint8).transpose(2, 0, 1)
    head = struct.pack("<HHH", *canvas.shape) + low.tobytes() + step.tobytes()
    return head + _squeeze(np.ascontiguousarray(planes).tobytes())


def decode_canvas(blob: bytes) -> np.ndarray:
    """What `encode_canvas` coded, float32."""
    if len(blob) < 6:
        raise TruncatedStreamError(f"{len(blob)} bytes are less than the header of a canvas")
    rows, columns, channels = struct.unpack_from("<HHH", blob)
    if len(blob) < 6 + 8 * channels:
        raise TruncatedStreamError("the canvas ends inside its ranges")
    low, step = np.frombuffer(blob, "<f4", 2 * channels, 6).reshape(2, channels)
    body = _unsqueeze(blob[6 + 8 * channels :], rows * columns * channels)
    planes = np.frombuffer(body, np.uint8).reshape(channels, rows, columns)
    return (planes.transpose(1, 2, 0) * step + low).astype(np.float32)


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


def _squeeze(body: bytes) -> bytes:
    module = _zstd()
    if module is None:
        return b"z" + zlib.compress(body, 9)
    return b"s" + module.ZstdCompressor(level=19).compress(body)


def _unsqueeze(blob: bytes, size: int) -> bytes:
    module = _zstd()
    wrong = (zlib.error, module.ZstdError) if module else (zlib.error,)
    try:
        if blob[:1] == b"z":
            body = zlib.decompressobj().decompress(blob[1:], size + 1)
        elif blob[:1] == b"s" and module is not None:
            body = module.ZstdDecompressor().decompress(blob[1:], max_output_size=size)
        else:
            raise CorruptStreamError("the canvas was coded with zstd, which is not installed here")
    except wrong as error:
        raise CorruptStreamError(f"coded canvas: {error}") from error
    if len(body) != size:
        raise CorruptStreamError(f"coded canvas: {len(body)} bytes, {size} are needed")
    return body
