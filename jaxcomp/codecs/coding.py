"""Features to bytes and back: the codec's network, the tables and the container put together.

    compress     features ─► analyse ─► round(y - median) ─► rANS ─► .jxc bytes
    decompress   bytes ─► rANS ─► symbols + median ─► synthesise ─► features

The integers survive exactly. The network parts are compiled once per codec and shape.

`compress` and `decompress` take one model, through which all maps of a file pass. Their `_with`
forms also take several by name: each stream of a file then has a model of its own.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs import bitstream, rans
from jaxcomp.codecs.factorised import FactorisedCodec, check_features
from jaxcomp.codecs.quantise import symbols
from jaxcomp.codecs.tables import CdfTables, TableSet, table_set
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
_MODELS = 16  # of the same tables, whose identities are kept


class Model(NamedTuple):
    """What codes one stream: the network, its variables and the tables made of them."""

    codec: FactorisedCodec
    variables: Variables
    tables: CdfTables


Models = Model | Mapping[str, Model]  # one for every stream, or one for each by its name


def tables_of(models: Models) -> CdfTables | TableSet:
    """The tables of the streams in a file of these models."""
    if isinstance(models, Model):
        return models.tables
    return table_set({name: model.tables for name, model in models.items()})


def identity_of(models: Models) -> int:
    """64-bit name of all that turns a file into features; every file carries it.

    The first 8 bytes of a SHA-256 over the tables' digest and the decoder's arrays (all but those
    of the analysis transform and of the prior, which the tables stand for), or over names and such
    numbers where streams have models of their own. Another network with the same tables would
    decode a file without a word, to something else.
    """
    if isinstance(models, Model):
        return _model_identity(models)
    numbers = {name: _model_identity(model) for name, model in models.items()}
    if len(set(numbers.values())) == 1:
        return next(iter(numbers.values()))
    sha = hashlib.sha256()
    for name, number in numbers.items():
        sha.update(struct.pack("<QI", number, len(name.encode())) + name.encode())
    return int.from_bytes(sha.digest()[:8], "little")


def _model_identity(model: Model) -> int:
    # Kept with the tables and only for these very variables: hashing takes milliseconds.
    known = vars(model.tables).setdefault("_identities", [])
    for variables, number in known:
        if variables is model.variables:
            return number
    sha = hashlib.sha256(struct.pack("<Q", model.tables.digest))
    for path, leaf in jax.tree_util.tree_flatten_with_path(model.variables)[0]:
        names = [str(getattr(key, "key", key)) for key in path]
        if not {"analysis", "prior"} & set(names):
            array = np.ascontiguousarray(np.asarray(leaf, np.float32))
            sha.update("/".join(names).encode() + str(array.shape).encode() + array.tobytes())
    number = int.from_bytes(sha.digest()[:8], "little")
    known.append((model.variables, number))
    del known[:-_MODELS]
    return number


def digests_of(models: Models) -> tuple[int, int]:
    """What files of these models may carry: their identity; before it, the tables' digest."""
    return identity_of(models), tables_of(models).digest


def _model(models: Models, name: str) -> Model:
    if isinstance(models, Model):
        return models
    if name not in models:
        held = repr(name) if name else "an unnamed level"
        needed = " ".join(map(repr, models))
        raise TableMismatchError(f"the stream holds {held}, this codec is for {needed}")
    return models[name]


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
    return compress_with(Model(codec, variables, tables), features, meta, backend=backend)


def compress_with(
    models: Models,
    features: Mapping[str, Any] | Any,
    meta: Mapping[str, Any] | None = None,
    *,
    backend: str = "numba",
) -> bytes:
    """`compress` by one model or by one for each map, arguments otherwise the same."""
    named = features if isinstance(features, Mapping) else {"": features}
    (blob,) = _compress(models, named, meta, backend, most=1)
    return blob


