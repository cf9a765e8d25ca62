"""What a trained codec does to one frame: bytes, features again, times of its parts, ideal bits."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import complexity
from jaxcomp.codecs import bitstream
from jaxcomp.codecs.coding import Model, encode_symbols
from jaxcomp.codecs.factorised import FactorisedCodec, latent_shape, parameter_count
from jaxcomp.codecs.pyramid import JOINT, PyramidCoder, join_levels
from jaxcomp.evaluate import anchors_stream
from jaxcomp.jobs.point_frames import Pyramid, timed
from jaxcomp.models.fpn import LEVELS

HEAT_STEP = 4  # pixels of the network's input to a value of the heat map


@dataclasses.dataclass(frozen=True)
class Coded:
    """One frame through a codec.

    Attributes:
      frame_bytes: of its file.
      restored: the levels that it codes, as read back.
      encode_ms: features to bytes.
      decode_ms: bytes to features.
      payload: {stream: bits in the file without the container}; empty where it has none.
      estimated_bits: code length under the model, None for coders without one.
      parts_ms: times of network and entropy coder, as far as they can be told apart.
    """

    frame_bytes: int
    restored: Mapping[str, np.ndarray]
    encode_ms: float
    decode_ms: float
    payload: Mapping[str, int] = dataclasses.field(default_factory=dict)
    estimated_bits: float | None = None
    parts_ms: Mapping[str, float] = dataclasses.field(default_factory=dict)


def stream_maps(coder: PyramidCoder, pyramid: Mapping[str, Any]) -> dict[str, tuple[Model, Any]]:
    """{stream: (its model, its map [1, H, W, C])} of a pyramid."""
    levels = coder.select(pyramid)
    if not coder.joint:
        return {name: (coder.models[name], levels[name]) for name in coder.levels}
    joint = _join([jnp.asarray(x, jnp.float32) for x in levels.values()])
    return {JOINT: (coder.models[JOINT], joint)}


_join = jax.jit(join_levels)


def code_learned(codec: Any, pyramid: Pyramid) -> Coded:
    """A frame through a trained codec; real bytes, decoded again."""
    levels = codec.select(pyramid)
    blob, encode_ms = timed(codec.compress, levels)
    restored, decode_ms = timed(codec.decompress, blob)
    streams = bitstream.read(blob).streams
    _, transform_ms = timed(_integers, codec.coder, levels)
    _, entropy_ms = timed(codec.coder.decode_streams, streams)
    bits = codec.coder.ideal_bits(levels)
    return Coded(
        frame_bytes=len(blob),
        restored={name: np.asarray(x) for name, x in restored.items()},
        encode_ms=encode_ms,
        decode_ms=decode_ms,
        payload={s.name.rstrip("*"): 8 * len(s.payload) for s in streams},
        estimated_bits=float(sum(np.asarray(b, np.float64).sum() for b in bits.values())),
        parts_ms={
            "encode_transform_ms": min(transform_ms, encode_ms),
            "encode_coder_ms": max(encode_ms - transform_ms, 0.0),
            "decode_coder_ms": min(entropy_ms, decode_ms),
            "decode_transform_ms": max(decode_ms - entropy_ms, 0.0),
        },
    )


def _integers(coder: PyramidCoder, levels: Mapping[str, Any]) -> list[Any]:
    return [
        encode_symbols(model.codec, model.variables, model.tables, x, name)
        for name, (model, x) in stream_maps(coder, levels).items()
    ]


def code_features(anchor: Any, pyramid: Pyramid) -> Coded:
    """A frame through a feature anchor."""
    blob, encode_ms = timed(anchor.encode, pyramid)
    restored, decode_ms = timed(anchor.decode, blob)
    _, levels = anchors_stream.read(blob)
    payload = {level.name: 8 * len(level.payload) for level in levels}
    return Coded(len(blob), restored, encode_ms, decode_ms, payload)


def code_image(anchor: Any, image: np.ndarray) -> tuple[Coded, np.ndarray]:
    """(what it cost, the picture again) of an image through an image codec."""
    blob, encode_ms = timed(anchor.encode, image)
    decoded, decode_ms = timed(anchor.decode, blob)
    return Coded(len(blob), {}, encode_ms, decode_ms), decoded


def heat_maps(codec: Any, pyramid: Pyramid, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Ideal bits of each place of the picture, by stream.

    The bits of a latent position, summed over the channels, are spread evenly over the pixels that
    it stands for.

    Args:
      codec: a loaded codec.
      pyramid: of one frame.
      size: (rows, columns) of the network's input.

    Returns:
      {stream: [rows / 4, columns / 4] float32, bits per pixel of the network's input}; the mean of
      a map times the pixels is the stream's code length.
    """
    rows, columns = (math.ceil(n / HEAT_STEP) for n in size)
    maps = {}
    for name, (model, x) in stream_maps(codec.coder, codec.select(pyramid)).items():
        bits = np.asarray(_position_bits(model.codec, model.variables, jnp.asarray(x)))
        # Pixels of the network's input on a side of a latent position; the joint map has the size
        # of the finest level.
        level = name if name in LEVELS else codec.levels[0]
        cell = 4 * 2 ** LEVELS.index(level) * 2**model.codec.stages
        row, column = (np.arange(n) * HEAT_STEP // cell for n in (rows, columns))
        spread = bits[np.minimum(row, len(bits) - 1)][:, np.minimum(column, bits.shape[1] - 1)]
        total = max(float(spread.sum()), 1e-30)
        maps[name] = (spread * (bits.sum() / total * rows * columns / math.prod(size))).astype(
            np.float32
        )
    return maps


@functools.partial(jax.jit, static_argnums=0)
def _position_bits(codec: FactorisedCodec, variables: Any, x: jax.Array) -> jax.Array:
    out: Any = codec.apply(variables, x)
    return out["bits"][0].sum(-1)


def codec_complexity(codec: Any, pyramid: Pyramid, pixels: int) -> dict[str, float]:
    """Parameters, and kMAC per pixel of the image, of a codec's two networks.

    A network that several streams share counts its parameters once and its work for each.
    """
    streams = stream_maps(codec.coder, codec.select(pyramid))
    macs = {"encoder": 0, "decoder": 0}
    for model, x in streams.values():
        macs["encoder"] += _macs(model, "analyse", jax.ShapeDtypeStruct(x.shape, jnp.float32))
        shape = tuple(x.shape[1:3])
        latents = (1, *latent_shape(shape, model.codec.stages), model.codec.n_channels)
        y = jax.ShapeDtypeStruct(latents, jnp.float32)
        macs["decoder"] += _macs(model, "synthesise", y, shape)
    networks = {id(jax.tree.leaves(m.variables["params"])[0]): m for m, _ in streams.values()}
    count = sum(parameter_count(m.variables) for m in networks.values())
    return {
        "parameters": count,
        **{f"{name}_kmac_per_pixel": n / 1e3 / pixels for name, n in macs.items()},
    }


def _macs(model: Model, method: str, x: Any, shape: tuple[int, int] | None = None) -> int:
    def run(variables: Any, value: Any) -> Any:
        more = () if shape is None else (shape,)
        return model.codec.apply(variables, value, *more, method=method)

    return sum(complexity.macs_by_module(run, model.variables, x).values())


def detector_complexity(detector: Any, canvas: tuple[int, int], pixels: int) -> dict[str, Any]:
    """Parameters of the detector, and kMAC per pixel of its head and its tail."""
    image = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((1, 2), jnp.float32)

    features = jax.eval_shape(detector.features, detector.variables, image)
    head = complexity.macs_by_module(detector.features, detector.variables, image)
    tail = complexity.macs_by_module(detector.predictions, detector.variables, features, size)
    params = complexity.parameters_by_module(detector.variables["params"], depth=1)
    return {
        "parameters": sum(params.values()),
        "modules": params,
        "head_kmac_per_pixel": sum(head.values()) / 1e3 / pixels,
        "tail_kmac_per_pixel": sum(tail.values()) / 1e3 / pixels,
    }
