"""A feature pyramid to bytes and back, whatever its levels share.

    one level      p4 ─► codec ─► stream "p4"
    random         p2 … p6 ─► one codec, features normalised by level ─► streams "p2" … "p6"
    assembled      p2 … p6 ─► a codec for each ─► streams "p2" … "p6"
    joint          p2 … p6 ─► resized to p2, concatenated ─► one codec ─► stream "joint"

The first three are one mechanism: a model for each stream. The joint one adds a treatment before
and after it. Its stream announces the size of P2 alone; the others follow where each level is half
the one before, rounded up. Other sizes stand in the metadata, and the stream is named "joint*".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.codecs import bitstream, coding
from jaxcomp.codecs.coding import MAX_VALUES, Model
from jaxcomp.codecs.factorised import FactorisedCodec, check_features
from jaxcomp.codecs.tables import CdfTables, TableSet
from jaxcomp.errors import BitstreamError, CorruptStreamError, ShapeError
from jaxcomp.ops.resize import resize_bilinear

JOINT, JOINT_SIZED = "joint", "joint*"
SIZES = "level_sizes"  # metadata of a "joint*" stream: [[H, W], ...] in the order of the levels
Size = tuple[int, int]


def pyramid_sizes(finest: Size, count: int) -> list[Size]:
    """(H, W) of `count` levels: each is half the one before, rounded up."""
    return [(-(-finest[0] // 2**i), -(-finest[1] // 2**i)) for i in range(count)]


def join_levels(levels: Sequence[jax.Array]) -> jax.Array:
    """[B, H_l, W_l, C] maps to one [B, H_0, W_0, L C]: all resized to the first, concatenated."""
    size = levels[0].shape[1:3]
    return jnp.concatenate([resize_bilinear(x, *size) for x in levels], -1)


def split_levels(joint: jax.Array, sizes: Sequence[Size]) -> list[jax.Array]:
    """[B, H, W, L C] to L maps [B, H_l, W_l, C]: its parts, resized without smoothing."""
    parts = jnp.split(joint, len(sizes), -1)
    return [resize_bilinear(x, *size) for x, size in zip(parts, sizes, strict=True)]


def level_variables(variables: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The variables of one level of a shared codec.

    Args:
      variables: of a `FactorisedCodec`, but with the statistics of L levels: mean [L, C] and
        scale [L].
      index: the level's place.
    """
    stats = dict(variables["stats"])
    return {**variables, "stats": stats | {k: stats[k][index] for k in ("mean", "scale")}}


def shared_models(
    codec: FactorisedCodec,
    variables: Mapping[str, Any],
    tables: CdfTables,
    levels: Sequence[str],
) -> dict[str, Model]:
    """A model for each level that differ in the statistics alone; see `level_variables`."""
    return {
        level: Model(codec, level_variables(variables, i), tables) for i, level in enumerate(levels)
    }


