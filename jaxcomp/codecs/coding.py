"""Features to bytes and back: the codec's network, the tables and the container put together.

    compress     features ─► analyse ─► round(y - median) ─► rANS ─► .jxc bytes
    decompress   bytes ─► rANS ─► symbols + median ─► synthesise ─► features

The integers survive exactly. The network parts are compiled once per codec and shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs import bitstream, rans
from jaxcomp.codecs.factorised import FactorisedCodec, check_features
from jaxcomp.codecs.quantise import symbols
from jaxcomp.codecs.tables import CdfTables
from jaxcomp.errors import (
    BitstreamError,
    NonFiniteError,
    ShapeError,
    StreamShapeError,
    StreamTooLargeError,
    TableMismatchError,
)

Variables = Mapping[str, Any]

# Features of one file together, 1 GB of float32: a few bytes of stream may announce maps that cost
# nothing to code. P2 to P6 of a 2160x3840 frame with 256 channels have 2/3 of it.
MAX_VALUES = 1 << 28


def compress(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    features: Mapping[str, Any] | Any,
    meta: Mapping[str, Any] | None = None,
    *,
    backend: str = "numba",
) -> bytes:
    """Codes the features of one frame.

    Args:
      codec: the codec.
      variables: its variables.
      tables: of `tables.build_tables`, saved with the variables.
      features: one array [1, H, W, C], or several by name; all pass through the same codec.
      meta: JSON metadata to put into the file.
      backend: who runs the entropy coder, one of `rans.BACKENDS`; the bytes are the same.

    Returns:
      The bytes of a `.jxc` file.

    Raises:
      ShapeError: features of another rank, channel count or dtype, or more than one frame.
      NonFiniteError: NaN or infinity in the features.
    """
    named = features if isinstance(features, Mapping) else {"": features}
    rows = []
    for name, x in named.items():
        integers = encode_symbols(codec, variables, tables, x, name)
        if len(integers) != 1:
            raise ShapeError(f"features {name!r} hold {len(integers)} frames; compress takes one")
        rows.append((name, x.shape[1:3], integers[0]))
    streams = _streams(codec, tables, rows, backend)
    return bitstream.write("factorised", tables.digest, streams, meta)


def compress_batch(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    features: Any,
    name: str = "",
    meta: Mapping[str, Any] | None = None,
    *,
    backend: str = "numba",
) -> list[bytes]:
    """One `.jxc` file per row of [B, H, W, C] features; network and coder run once for all rows."""
    integers = encode_symbols(codec, variables, tables, features, name)
    rows = [(name, features.shape[1:3], row) for row in integers]
    streams = _streams(codec, tables, rows, backend)
    return [bitstream.write("factorised", tables.digest, [stream], meta) for stream in streams]


def decompress(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    blob: bytes,
    *,
    max_symbols: int = bitstream.MAX_SYMBOLS,
    max_values: int = MAX_VALUES,
    backend: str = "numba",
) -> jax.Array | dict[str, jax.Array]:
    """Decodes a file of `compress`.

    Args:
      codec: the codec.
      variables: its variables.
      tables: those that coded the file.
      blob: its bytes.
      max_symbols: the most latents that the file may announce.
      max_values: the most values H W C that its maps may have together.
      backend: who runs the entropy decoder, one of `rans.BACKENDS`.

    Returns:
      [1, H, W, C] float32, or a dict of them by name if the streams are named.

    Raises:
      BitstreamError: one of its subclasses says what is wrong with the file.
    """
    (out,) = decompress_batch(
        codec,
        variables,
        tables,
        [blob],
        max_symbols=max_symbols,
        max_values=max_values,
        backend=backend,
    )
    return out


def decompress_batch(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    blobs: list[bytes],
    *,
    max_symbols: int = bitstream.MAX_SYMBOLS,
    max_values: int = MAX_VALUES,
    backend: str = "numba",
) -> list[jax.Array | dict[str, jax.Array]]:
    """`decompress` of several files; maps of equal shape pass through the network together."""
    options = {"digest": tables.digest, "channels": tables.channels, "max_symbols": max_symbols}
    files = [bitstream.read(blob, **options).streams for blob in blobs]
    for file in files:
        for _, error in _too_large(codec, file, max_values):
            raise error
    streams = [stream for file in files for stream in file]
    integers = decode_streams(codec, tables, streams, backend=backend)
    for decoded in integers:
        if isinstance(decoded, BitstreamError):
            raise decoded
    maps = iter(_features(codec, variables, tables, streams, integers))
    rows = [{stream.name: next(maps) for stream in file} for file in files]
    return [row[""] if list(row) == [""] else row for row in rows]


def decompress_partial(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    blob: bytes,
    *,
    max_symbols: int = bitstream.MAX_SYMBOLS,
    max_values: int = MAX_VALUES,
    backend: str = "numba",
) -> tuple[dict[str, jax.Array], list[BitstreamError]]:
    """What can be decoded of a damaged file: each map is exact or missing.

    Returns:
      ({name: [1, H, W, C] float32} of the undamaged streams, what was wrong with the others).

    Raises:
      BitstreamError: the header of the file is damaged, or it was coded with other tables.
    """
    options = {"digest": tables.digest, "channels": tables.channels, "max_symbols": max_symbols}
    container, errors = bitstream.salvage(blob, **options)
    refused = dict(_too_large(codec, container.streams, max_values))
    errors += refused.values()
    kept = [stream for i, stream in enumerate(container.streams) if i not in refused]
    integers = decode_streams(codec, tables, kept, backend=backend)
    good = [i for i, decoded in enumerate(integers) if not isinstance(decoded, BitstreamError)]
    errors += [decoded for decoded in integers if isinstance(decoded, BitstreamError)]
    streams = [kept[i] for i in good]
    maps = _features(codec, variables, tables, streams, [integers[i] for i in good])
    return {stream.name: x for stream, x in zip(streams, maps, strict=True)}, errors


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
) -> list[np.ndarray | BitstreamError]:
    """The integers of each stream, [h, w, M] int32, or what is wrong with it."""
    _check_tables(codec, tables)
    shapes = [(*stream.latent_shape, tables.channels) for stream in streams]
    decoded: list[Any] = rans.decode_each(
        [stream.payload for stream in streams],
        [math.prod(shape) for shape in shapes],
        tables,
        [stream.lanes for stream in streams],
        backend=backend,
    )
    for i, (stream, shape) in enumerate(zip(streams, shapes, strict=True)):
        if stream.stages != codec.stages:
            decoded[i] = StreamShapeError(
                f"stream {stream.name!r} was coded with {stream.stages} stages, the codec has "
                f"{codec.stages}"
            )
        elif isinstance(decoded[i], BitstreamError):
            decoded[i] = type(decoded[i])(f"stream {stream.name!r}: {decoded[i]}")
        else:
            decoded[i] = decoded[i].reshape(shape)
    return decoded


def _too_large(
    codec: FactorisedCodec, streams: Sequence[bitstream.Stream], max_values: int
) -> Iterator[tuple[int, BitstreamError]]:
    """(index, error) of the streams whose maps, with those before them, exceed the limit."""
    total = 0
    for i, stream in enumerate(streams):
        size = stream.shape[0] * stream.shape[1] * codec.in_channels
        if total + size <= max_values:
            total += size
            continue
        shape = "x".join(map(str, (*stream.shape, codec.in_channels)))
        yield (
            i,
            StreamTooLargeError(
                f"stream {stream.name!r} announces features {shape}, with those before more than "
                f"the limit of {max_values} values; raise max_values if the file is trusted"
            ),
        )


def _streams(
    codec: FactorisedCodec,
    tables: CdfTables,
    rows: Sequence[tuple[str, tuple[int, ...], np.ndarray]],
    backend: str,
) -> list[bitstream.Stream]:
    """Codes rows of (name, shape [H, W] of the features, symbols [h, w, M])."""
    coded = rans.encode_batch([row for _, _, row in rows], tables, backend=backend)
    return [
        bitstream.Stream(name, (int(shape[0]), int(shape[1])), codec.stages, lanes, payload)
        for (name, shape, _), (payload, lanes) in zip(rows, coded, strict=True)
    ]


def _features(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    streams: Sequence[bitstream.Stream],
    integers: Sequence[Any],
) -> list[jax.Array]:
    """[1, H, W, C] of every stream; maps of equal shape pass through the network together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, stream in enumerate(streams):
        groups.setdefault(stream.shape, []).append(i)
    maps: list[Any] = [None] * len(streams)
    for shape, members in groups.items():
        y = np.stack([integers[i] for i in members])
        x_hat = _synthesise(codec, variables, tables.median, y, shape)
        for j, i in enumerate(members):
            maps[i] = x_hat[j : j + 1]
    return maps


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
