"""Integer tables for the entropy coder: computed once from a trained density, then plain data.

A table belongs to one latent channel. Its entries are the symbols offset .. offset + length - 1
(a symbol is round(y - median)) and, last, an escape that announces a symbol outside that range.
Encoder and decoder must use the same integers, so tables are saved with the checkpoint and every
stream carries their digest: floating point never decides how a stream is decoded.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jaxcomp.codecs.frequencies import per_channel, quantise_pmf, weights
from jaxcomp.errors import (
    CorruptStreamError,
    ProbabilityError,
    TruncatedStreamError,
    VersionError,
)

__all__ = [
    "CdfTables",
    "TableSet",
    "build_tables",
    "derived",
    "quantise_pmf",
    "table_set",
    "tables_from_pmfs",
]

if TYPE_CHECKING:
    from jaxcomp.codecs.factorised import FactorisedCodec

MAX_PRECISION = 16
# Fewer bits round the frequencies more, more bits leave the coder's state less headroom. On
# Laplacian channels the sum of both losses is least (0.05-0.2 %) at 14 and 15 bits.
DEFAULT_PRECISION = 15
MAX_LENGTH = 4096
_MAGIC, _VERSION = b"JXT", 1
# Checked before anything is allocated.
MAX_ENTRIES, MAX_CHANNELS = 1 << 23, 1 << 14
_HEADER = struct.Struct("<3sBBII")  # magic, version, precision, channels, columns


_ARRAYS = ("median", "offset", "length", "cdf")
_T = TypeVar("_T")
_SET_MAGIC = b"JXS"


def derived(function: Callable[[CdfTables], _T]) -> Callable[[CdfTables], _T]:
    """What a coder computes from tables: once, and kept as long as they are."""

    @functools.wraps(function)
    def kept(tables: CdfTables) -> _T:
        name = f"{function.__module__}.{function.__qualname__}"
        if name not in vars(tables):
            vars(tables)[name] = function(tables)
        return vars(tables)[name]

    return kept


@dataclasses.dataclass(frozen=True, eq=False)
class CdfTables:
    """Cumulative frequencies of every channel.

    The arrays are copied and cannot be written to: coders keep what they derive from them.

    Attributes:
      precision: the frequencies of a channel sum to 2^precision; 1 to 16.
      median: [M] float32, the centre of each channel's rounding grid.
      offset: [M] int32, the smallest symbol in the table.
      length: [M] int32, symbols in the table, the escape not counted.
      cdf: [M, L + 2] uint32 with L = max(length): cdf[m, 0] = 0, strictly increasing up to
        cdf[m, length[m] + 1] = 2^precision, and that value from there on. Symbol number k (the
        escape is number length[m]) has the frequency cdf[m, k + 1] - cdf[m, k] >= 1.
    """

    precision: int
    median: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    cdf: np.ndarray

    def __post_init__(self):
        for name in _ARRAYS:
            object.__setattr__(self, name, _fixed(getattr(self, name), copy=True))
        _check(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            kept = _fixed(value, copy=False) if name in _ARRAYS else value
            object.__setattr__(self, name, kept)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles leave out what coders derived, arrays on devices among it.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def channels(self) -> int:
        """M."""
        return len(self.offset)

    @functools.cached_property
    def digest(self) -> int:
        """64-bit identity: the first 8 bytes of the SHA-256 of the serialised tables."""
        return int.from_bytes(hashlib.sha256(self.to_bytes()).digest()[:8], "little")

    def to_bytes(self) -> bytes:
        """Serialises: header, median, offset, length, then each row up to its own end."""
        head = _HEADER.pack(_MAGIC, _VERSION, self.precision, self.channels, self.cdf.shape[1])
        rows = [self.cdf[m, 1 : n + 1].astype("<u2") for m, n in enumerate(self.length)]
        columns = (self.median.astype("<f4"), self.offset.astype("<i4"), self.length.astype("<i4"))
        return head + b"".join(a.tobytes() for a in (*columns, *rows))

    @classmethod
    def from_bytes(cls, data: bytes) -> CdfTables:
        """Reads what `to_bytes` wrote.

        Raises:
          VersionError: the data are not tables, or of another version.
          TruncatedStreamError: the data end early.
          CorruptStreamError: the numbers are not valid tables, or bytes follow them.
        """
        if len(data) < _HEADER.size:
            raise TruncatedStreamError(f"tables: {len(data)} bytes are less than a header")
        magic, version, precision, channels, columns = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != _VERSION:
            raise VersionError(
                f"tables: magic {magic!r} version {version}; expected {_MAGIC!r} {_VERSION}"
            )
        sizes_ok = 1 <= channels <= MAX_CHANNELS and channels * columns <= MAX_ENTRIES
        if not 1 <= precision <= MAX_PRECISION or not sizes_ok:
            raise CorruptStreamError(
                f"tables: precision {precision}, {channels} channels, {columns} columns are not a "
                "codec's"
            )
        if len(data) < _HEADER.size + 12 * channels:
            raise TruncatedStreamError(f"tables: {len(data)} bytes for {channels} channels")
        fields = np.frombuffer(data, "<u4", 3 * channels, _HEADER.size).reshape(3, channels)
        length = fields[2].astype(np.int32)
        if (length < 1).any() or length.max(initial=1) + 2 != columns or columns > 1 << 17:
            raise CorruptStreamError("tables: the lengths contradict the header")
        start = _HEADER.size + 12 * channels
        if len(data) != start + 2 * int(length.sum(dtype=np.int64)):
            wrong = (
                TruncatedStreamError if len(data) < start + 2 * length.sum() else CorruptStreamError
            )
            raise wrong(f"tables: {len(data)} bytes do not fit the lengths in the header")
        cdf = np.full((channels, columns), 1 << precision, np.uint32)
        cdf[:, 0] = 0
        flat = np.frombuffer(data, "<u2", offset=start)
        for m, part in enumerate(np.split(flat, np.cumsum(length)[:-1])):
            cdf[m, 1 : len(part) + 1] = part
        median, offset = fields[0].view("<f4").astype(np.float32), fields[1].view("<i4")
        return cls(precision, median, offset.astype(np.int32), length, cdf)


@dataclasses.dataclass(frozen=True, eq=False)
class TableSet:
    """Tables of a file whose streams were coded by different models.

    Attributes:
      tables: those of each stream, by its name; the order of the names matters.
    """

    tables: Mapping[str, CdfTables]

    @property
    def channels(self) -> int:
        """The largest M: what a reader takes to bound the symbols that a file announces."""
        return max(tables.channels for tables in self.tables.values())

    @functools.cached_property
    def digest(self) -> int:
        """64-bit identity: the first 8 bytes of a SHA-256 over names and digests in order."""
        sha = hashlib.sha256(_SET_MAGIC)
        for name, tables in self.tables.items():
            encoded = name.encode()
            sha.update(struct.pack("<BQ", len(encoded), tables.digest) + encoded)
        return int.from_bytes(sha.digest()[:8], "little")


def table_set(tables: Mapping[str, CdfTables]) -> CdfTables | TableSet:
    """What decodes a file whose streams have these tables: the one, if all are the same."""
    first, *others = tables.values()
    same = all(other.digest == first.digest for other in others)
    return first if same else TableSet(tables)


def build_tables(
    codec: FactorisedCodec,
    variables: Mapping[str, Any],
    *,
    precision: int = DEFAULT_PRECISION,
    tail: float = 2.0**-20,
    max_length: int = MAX_LENGTH,
) -> CdfTables:
    """Turns the trained density of a codec into integer tables.

    The range of a channel runs between the quantiles at `tail` and 1 - `tail` (a symbol rarer than
    that costs less as an escape than by the share of the table it would take away), and at most
    `max_length` symbols around the median. The grid is centred on the median in
    `stats/prior/quantiles`, the one that evaluation rounds around; see
    `factorised.refresh_quantiles`.

    Args:
      codec: the codec (its number of channels).
      variables: its variables.
      precision: bits of the frequencies, at most 16.
      tail: probability left to the escape on each side.
      max_length: longest table.

    Returns:
      The tables; the same variables give the same tables on one machine, but coding relies on the
      stored integers alone.
    """
    import jax

    from jaxcomp.codecs import entropy

    density = variables["params"]["prior"]
    median = np.asarray(variables["stats"]["prior"]["quantiles"], np.float32)[:, 0, 1]
    ends = np.asarray(entropy.quantiles(density, tail), np.float64)
    centre = np.round(ends[:, 1] - median)
    half = (max_length - 1) // 2
    low = np.maximum(np.floor(ends[:, 0] - median), centre - half).astype(np.int64)
    high = np.minimum(np.ceil(ends[:, 2] - median), centre + half).astype(np.int64)
    length = (high - low + 1).astype(np.int32)
    grid = low[None] + np.arange(length.max())[:, None] + median[None]  # [L, M]
    pmf = np.asarray(jax.jit(entropy.probability)(density, grid.astype(np.float32)), np.float64).T
    rows = [pmf[m, :n] for m, n in enumerate(length)]
    if len(rows) != codec.n_channels:
        raise ProbabilityError(
            f"the variables have {len(rows)} channels, the codec {codec.n_channels}"
        )
    escape = [max(0.0, 1.0 - row.sum()) for row in rows]
    return tables_from_pmfs(rows, offset=low, median=median, escape=escape, precision=precision)


def tables_from_pmfs(
    pmfs: Sequence[Any],
    *,
    offset: Any = 0,
    median: Any = 0.0,
    escape: Any = 0.0,
    precision: int = DEFAULT_PRECISION,
) -> CdfTables:
    """Tables from one probability vector per channel, of any entropy model.

    Categorical symbols 0 .. n - 1 (the indices of a codebook) need nothing but their probabilities
    or counts: `tables_from_pmfs([p])` for one channel.

    Args:
      pmfs: M vectors of at least 1 non-negative number; with the escape's they are normalised here.
      offset: the smallest symbol of each channel, [M] or one for all.
      median: the centre of the rounding grid, [M] or one for all.
      escape: the weight of all symbols outside the table, [M] or one for all. It gets the smallest
        frequency, 1 of 2^precision, at least: any 32-bit integer can be coded with any table.
      precision: bits of the frequencies.

    Raises:
      ProbabilityError: a vector is empty, of another rank, not finite, negative, all zero, or too
        long for the precision; an offset is no integer of 32 bits, a median is not finite; or
        there are more or fewer of them than vectors. It is a `ValueError`, too.
    """
    count = len(pmfs)
    if not count:
        raise ProbabilityError("every table needs the probabilities of at least one channel")
    if precision not in range(1, MAX_PRECISION + 1):
        raise ProbabilityError(f"precision={precision!r} is not one of 1 to {MAX_PRECISION} bits")
    outside = per_channel("escape", escape, count, np.float64)
    rows = [np.append(weights(p, m), outside[m]) for m, p in enumerate(pmfs)]
    length = np.asarray([len(row) - 1 for row in rows], np.int32)
    cdf = np.full((count, int(length.max()) + 2), 1 << precision, np.uint32)
    cdf[:, 0] = 0
    for m, row in enumerate(rows):
        cdf[m, 1 : len(row) + 1] = np.cumsum(quantise_pmf(row, precision))
    offsets = per_channel("offset", offset, count, np.int32)
    medians = per_channel("median", median, count, np.float32)
    return CdfTables(precision, medians, offsets, length, cdf)


def _fixed(array: Any, copy: bool) -> np.ndarray:
    out = np.array(array, copy=copy or None)
    out.setflags(write=False)
    return out


def _check(tables: CdfTables) -> None:
    """Raises `CorruptStreamError` unless every invariant in the class's description holds."""
    m, top = len(tables.length), 1 << tables.precision
    shapes_ok = tables.cdf.ndim == 2 and tables.cdf.shape[0] == m == len(tables.offset)
    if not (1 <= tables.precision <= MAX_PRECISION and m and shapes_ok and len(tables.median) == m):
        raise CorruptStreamError("tables: precision or shapes are invalid")
    ends = tables.cdf[np.arange(m), np.minimum(tables.length + 1, tables.cdf.shape[1] - 1)]
    inside = np.arange(tables.cdf.shape[1] - 1)[None] <= tables.length[:, None]
    rising = np.diff(tables.cdf.astype(np.int64), axis=1) > 0
    last = tables.offset.astype(np.int64) + tables.length  # stands for the escape while decoding
    if (last >= 1 << 31).any():
        raise CorruptStreamError("tables: the largest symbol of a channel does not fit 32 bits")
    valid = (tables.length >= 1).all() and (tables.cdf[:, 0] == 0).all() and (ends == top).all()
    if not valid or not (rising == inside).all() or not np.isfinite(tables.median).all():
        raise CorruptStreamError(
            "tables: a cumulative row is not strictly increasing to 2^precision"
        )
