"""Features to bytes and back: the codec's network, the tables and the container put together.

    compress     features ─► analyse ─► round(y - median) ─► rANS ─► .jxc bytes
    decompress   bytes ─► rANS ─► symbols + median ─► synthesise ─► features

The integers survive exactly. The network parts are compiled once per codec and shape.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs import bitstream, rans
from jaxcomp.codecs.factorised import FactorisedCodec, check_features
from jaxcomp.codecs.quantise import symbols
from jaxcomp.codecs.tables import CdfTables
from jaxcomp.errors import BitstreamError, NonFiniteError, ShapeError, TableMismatchError

Variables = Mapping[str, Any]


def compress(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    features: Mapping[str, Any] | Any,
    meta: Mapping[str, Any] | None = None,
) -> bytes:
    """Codes the features of one frame.

    Args:
      codec: the codec.
      variables: its variables.
      tables: of `tables.build_tables`, saved with the variables.
      features: one array [1, H, W, C], or several by name; all pass through the same codec.
      meta: JSON metadata to put into the file.

    Returns:
      The bytes of a `.jxc` file.

    Raises:
      ShapeError: features of another rank, channel count or dtype, or more than one frame.
      NonFiniteError: NaN or infinity in the features.
    """
    named = features if isinstance(features, Mapping) else {"": features}
    streams = []
    for name, x in named.items():
        integers = encode_symbols(codec, variables, tables, x, name)
        if len(integers) != 1:
            raise ShapeError(f"features {name!r} hold {len(integers)} frames; compress takes one")
        streams.append(_stream(codec, tables, integers[0], name, x.shape[1:3]))
    return bitstream.write("factorised", tables.digest, streams, meta)


def compress_batch(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    features: Any,
    name: str = "",
    meta: Mapping[str, Any] | None = None,
) -> list[bytes]:
    """One `.jxc` file per row of [B, H, W, C] features; the network runs once for all rows."""
    shape, digest = features.shape[1:3], tables.digest
    return [
        bitstream.write("factorised", digest, [_stream(codec, tables, row, name, shape)], meta)
        for row in encode_symbols(codec, variables, tables, features, name)
    ]


def decompress(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    blob: bytes,
    *,
    max_symbols: int = bitstream.MAX_SYMBOLS,
) -> jax.Array | dict[str, jax.Array]:
    """Decodes a file of `compress`.

    Returns:
      [1, H, W, C] float32, or a dict of them by name if the streams are named.

    Raises:
      BitstreamError: one of its subclasses says what is wrong with the file.
    """
    (out,) = decompress_batch(codec, variables, tables, [blob], max_symbols=max_symbols)
    return out


def decompress_batch(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    blobs: list[bytes],
    *,
    max_symbols: int = bitstream.MAX_SYMBOLS,
) -> list[jax.Array | dict[str, jax.Array]]:
    """`decompress` of several files; maps of equal shape pass through the network together."""
    options = {"digest": tables.digest, "channels": tables.channels, "max_symbols": max_symbols}
    files = [bitstream.read(blob, **options).streams for blob in blobs]
    groups: dict[tuple[int, int], list[tuple[int, str]]] = {}
    decoded = {}
    for i, streams in enumerate(files):
        for stream in streams:
            decoded[i, stream.name] = decode_symbols(codec, tables, stream)
            groups.setdefault(stream.shape, []).append((i, stream.name))
    maps = {}
    for shape, keys in groups.items():
        y = np.stack([decoded[key] for key in keys])
        x_hat = _synthesise(codec, variables, tables.median, y, shape)
        maps.update({key: x_hat[j : j + 1] for j, key in enumerate(keys)})
    rows = [{s.name: maps[i, s.name] for s in streams} for i, streams in enumerate(files)]
    return [row[""] if list(row) == [""] else row for row in rows]


def encode_symbols(
    codec: FactorisedCodec, variables: Variables, tables: CdfTables, x: Any, name: str = ""
) -> np.ndarray:
    """The integers that are coded for [B, H, W, C] features: [B, h, w, M] int32."""
    label = f"features {name!r}" if name else "features"
    check_features(x, codec.in_channels, label)
    _check_tables(codec, tables)
    integers, finite = _analyse(codec, variables, tables.median, x)
    if not finite:
        raise NonFiniteError(f"{label} (or their latents) contain NaN or infinity")
    return np.asarray(integers)


def decode_symbols(
    codec: FactorisedCodec, tables: CdfTables, stream: bitstream.Stream
) -> np.ndarray:
    """The integers of one stream: [h, w, M] int32."""
    _check_tables(codec, tables)
    if stream.stages != codec.stages:
        raise BitstreamError(
            f"stream {stream.name!r} was coded with {stream.stages} stages, the codec has "
            f"{codec.stages}"
        )
    shape = (*stream.latent_shape, tables.channels)
    flat = rans.decode(stream.payload, int(np.prod(shape)), tables, stream.lanes)
    return flat.reshape(shape)


def _stream(
    codec: FactorisedCodec, tables: CdfTables, row: np.ndarray, name: str, shape: tuple[int, ...]
) -> bitstream.Stream:
    payload, lanes = rans.encode(row, tables)
    return bitstream.Stream(name, (int(shape[0]), int(shape[1])), codec.stages, lanes, payload)


def _check_tables(codec: FactorisedCodec, tables: CdfTables) -> None:
    if tables.channels != codec.n_channels:
        raise TableMismatchError(
            f"the tables have {tables.channels} channels, the codec {codec.n_channels}"
        )


@functools.partial(jax.jit, static_argnums=0)
def _analyse(
    codec: FactorisedCodec, variables: Variables, median: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    y: Any = codec.apply(variables, x, method="analyse")
    return symbols(y, median), jnp.isfinite(x).all() & jnp.isfinite(y).all()


@functools.partial(jax.jit, static_argnums=(0, 4))
def _synthesise(
    codec: FactorisedCodec,
    variables: Variables,
    median: jax.Array,
    integers: jax.Array,
    shape: tuple[int, int],
) -> jax.Array:
    y = integers.astype(jnp.float32) + median.reshape(1, 1, 1, -1)
    x_hat: Any = codec.apply(variables, y, shape, method="synthesise")
    return x_hat
