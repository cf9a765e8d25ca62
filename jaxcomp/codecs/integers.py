"""Features to integers, integers to streams, and back to integers: all of a file that is exact."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs import bitstream, rans
from jaxcomp.codecs.factorised import FactorisedCodec, check_features
from jaxcomp.codecs.identity import (
    Model,
    Models,
    Variables,
    by_tables,
    check_tables,
    model_of,
)
from jaxcomp.codecs.quantise import symbols
from jaxcomp.codecs.tables import CdfTables
from jaxcomp.errors import BitstreamError, NonFiniteError, StreamShapeError


def encode_symbols(
    codec: FactorisedCodec, variables: Variables, tables: CdfTables, x: Any, name: str = ""
) -> np.ndarray:
    """The integers that are coded for [B, H, W, C] features: [B, h, w, M] int32."""
    label = f"features {name!r}" if name else "features"
    check_features(x, codec.in_channels, label)
    check_tables(Model(codec, variables, tables))
    integers, finite = _analyse(codec, variables, tables.median, x)
    if not finite:
        raise NonFiniteError(f"{label} (or their latents) contain NaN or infinity")
    return np.asarray(integers)


def decode_symbols(
    codec: FactorisedCodec, tables: CdfTables, stream: bitstream.Stream, *, backend: str = "numba"
) -> np.ndarray:
    """The integers of one stream: [h, w, M] int32."""
    (out,) = decode_streams(codec, tables, [stream], backend=backend)
    if isinstance(out, BitstreamError):
        raise out
    return out


def decode_streams(
    codec: FactorisedCodec,
    tables: CdfTables,
    streams: Sequence[bitstream.Stream],
    *,
    backend: str = "numba",
    max_steps: int | None = None,
) -> list[np.ndarray | BitstreamError]:
    """The integers of each stream, [h, w, M] int32, or what is wrong with it."""
    models = Model(codec, {}, tables)
    return decode_streams_with(models, streams, backend=backend, max_steps=max_steps)


def decode_streams_with(
    models: Models,
    streams: Sequence[bitstream.Stream],
    *,
    backend: str = "numba",
    max_steps: int | None = None,
) -> list[np.ndarray | BitstreamError]:
    """`decode_streams` by one model or by one for each stream; their variables are not used."""
    decoded: list[Any] = [None] * len(streams)
    for tables, members in by_tables(models, [stream.name for stream in streams]):
        chosen = [streams[i] for i in members]
        shapes = [(*stream.latent_shape, tables.channels) for stream in chosen]
        found = rans.decode_each(
            [stream.payload for stream in chosen],
            [math.prod(shape) for shape in shapes],
            tables,
            [stream.lanes for stream in chosen],
            backend=backend,
            max_steps=max_steps,
        )
        for i, stream, shape, integers in zip(members, chosen, shapes, found, strict=True):
            decoded[i] = _decoded(model_of(models, stream.name).codec, stream, shape, integers)
    return decoded


def _decoded(
    codec: FactorisedCodec, stream: bitstream.Stream, shape: tuple[int, ...], integers: Any
) -> np.ndarray | BitstreamError:
    """What came of one stream, in its shape or worded."""
    if stream.stages != codec.stages:
        return StreamShapeError(
            f"stream {stream.name!r} was coded with {stream.stages} stages, the codec has "
            f"{codec.stages}"
        )
    if isinstance(integers, BitstreamError):
        return type(integers)(f"stream {stream.name!r}: {integers}")
    return integers.reshape(shape)


def encode_streams(
    models: Models, rows: Sequence[tuple[str, tuple[int, ...], np.ndarray]], backend: str
) -> list[bitstream.Stream]:
    """Codes rows of (name, shape [H, W] of the features, symbols [h, w, M])."""
    streams: list[Any] = [None] * len(rows)
    for tables, members in by_tables(models, [name for name, _, _ in rows]):
        coded = rans.encode_batch([rows[i][2] for i in members], tables, backend=backend)
        for i, (payload, lanes) in zip(members, coded, strict=True):
            name, shape, _ = rows[i]
            size = (int(shape[0]), int(shape[1]))
            stages = model_of(models, name).codec.stages
            streams[i] = bitstream.Stream(name, size, stages, lanes, payload)
    return streams


@functools.partial(jax.jit, static_argnums=0)
def _analyse(
    codec: FactorisedCodec, variables: Variables, median: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    y: Any = codec.apply(variables, x, method="analyse")
    return symbols(y, median), jnp.isfinite(x).all() & jnp.isfinite(y).all()
