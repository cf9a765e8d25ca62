"""Features as a picture: channels side by side in a plane, through a video codec's intra mode.

This is how feature coding began (Choi and Bajic, "Deep feature compression for collaborative object
detection", 2018) and what standards are still compared with. Per level of the pyramid:

    [H, W, C] ── robust range ──► 0..1023 ── tiles ──► 10-bit plane ── one intra frame ──► bytes

The grid is about square, tiles touch and stand in the order of the channels: neither another order
(by mean value) nor tiles aligned to the codec's blocks were smaller at equal error on features of
the small detector. HEVC by x265 through PyAV (extra "anchors"), monochrome, at a constant QP,
decisions by squared error alone: what x265 does for human eyes is switched off. VVC is offered
where PyAV's FFmpeg has libvvenc, which PyAV's own wheels do not have.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np

from jaxcomp.errors import CorruptStreamError, ShapeError
from jaxcomp.evaluate import anchors_stream as stream
from jaxcomp.evaluate.anchors_feature import dequantise, quantise
from jaxcomp.evaluate.anchors_image import AnchorUnavailable

QPS = (22, 27, 32, 37, 42, 47)
ENCODERS: Mapping[str, str] = {"hevc": "libx265", "vvc": "libvvenc"}
PERCENTILE = 99.95
_BITS = 10
_LEAST_SIDE = 16  # x265 refuses smaller pictures
_MOST_SIDE = 16384
_X265 = (
    "qp={qp}:keyint=1:info=0:log-level=none:pools=none:frame-threads=1"
    ":psy-rd=0:psy-rdoq=0:aq-mode=0:rdoq-level=2"
)


def video_module(codec: str, mode: str = "w") -> ModuleType:
    """The package PyAV, if it can write ("w") or read ("r") `codec`.

    Raises:
      AnchorUnavailable: it is not installed, or built without the codec.
    """
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise AnchorUnavailable(
            f"features through {codec} need the package av: pip install 'jaxcomp[anchors]'"
        ) from error
    name = ENCODERS[codec] if mode == "w" else codec
    try:
        av.codec.Codec(name, mode)
    except av.codec.codec.UnknownCodecError as error:
        raise AnchorUnavailable(
            f"the FFmpeg of this PyAV ({av.__version__}) is built without {name}; "
            f"{codec} needs one with it"
        ) from error
    return av


def grid(shape: tuple[int, int, int]) -> tuple[int, int]:
    """(rows, columns) of tiles that make the plane of [H, W, C] about square."""
    height, width, channels = shape
    columns = min(channels, max(1, math.ceil(math.sqrt(channels * height / width))))
    return -(-channels // columns), columns


def plane_size(shape: tuple[int, int, int], columns: int) -> tuple[int, int]:
    """(height, width) of the plane of [H, W, C]: even, for encoders that insist on chroma."""
    height, width, channels = shape
    sides = -(-channels // columns) * height, columns * width
    tall, wide = (max(_LEAST_SIDE, side + side % 2) for side in sides)
    return tall, wide


def tile(symbols: np.ndarray, columns: int) -> np.ndarray:
    """[H, W, C] to a plane of `plane_size`; what is left over is filled.

    Empty places repeat the last channel, borders their neighbours, as both cost next to nothing.
    """
    height, width, channels = symbols.shape
    rows = -(-channels // columns)
    maps = np.moveaxis(symbols, -1, 0)
    maps = np.pad(maps, ((0, rows * columns - channels), (0, 0), (0, 0)), mode="edge")
    by_row = maps.reshape(rows, columns, height, width).swapaxes(1, 2)
    plane = by_row.reshape(rows * height, columns * width)
    sides = plane_size(symbols.shape, columns)
    return np.pad(plane, [(0, a - b) for a, b in zip(sides, plane.shape, strict=True)], mode="edge")


def untile(plane: np.ndarray, shape: tuple[int, int, int], columns: int) -> np.ndarray:
    """Inverse of `tile`, [H, W, C]."""
    height, width, channels = shape
    rows = -(-channels // columns)
    maps = plane[: rows * height, : columns * width].reshape(rows, height, columns, width)
    maps = maps.swapaxes(1, 2).reshape(rows * columns, height, width)[:channels]
    return np.moveaxis(maps, 0, -1)


def encode_video(
    features: Mapping[str, Any], qp: int, *, codec: str = "hevc", per_channel: bool = False
) -> bytes:
    """The file of a pyramid of one frame, or of one level of it.

    Args:
      features: {"p2": [1, H, W, C], ...}; a part of the pyramid is coded the same way.
      qp: quantiser of the video codec, 0 to 51; larger is coarser.
      codec: a key of `ENCODERS`.
      per_channel: a range for each channel, two bytes a channel more.

    Raises:
      ShapeError: see `anchors_stream.check_pyramid`; or a plane is beyond 16384 pixels.
      NonFiniteError, StreamTooLargeError: see there.
      ValueError: another codec or QP.
      AnchorUnavailable: PyAV or its encoder is missing.
    """
    if codec not in ENCODERS or not 0 <= qp <= 51:
        raise ValueError(f"{codec!r} at QP {qp}; give {', '.join(ENCODERS)} at 0 to 51")
    av = video_module(codec)
    levels = []
    for name, x in stream.check_pyramid(features).items():
        low, high = stream.find_ranges(x, PERCENTILE, per_channel=per_channel)
        columns = grid(x.shape)[1]
        plane = tile(quantise(x, low, high, _BITS), columns)
        if max(plane.shape) > _MOST_SIDE:
            raise ShapeError(f"features[{name!r}] make a plane of {plane.shape}; 16384 at most")
        payload = _encode_plane(av, codec, plane, qp, _pixel_format(av, codec))
        levels.append(stream.Level(name, x.shape, columns, low, high, payload))
    return stream.write(codec, levels, per_channel=per_channel)


def decode_video(blob: bytes, *, max_values: int = stream.MAX_VALUES) -> dict[str, np.ndarray]:
    """{level: [1, H, W, C] float32} of a file of `encode_video`.

    Raises:
      BitstreamError: damaged, cut short, of another method, or larger than `max_values`.
      AnchorUnavailable: PyAV is not installed.
    """
    codec, levels = stream.read(blob, max_values)
    if codec not in ENCODERS:
        raise CorruptStreamError(f"a file of method {codec}; this decoder is for video")
    av = video_module(codec, "r")
    return {level.name: _decode_level(av, codec, level)[None] for level in levels}


def _decode_level(av: ModuleType, codec: str, level: stream.Level) -> np.ndarray:
    columns = level.parameter
    if not 1 <= columns <= level.shape[2]:
        raise CorruptStreamError(f"level {level.name!r} has {columns} columns of tiles")
    wanted = plane_size(level.shape, columns)
    try:
        plane = _decode_plane(av, codec, level.payload, wanted)
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise CorruptStreamError(f"level {level.name!r} cannot be decoded: {error}") from error
    symbols = untile(plane, level.shape, columns)
    return dequantise(symbols, level.low, level.high, _BITS)


def _pixel_format(av: ModuleType, codec: str) -> str:
    """Monochrome where the encoder has it, else 4:2:0, whose even chroma costs next to nothing."""
    formats = {f.name for f in av.codec.Codec(ENCODERS[codec], "w").video_formats or ()}
    return "gray10le" if "gray10le" in formats else "yuv420p10le"


def _encode_plane(
    av: ModuleType, codec: str, plane: np.ndarray, qp: int, pixel_format: str
) -> bytes:
    """One intra frame of [h, w] values below 1024 as the codec's own byte stream."""
    context = av.CodecContext.create(ENCODERS[codec], "w")
    context.pix_fmt = pixel_format
    context.height, context.width = plane.shape
    context.time_base = Fraction(1, 1)
    context.options = (
        {"preset": "medium", "x265-params": _X265.format(qp=qp)}
        if codec == "hevc"
        else {"preset": "medium", "qp": str(qp), "qpa": "0", "period": "intra"}
    )
    frame = av.VideoFrame(context.width, context.height, context.pix_fmt)
    for i, target in enumerate(frame.planes):
        values = np.full((target.height, target.line_size // 2), 1 << (_BITS - 1), "<u2")
        if i == 0:
            values[:, : plane.shape[1]] = plane
        target.update(values)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in (*context.encode(frame), *context.encode(None)))


def _decode_plane(av: ModuleType, codec: str, payload: bytes, shape: tuple[int, int]) -> np.ndarray:
    """[h, w] uint16 of the only frame of a byte stream, which has to have this shape."""
    context = av.CodecContext.create(codec, "r")
    context.thread_count = 1
    # A frame that announces more than its level is refused before it is allocated; codecs count
    # whole blocks, so that a border of one block is allowed.
    most = math.prod((side // 128 + 2) * 128 for side in shape)
    context.options = {"max_pixels": str(most), "err_detect": "explode"}
    frames = [*context.decode(av.Packet(payload)), *context.decode(None)]
    found = [(f.format.name, f.height, f.width) for f in frames]
    if found not in ([("gray10le", *shape)], [("yuv420p10le", *shape)]):
        raise ValueError(f"it holds {found} instead of one 10-bit frame of {shape}")
    plane = frames[0].planes[0]
    return np.frombuffer(plane, "<u2").reshape(plane.height, -1)[:, : shape[1]]