def _compress(
    models: Models,
    named: Mapping[str, Any],
    meta: Mapping[str, Any] | None,
    backend: str,
    most: int | None = None,
) -> list[bytes]:
    """One file for each frame of maps [B, H, W, C]; the coder runs once for all of them."""
    rows, counts = [], set()
    for name, x in named.items():
        integers = encode_symbols(*_model(models, name), x, name)
        if most is not None and len(integers) != most:
            raise ShapeError(f"features {name!r} hold {len(integers)} frames; compress takes one")
        counts.add(len(integers))
        rows += [(name, x.shape[1:3], row) for row in integers]
    if len(counts) != 1:
        raise ShapeError(f"the maps hold {sorted(counts)} frames; give the same number in each")
    (frames,) = counts
    streams, digest = _streams(models, rows, backend), identity_of(models)
    files = [streams[i::frames] for i in range(frames)]
    return [bitstream.write("factorised", digest, file, meta) for file in files]


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
    models = Model(codec, variables, tables)
    return compress_batch_with(models, {name: features}, meta, backend=backend)


def compress_batch_with(
    models: Models,
    features: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
    *,
    backend: str = "numba",
) -> list[bytes]:
    """`compress_batch` of several maps, by one model or by one for each map."""
    return _compress(models, features, meta, backend)


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
    limits: dict[str, Any] = {
        "max_symbols": max_symbols,
        "max_values": max_values,
        "backend": backend,
    }
    (out,) = decompress_batch(codec, variables, tables, [blob], **limits)
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
    return decompress_batch_with(
        Model(codec, variables, tables),
        blobs,
        max_symbols=max_symbols,
        max_values=max_values,
        backend=backend,
    )


def decompress_batch_with(
    models: Models,
    blobs: Sequence[bytes],
    *,
    max_symbols: int = bitstream.MAX_SYMBOLS,
    max_values: int = MAX_VALUES,
    backend: str = "numba",
) -> list[jax.Array | dict[str, jax.Array]]:
    """`decompress_batch` by one model or by one for each stream."""
    files = [bitstream.read(blob, **_options(models, max_symbols)).streams for blob in blobs]
    for file in files:
        for _, error in _too_large(models, file, max_values):
            raise error
    streams = [stream for file in files for stream in file]
    integers = decode_streams_with(models, streams, backend=backend)
    for decoded in integers:
        if isinstance(decoded, BitstreamError):
            raise decoded
    maps = iter(_features(models, streams, integers))
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
    limits: dict[str, Any] = {
        "max_symbols": max_symbols,
        "max_values": max_values,
        "backend": backend,
    }
    return decompress_partial_with(Model(codec, variables, tables), blob, **limits)


def decompress_partial_with(
    models: Models,
    blob: bytes,
    *,
    max_symbols: int = bitstream.MAX_SYMBOLS,
    max_values: int = MAX_VALUES,
    backend: str = "numba",
) -> tuple[dict[str, jax.Array], list[BitstreamError]]:
    """`decompress_partial` by one model or by one for each stream."""
    container, errors = bitstream.salvage(blob, **_options(models, max_symbols))
    refused = dict(_too_large(models, container.streams, max_values))
    errors += refused.values()
    kept = [stream for i, stream in enumerate(container.streams) if i not in refused]
    integers = decode_streams_with(models, kept, backend=backend)
    good = [i for i, decoded in enumerate(integers) if not isinstance(decoded, BitstreamError)]
    errors += [decoded for decoded in integers if isinstance(decoded, BitstreamError)]
    streams = [kept[i] for i in good]
    maps = _features(models, streams, [integers[i] for i in good])
    return {stream.name: x for stream, x in zip(streams, maps, strict=True)}, errors


def _options(models: Models, max_symbols: int) -> dict[str, Any]:
    """What a reader of files of these models must know."""
    channels = tables_of(models).channels
    return {"digest": digests_of(models), "channels": channels, "max_symbols": max_symbols}


