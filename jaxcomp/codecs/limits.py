"""How much a file may ask of its decoder, checked before anything is allocated or decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

from jaxcomp.codecs import bitstream, rans
from jaxcomp.codecs.identity import Models, digests_of, model_of, tables_of
from jaxcomp.errors import BitstreamError, StreamTooLargeError

# Features of one file together, 1 GB of float32: a few bytes of stream may announce maps that cost
# nothing to code. P2 to P6 of a 2160x3840 frame with 256 channels have 2/3 of it.
MAX_VALUES = 1 << 28


class Limits(TypedDict, total=False):
    """What every decoder takes: how much a file may ask for, and who decodes.

    Attributes:
      max_symbols: the most latents that a file may announce; None for `bitstream.MAX_SYMBOLS` and
        no more steps of the coder than its `rans.MAX_STEPS`, which are fewer in plain numpy.
      max_values: the most values H W C that its maps may have together, `MAX_VALUES`.
      backend: who runs the entropy decoder, one of `rans.BACKENDS`.
    """

    max_symbols: int | None
    max_values: int
    backend: str


class Rules(NamedTuple):
    """`Limits` with their defaults, sorted by who keeps them."""

    reading: dict[str, Any]  # arguments of `bitstream.read`
    decoding: dict[str, Any]  # of `decode_streams_with`
    max_values: int


def rules_of(models: Models, limits: Limits) -> Rules:
    """The limits for files of these models.

    Raises:
      ValueError: an unknown backend.
    """
    backend = rans.checked_backend(limits.get("backend", "numba"))
    max_symbols = limits.get("max_symbols")
    max_steps = rans.MAX_STEPS[backend] if max_symbols is None else max_symbols
    reading = {
        "kind": "factorised",
        "digest": digests_of(models),
        "channels": tables_of(models).channels,
        "max_symbols": bitstream.MAX_SYMBOLS if max_symbols is None else max_symbols,
    }
    decoding = {"backend": backend, "max_steps": max_steps}
    return Rules(reading, decoding, limits.get("max_values", MAX_VALUES))


def too_large(
    models: Models, streams: Sequence[bitstream.Stream], rules: Rules
) -> Iterator[tuple[int, BitstreamError]]:
    """(index, error) of the streams that, with those before them, exceed a limit."""
    values = steps = 0
    for i, stream in enumerate(streams):
        codec, _, tables = model_of(models, stream.name)
        size = math.prod(stream.shape) * codec.in_channels
        more = rans.steps_of(math.prod(stream.latent_shape) * tables.channels, stream.lanes)
        if values + size > rules.max_values:
            shape = "x".join(map(str, (*stream.shape, codec.in_channels)))
            yield (
                i,
                StreamTooLargeError(
                    f"stream {stream.name!r} announces features {shape}, with those before more "
                    f"than the limit of {rules.max_values} values; raise max_values if the file "
                    "is trusted"
                ),
            )
        elif steps + more > rules.decoding["max_steps"]:
            yield i, rans.too_many_steps(steps + more, **rules.decoding)
        else:
            values, steps = values + size, steps + more