@dataclasses.dataclass(frozen=True, eq=False)
class PyramidCoder:
    """Features {level: [B, H_l, W_l, C]} to `.jxc` bytes and back.

    Attributes:
      levels: what is coded, finest first.
      models: what codes each stream, by its name: a level, or `JOINT` for the joint treatment.
    """

    levels: tuple[str, ...]
    models: Mapping[str, Model]

    def __post_init__(self) -> None:
        if self.joint:
            object.__setattr__(
                self, "models", {n: self.models[JOINT] for n in (JOINT, JOINT_SIZED)}
            )
        elif tuple(self.models) != self.levels:
            raise ValueError(f"models {tuple(self.models)} are not those of {self.levels}")

    @property
    def joint(self) -> bool:
        """Whether one stream holds all levels."""
        return JOINT in self.models

    @property
    def stream_names(self) -> tuple[str, ...]:
        """The streams of a file. Those of the joint treatment hold either of their two names."""
        return (JOINT,) if self.joint else self.levels

    @functools.cached_property
    def tables(self) -> CdfTables | TableSet:
        """The tables of the streams."""
        return coding.tables_of(self.models)

    @functools.cached_property
    def digests(self) -> tuple[int, int]:
        """What stands in the files: the models' identity; in older ones, the tables' digest."""
        return coding.digests_of(self.models)

    @property
    def channels(self) -> int:
        """C of every level."""
        first = next(iter(self.models.values())).codec.in_channels
        return first // len(self.levels) if self.joint else first

    def select(self, features: Any) -> dict[str, Any]:
        """The coded levels of a pyramid in order; a bare array stands for a single level.

        Raises:
          ShapeError: a level is missing, or an array was given for several.
        """
        if not isinstance(features, Mapping):
            if len(self.levels) > 1:
                raise ShapeError(f"this codec codes {' '.join(self.levels)}: give them by name")
            return {self.levels[0]: features}
        missing = [level for level in self.levels if level not in features]
        if missing:
            what = "the level" if len(self.levels) == 1 else "a level"
            raise ShapeError(f"features lack {' '.join(map(repr, missing))}, {what} of this codec")
        return {level: features[level] for level in self.levels}

    def compress(
        self, features: Any, meta: Mapping[str, Any] | None = None, *, backend: str = "numba"
    ) -> bytes:
        """The bytes of one frame [1, H_l, W_l, C]; see `coding.compress`."""
        maps, meta = self._streams(features, meta)
        return coding.compress_with(self.models, maps, meta, backend=backend)

    def compress_batch(
        self, features: Any, meta: Mapping[str, Any] | None = None, *, backend: str = "numba"
    ) -> list[bytes]:
        """The bytes of each of B frames; network and coder run once for all."""
        maps, meta = self._streams(features, meta)
        return coding.compress_batch_with(self.models, maps, meta, backend=backend)

    def decompress(self, blob: bytes, **limits: Any) -> dict[str, jax.Array]:
        """{level: [1, H_l, W_l, C] float32}; limits and errors as of `coding.decompress`."""
        return self.decompress_batch([blob], **limits)[0]

    def decompress_batch(
        self, blobs: Sequence[bytes], *, max_values: int = MAX_VALUES, **limits: Any
    ) -> list[dict[str, jax.Array]]:
        """`decompress` of several files; maps of equal shape pass the network together."""
        rows = coding.decompress_batch_with(self.models, blobs, max_values=max_values, **limits)
        return [self._levels(row, blob) for row, blob in zip(rows, blobs, strict=True)]

    def decompress_partial(
        self, blob: bytes, **limits: Any
    ) -> tuple[dict[str, jax.Array], list[BitstreamError]]:
        """The levels whose streams are undamaged, and what is wrong with the others."""
        maps, errors = coding.decompress_partial_with(self.models, blob, **limits)
        if not self.joint:
            return maps, errors
        try:
            return (self._split(maps, bitstream.salvage(blob)[0].meta) if maps else {}), errors
        except CorruptStreamError as error:
            return {}, [*errors, error]

    def decode_streams(self, streams: Sequence[bitstream.Stream]) -> list[Any]:
        """The integers of each stream, or what is wrong with it; see `coding.decode_streams`."""
        return coding.decode_streams_with(self.models, streams)

    def ideal_bits(self, features: Any) -> dict[str, jax.Array]:
        """{stream: [B, M]}, the code length of every latent channel under the model."""
        maps, _ = self._streams(features, None)
        return {
            self.stream_names[i]: _channel_bits(model.codec, model.variables, jnp.asarray(x))
            for i, (model, x) in enumerate((self.models[name], x) for name, x in maps.items())
        }

    def _streams(self, features: Any, meta: Any) -> tuple[dict[str, Any], Any]:
        """What each stream codes, and the metadata of the file."""
        levels = self.select(features)
        if not self.joint:
            return levels, meta
        for name, x in levels.items():
            check_features(x, self.channels, f"features {name!r}")
        sizes = [tuple(x.shape[1:3]) for x in levels.values()]
        if len({len(x) for x in levels.values()}) > 1:
            raise ShapeError("the levels hold different numbers of frames")
        if any(size[i] > sizes[0][i] for size in sizes for i in (0, 1)):
            raise ShapeError(f"levels of {sizes}: none may be larger than {self.levels[0]!r}")
        joint = _join([jnp.asarray(x, jnp.float32) for x in levels.values()])
        if sizes == pyramid_sizes(sizes[0], len(sizes)):
            return {JOINT: joint}, meta
        if SIZES in (meta or {}):
            raise ShapeError(f"the name {SIZES!r} in the metadata is the codec's own")
        return {JOINT_SIZED: joint}, {**(meta or {}), SIZES: [list(size) for size in sizes]}

    def _levels(self, maps: Any, blob: bytes) -> dict[str, jax.Array]:
        """What came out of the streams of a whole file, as levels."""
        if self.joint:
            return self._split(maps, bitstream.read(blob).meta)
        missing = [name for name in self.levels if name not in maps]
        if missing:
            raise CorruptStreamError(f"the file lacks the streams {' '.join(missing)}")
        return {name: maps[name] for name in self.levels}

    def _split(self, maps: Mapping[str, jax.Array], meta: Any) -> dict[str, jax.Array]:
        """The levels in the joint map of one file.

        Raises:
          CorruptStreamError: more than one, or sizes that the metadata lack or that are not sizes.
        """
        if len(maps) != 1:
            raise CorruptStreamError(f"the file holds streams {list(maps)}, one is needed")
        ((name, joint),) = maps.items()
        finest = (joint.shape[1], joint.shape[2])
        sizes = pyramid_sizes(finest, len(self.levels))
        if name == JOINT_SIZED:
            sizes = _stored_sizes(meta, finest, len(self.levels))
        return dict(zip(self.levels, _split(joint, tuple(sizes)), strict=True))


def _stored_sizes(meta: Any, finest: Size, count: int) -> list[Size]:
    """The sizes of a "joint*" stream, checked before anything is made of them."""
    rows = meta.get(SIZES) if isinstance(meta, Mapping) else None
    pairs = rows if isinstance(rows, list) and len(rows) == count else []
    sizes = [tuple(row) for row in pairs if isinstance(row, list) and len(row) == 2]
    good = all(
        type(n) is int and 1 <= n <= most
        for size in sizes
        for n, most in zip(size, finest, strict=True)
    )
    if len(sizes) != count or not good or sizes[0] != finest:
        raise CorruptStreamError(
            f"the metadata do not hold the sizes of {count} levels under {SIZES!r}"
        )
    return sizes


_join = jax.jit(join_levels)
_split = jax.jit(split_levels, static_argnums=1)


@functools.partial(jax.jit, static_argnums=0)
def _channel_bits(codec: FactorisedCodec, variables: Any, x: jax.Array) -> jax.Array:
    out: Any = codec.apply(variables, x)
    return out["bits"].sum((1, 2))
