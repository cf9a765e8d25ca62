"""Features to bytes and back: the codec's network, the tables and the container put together.

    compress     features ─► analyse ─► round(y - median) ─► rANS ─► .jxc bytes
    decompress   bytes ─► rANS ─► symbols + median ─► synthesise ─► features

The integers survive exactly (`integers`). The network parts are compiled once per codec and shape.

`compress` and `decompress` take one model, through which all maps of a file pass. Their `_with`
forms also take several by name: each stream of a file then has a model of its own (`identity`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs import bitstream
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.identity import (
    Model,
    Models,
    Variables,
    digests_of,
    identity_of,
    model_of,
    tables_of,
)
from jaxcomp.codecs.integers import (
    decode_streams,
    decode_streams_with,
    decode_symbols,
    encode_streams,
    encode_symbols,
)
from jaxcomp.codecs.limits import MAX_VALUES, Limits, rules_of, too_large
from jaxcomp.codecs.tables import CdfTables
from jaxcomp.errors import BitstreamError, ShapeError

__all__ = [
    "MAX_VALUES",
    "Limits",
    "Model",
    "Models",
    "Variables",
    "compress",
    "compress_batch",
    "compress_batch_with",
    "compress_with",
    "decode_streams",
    "decode_streams_with",
    "decode_symbols",
    "decompress",
    "decompress_batch",
    "decompress_batch_with",
    "decompress_partial",
    "decompress_partial_with",
    "digests_of",
    "encode_symbols",
    "identity_of",
    "tables_of",
]


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
        integers = encode_symbols(*model_of(models, name), x, name)
        if most is not None and len(integers) != most:
            raise ShapeError(f"features {name!r} hold {len(integers)} frames; compress takes one")
        counts.add(len(integers))
        rows += [(name, x.shape[1:3], row) for row in integers]
    if len(counts) != 1:
        raise ShapeError(f"the maps hold {sorted(counts)} frames; give the same number in each")
    (frames,) = counts
    streams, digest = encode_streams(models, rows, backend), identity_of(models)
    files = [streams[i::frames] for i in range(frames)]
    channels = tables_of(models).channels
    return [bitstream.write("factorised", digest, f, meta, channels=channels) for f in files]


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
    **limits: Unpack[Limits],
) -> jax.Array | dict[str, jax.Array]:
    """Decodes a file of `compress`.

    Args:
      codec: the codec.
      variables: its variables.
      tables: those that coded the file.
      blob: its bytes.
      **limits: see `limits.Limits`.

    Returns:
      [1, H, W, C] float32, or a dict of them by name if the streams are named.

    Raises:
      BitstreamError: one of its subclasses says what is wrong with the file.
    """
    (out,) = decompress_batch_with(Model(codec, variables, tables), [blob], **limits)
    return out


def decompress_batch(
    codec: FactorisedCodec,
    variables: Variables,
    tables: CdfTables,
    blobs: Sequence[bytes],
    **limits: Unpack[Limits],
) -> list[jax.Array | dict[str, jax.Array]]:
    """`decompress` of several files; maps of equal shape pass through the network together."""
    return decompress_batch_with(Model(codec, variables, tables), blobs, **limits)


def decompress_batch_with(
    models: Models, blobs: Sequence[bytes], **limits: Unpack[Limits]
) -> list[jax.Array | dict[str, jax.Array]]:
    """`decompress_batch` by one model or by one for each stream; limits hold for each file."""
    rules = rules_of(models, limits)
    files = [bitstream.read(blob, **rules.reading).streams for blob in blobs]
    for file in files:
        for _, error in too_large(models, file, rules):
            raise error
    streams = [stream for file in files for stream in file]
    integers = decode_streams_with(models, streams, **rules.decoding)
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
    **limits: Unpack[Limits],
) -> tuple[dict[str, jax.Array], list[BitstreamError]]:
    """What can be decoded of a damaged file: each map is exact or missing.

    Returns:
      ({name: [1, H, W, C] float32} of the undamaged streams, what was wrong with the others).

    Raises:
      BitstreamError: the header of the file is damaged, or it was coded with other tables.
    """
    return decompress_partial_with(Model(codec, variables, tables), blob, **limits)


def decompress_partial_with(
    models: Models, blob: bytes, **limits: Unpack[Limits]
) -> tuple[dict[str, jax.Array], list[BitstreamError]]:
    """`decompress_partial` by one model or by one for each stream."""
    rules = rules_of(models, limits)
    container, errors = bitstream.salvage(blob, **rules.reading)
    refused = dict(too_large(models, container.streams, rules))
    errors += refused.values()
    kept = [stream for i, stream in enumerate(container.streams) if i not in refused]
    integers = decode_streams_with(models, kept, **rules.decoding)
    good = [i for i, decoded in enumerate(integers) if not isinstance(decoded, BitstreamError)]
    errors += [decoded for decoded in integers if isinstance(decoded, BitstreamError)]
    streams = [kept[i] for i in good]
    maps = _features(models, streams, [integers[i] for i in good])
    return {stream.name: x for stream, x in zip(streams, maps, strict=True)}, errors


def _features(
    models: Models, streams: Sequence[bitstream.Stream], integers: Sequence[Any]
) -> list[jax.Array]:
    """[1, H, W, C] of every stream; maps of one model and shape pass the network together."""
    groups: dict[Any, list[int]] = {}
    for i, stream in enumerate(streams):
        groups.setdefault((id(model_of(models, stream.name)), stream.shape), []).append(i)
    maps: list[Any] = [None] * len(streams)
    for (_, shape), members in groups.items():
        codec, variables, tables = model_of(models, streams[members[0]].name)
        y = np.stack([integers[i] for i in members])
        x_hat = _synthesise(codec, variables, tables.median, y, shape)
        for j, i in enumerate(members):
            maps[i] = x_hat[j : j + 1]
    return maps


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