def encode_symbols(
    codec: FactorisedCodec, variables: Variables, tables: CdfTables, x: Any, name: str = ""
) -> np.ndarray:
    """The integers that are coded for [B, H, W, C] features: [B, h, w, M] int32."""
    label = f"features {name!r}" if name else "features"
    check_features(x, codec.in_channels, label)
    _check_tables(Model(codec, variables, tables))
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
    return decode_streams_with(Model(codec, {}, tables), streams, backend=backend)


def decode_streams_with(
    models: Models, streams: Sequence[bitstream.Stream], *, backend: str = "numba"
) -> list[np.ndarray | BitstreamError]:
    """`decode_streams` by one model or by one for each stream; their variables are not used."""
    decoded: list[Any] = [None] * len(streams)
    for tables, members in _by_tables(models, [stream.name for stream in streams]):
        chosen = [streams[i] for i in members]
        shapes = [(*stream.latent_shape, tables.channels) for stream in chosen]
        found = rans.decode_each(
            [stream.payload for stream in chosen],
            [math.prod(shape) for shape in shapes],
            tables,
            [stream.lanes for stream in chosen],
            backend=backend,
        )
        for i, stream, shape, integers in zip(members, chosen, shapes, found, strict=True):
            decoded[i] = _decoded(_model(models, stream.name).codec, stream, shape, integers)
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


def _by_tables(models: Models, names: Sequence[str]) -> list[tuple[CdfTables, list[int]]]:
    """(tables, which of the names have them): a group passes through the coder in one call."""
    groups: dict[int, tuple[CdfTables, list[int]]] = {}
    if isinstance(models, Model):
        _check_tables(models)
    for i, name in enumerate(names):
        model = _model(models, name)
        _check_tables(model)
        groups.setdefault(model.tables.digest, (model.tables, []))[1].append(i)
    return list(groups.values())


def _too_large(
    models: Models, streams: Sequence[bitstream.Stream], max_values: int
) -> Iterator[tuple[int, BitstreamError]]:
    """(index, error) of the streams whose maps, with those before them, exceed the limit."""
    total = 0
    for i, stream in enumerate(streams):
        channels = _model(models, stream.name).codec.in_channels
        size = stream.shape[0] * stream.shape[1] * channels
        if total + size <= max_values:
            total += size
            continue
        shape = "x".join(map(str, (*stream.shape, channels)))
        yield (
            i,
            StreamTooLargeError(
                f"stream {stream.name!r} announces features {shape}, with those before more than "
                f"the limit of {max_values} values; raise max_values if the file is trusted"
            ),
        )


def _streams(
    models: Models, rows: Sequence[tuple[str, tuple[int, ...], np.ndarray]], backend: str
) -> list[bitstream.Stream]:
    """Codes rows of (name, shape [H, W] of the features, symbols [h, w, M])."""
    streams: list[Any] = [None] * len(rows)
    for tables, members in _by_tables(models, [name for name, _, _ in rows]):
        coded = rans.encode_batch([rows[i][2] for i in members], tables, backend=backend)
        for i, (payload, lanes) in zip(members, coded, strict=True):
            name, shape, _ = rows[i]
            size = (int(shape[0]), int(shape[1]))
            stages = _model(models, name).codec.stages
            streams[i] = bitstream.Stream(name, size, stages, lanes, payload)
    return streams


def _features(
    models: Models, streams: Sequence[bitstream.Stream], integers: Sequence[Any]
) -> list[jax.Array]:
    """[1, H, W, C] of every stream; maps of one model and shape pass the network together."""
    groups: dict[Any, list[int]] = {}
    for i, stream in enumerate(streams):
        groups.setdefault((id(_model(models, stream.name)), stream.shape), []).append(i)
    maps: list[Any] = [None] * len(streams)
    for (_, shape), members in groups.items():
        codec, variables, tables = _model(models, streams[members[0]].name)
        y = np.stack([integers[i] for i in members])
        x_hat = _synthesise(codec, variables, tables.median, y, shape)
        for j, i in enumerate(members):
            maps[i] = x_hat[j : j + 1]
    return maps


def _check_tables(model: Model) -> None:
    codec, _, tables = model
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
