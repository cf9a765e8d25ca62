"""A quantised sweep as a `.jxc` file: where pillars are, then the indices, codebook by codebook.

    stream "occupancy"   which cells hold a pillar (`occupancy`)
    stream "0.256"       an index into 256 rows of codebook 0 for every pillar, in raster order
    stream "1.256"       codebook 1 ...

Only occupied cells carry indices. Each stream needs those before it and none behind it, so a file
cut behind any of them is the file of fewer codebooks (but for the number of streams in its header):
`decode_prefix` decodes what is there, exactly as if no more had been coded.

The context of an index is what the decoder has by then: the position and its occupied surroundings,
the index of the codebook before at the same place, and the indices of the same codebook at the left
and above. Tables are learned in training and stored with the codebooks; integers only decide.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.codecs import bitstream, context_learning, context_mixing, occupancy
from jaxcomp.codecs.bitstream import Stream
from jaxcomp.codecs.context_mixing import Contexts, Mixture
from jaxcomp.codecs.limits import MAX_VALUES
from jaxcomp.codecs.residual_vq import checked_point
from jaxcomp.errors import (
    BitstreamError,
    CheckpointError,
    CorruptStreamError,
    ShapeError,
    StreamTooLargeError,
    TruncatedStreamError,
)

OCCUPANCY = "occupancy"
KIND = "residual_vq"  # of the container
MAX_CELLS = 1 << 22  # of a grid, checked before anything is allocated: 20 times that of KITTI
FINE, COARSE = 64, 16  # classes of rows that contexts tell apart
_RANGES, _CROWD = 6, 9  # steps of the distance, and of the number of occupied cells around
_LEFT = ((0, -1), (0, -2), (0, -3), (0, -4))
_ABOVE = ((-1, 0), (-1, -1), (-1, 1), (-2, 0), (-2, -1), (-2, 1))
_PAD = 4
_BLOCK = 1 << 14  # pillars whose rows are summed at once

Point = tuple[int, ...]
Indices = np.ndarray  # int32 [K, P]


@dataclasses.dataclass(frozen=True, eq=False)
class RqModel:
    """All that turns a file into features.

    Attributes:
      rows: float32 [K, N, C], the codebooks.
      classes: int32 [K, 2, N], the fine and the coarse class of every row.
      occupancy: tables of the map.
      tables: those of codebook k with n rows, by (k, n).
    """

    rows: np.ndarray
    classes: np.ndarray
    occupancy: Mixture
    tables: Mapping[tuple[int, int], Mixture]

    @functools.cached_property
    def digest(self) -> int:
        """64-bit name: the first 8 bytes of a SHA-256 over all arrays; every file carries it."""
        sha = hashlib.sha256(b"jaxcomp residual codes 1" + self.occupancy.digest)
        for array, kind in ((self.rows, "<f4"), (self.classes, "<i4")):
            sha.update(str(array.shape).encode() + array.astype(kind).tobytes())
        for key in sorted(self.tables):
            sha.update(str(key).encode() + self.tables[key].digest)
        return int.from_bytes(sha.digest()[:8], "little")

    def sizes(self) -> tuple[int, ...]:
        """The numbers of rows for which there are tables, of every codebook."""
        return tuple(sorted({n for _, n in self.tables}))

    def point(self, sizes: Sequence[int], where: str = "") -> Point:
        """The point if the model has rows and tables for it.

        Raises:
          CheckpointError: it has not.
        """
        point = checked_point(self.rows.shape, sizes, where)
        for k, n in enumerate(point):
            if (k, n) not in self.tables:
                held = ", ".join(str(m) for j, m in sorted(self.tables) if j == k) or "none"
                raise CheckpointError(
                    f"{where or 'the checkpoint'} has no tables for {n} embeddings of codebook "
                    f"{k}; it has them for {held}"
                )
        return point


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A quantised sweep.

    Attributes:
      occupied: bool [rows, columns].
      indices: int32 [K, P], of the P occupied cells in raster order.
      point: rows that each of the K codebooks had.
    """

    occupied: np.ndarray
    indices: Indices
    point: Point

    def prefix(self, count: int) -> Frame:
        """The first codebooks alone."""
        return Frame(self.occupied, self.indices[:count], self.point[:count])

    def dense(self) -> np.ndarray:
        """The map that the file stands for, int32 [K, rows, columns], -1 without a pillar."""
        out = np.full((len(self.indices), *self.occupied.shape), -1, np.int32)
        out[:, self.occupied] = self.indices
        return out


def frame_of(cells: np.ndarray, indices: Indices, shape: tuple[int, int], point: Point) -> Frame:
    """A frame from pillars in any order.

    Args:
      cells: int [P], row * columns + column; others, as padding has them, are left out.
      indices: [K, P].
      shape: (rows, columns).
      point: of the indices.

    Raises:
      ShapeError: two pillars have one cell.
    """
    cells = np.asarray(cells, np.int64)
    real = np.flatnonzero((cells >= 0) & (cells < shape[0] * shape[1]))
    order = real[np.argsort(cells[real], kind="stable")]
    occupied = np.zeros(shape[0] * shape[1], bool)
    occupied[cells[order]] = True
    if occupied.sum() != len(order):
        raise ShapeError(f"{len(order)} pillars in {occupied.sum()} cells; give each cell once")
    chosen = np.asarray(indices)[: len(point), order].astype(np.int32)
    return Frame(occupied.reshape(shape), chosen, tuple(point))


def features(frame: Frame, codebooks: np.ndarray) -> np.ndarray:
    """The decoded canvas float32 [rows, columns, C], zeros without a pillar.

    Sums in the order of `residual_vq.quantise`, so that it equals what the encoder saw; block by
    block, so that it needs next to no memory beside the canvas.
    """
    canvas = np.zeros((frame.occupied.size, codebooks.shape[2]), np.float32)
    cells = np.flatnonzero(frame.occupied)
    for first in range(0, len(cells), _BLOCK):
        block = slice(first, first + _BLOCK)
        total = np.zeros((len(cells[block]), canvas.shape[1]), np.float32)
        for rows, index in zip(codebooks, frame.indices, strict=False):
            total += rows[index[block]]
        canvas[cells[block]] = total
    return canvas.reshape(*frame.occupied.shape, -1)


# --- bytes ----------------------------------------------------------------------------------------


def compress(frame: Frame, model: RqModel, meta: Mapping[str, Any] | None = None) -> bytes:
    """A frame as the bytes of a `.jxc` file.

    Raises:
      CheckpointError: the model has no tables for the point.
      ShapeError: an index is beyond its codebook.
      StreamTooLargeError: a grid that `decompress` would refuse.
    """
    point, shape = model.point(frame.point), frame.occupied.shape
    height, width = int(shape[0]), int(shape[1])
    _check_size((height, width), model, MAX_CELLS, MAX_VALUES)
    around = Surroundings(frame.occupied)
    payload = occupancy.encode(frame.occupied, model.occupancy)
    streams = [Stream(OCCUPANCY, (height, width), 0, 0, payload)]
    for k, n in enumerate(point):
        contexts = index_contexts(around, frame.indices[:k], model.classes, k, n)
        payload = context_mixing.encode(frame.indices[k], contexts, model.tables[k, n])
        streams.append(Stream(f"{k}.{n}", (height, width), 0, 0, payload))
    limit = MAX_CELLS * (1 + len(model.rows))
    return bitstream.write(KIND, model.digest, streams, meta, max_symbols=limit)


def decompress(
    blob: bytes, model: RqModel, *, max_cells: int = MAX_CELLS, max_values: int = MAX_VALUES
) -> Frame:
    """The frame that `compress` coded.

    Args:
      blob: the bytes of the file.
      model: codebooks and tables.
      max_cells: the most cells H W of a grid that is decoded; memory follows it.
      max_values: the most values H W C that its `features` may have.

    Raises:
      StreamTooLargeError: a limit is exceeded; told before anything is allocated.
      BitstreamError: the file is damaged, truncated, or of another model.
    """
    limit = max_cells * (1 + len(model.rows))
    box = bitstream.read(blob, kind=KIND, digest=model.digest, max_symbols=limit)
    return _decode(box.streams, _checked(box.streams, model, max_cells, max_values), model)


def prefix(
    blob: bytes,
    model: RqModel,
    codebooks: int,
    *,
    max_cells: int = MAX_CELLS,
    max_values: int = MAX_VALUES,
) -> bytes:
    """The file of the first codebooks alone, as `compress` would have made it; nothing is decoded.

    Raises:
      BitstreamError: as for `decompress`; or the file holds fewer codebooks.
    """
    limit = max_cells * (1 + len(model.rows))
    box = bitstream.read(blob, kind=KIND, digest=model.digest, max_symbols=limit)
    _checked(box.streams, model, max_cells, max_values)
    held = len(box.streams) - 1
    if not 1 <= codebooks <= held:
        raise TruncatedStreamError(f"the file holds {held} codebooks, {codebooks} are asked for")
    return bitstream.write(
        KIND, model.digest, box.streams[: 1 + codebooks], box.meta, max_symbols=limit
    )


def decode_prefix(
    blob: bytes, model: RqModel, *, max_cells: int = MAX_CELLS, max_values: int = MAX_VALUES
) -> tuple[Frame, list[BitstreamError]]:
    """As many codebooks as a cut or damaged file still holds, and what was wrong with the rest.

    Raises:
      StreamTooLargeError: as for `decompress`.
      BitstreamError: not even the occupancy map can be read, or the file is of another model.
    """
    limit = max_cells * (1 + len(model.rows))
    box, errors = bitstream.salvage(blob, kind=KIND, digest=model.digest, max_symbols=limit)
    whole = []
    places = ({OCCUPANCY}, *({f"{k}.{n}" for j, n in model.tables if j == k} for k in range(14)))
    for stream, names in zip(box.streams, places, strict=False):
        if stream.name not in names:
            break
        whole.append(stream)
    if not whole:
        raise errors[0] if errors else TruncatedStreamError("the file holds no occupancy map")
    return _decode(whole, _checked(whole, model, max_cells, max_values), model), errors


def _checked(streams: Sequence[Stream], model: RqModel, max_cells: int, max_values: int) -> Point:
    """The point of a file's streams; raises if they are none of a sweep, or too large."""
    first, *rest = streams
    if first.name != OCCUPANCY:
        raise CorruptStreamError(f"the first stream is {first.name!r}, not {OCCUPANCY!r}")
    point = tuple(_rows_in_name(stream, k, model) for k, stream in enumerate(rest))
    if any(s.shape != first.shape or s.stages or s.lanes for s in streams):
        raise CorruptStreamError("the streams of a quantised sweep differ in shape, or are coarser")
    _check_size(first.shape, model, max_cells, max_values)
    return point


def _check_size(shape: tuple[int, int], model: RqModel, max_cells: int, max_values: int) -> None:
    cells, channels = shape[0] * shape[1], int(model.rows.shape[2])
    if cells > max_cells:
        raise StreamTooLargeError(f"a grid of {shape}; at most {max_cells} cells are decoded")
    if cells * channels > max_values:
        raise StreamTooLargeError(
            f"a grid of {shape} with {channels} channels; at most {max_values} values are decoded, "
            "raise max_values if the file is trusted"
        )


def _decode(streams: Sequence[Stream], point: Point, model: RqModel) -> Frame:
    first, *rest = streams
    occupied = occupancy.decode(first.payload, first.shape, model.occupancy)
    around = Surroundings(occupied)
    indices = np.zeros((0, around.count), np.int32)
    for k, stream in enumerate(rest):
        contexts = index_contexts(around, indices, model.classes, k, point[k])
        new = context_mixing.decode(stream.payload, contexts, model.tables[k, point[k]])
        indices = np.concatenate([indices, new[None]])
    return Frame(occupied, indices, point)


def _rows_in_name(stream: Stream, k: int, model: RqModel) -> int:
    sizes = {f"{k}.{n}": n for j, n in model.tables if j == k}
    if stream.name not in sizes:
        raise CorruptStreamError(
            f"stream {stream.name!r} in the place of codebook {k}; tables are there for "
            f"{sorted(sizes.values())} rows"
        )
    return sizes[stream.name]


# --- contexts -------------------------------------------------------------------------------------


class Surroundings:
    """What the map alone says of every pillar.

    Attributes:
      count: P.
      neighbours: int32 [P, 2], the pillar at the left and the one above; P where there is none.
      place: int32 [P], distance and number of occupied cells around, in steps.
      distance: int32 [P], the former alone.
    """

    def __init__(self, occupied: np.ndarray):
        """Looks around every occupied cell of a map bool [rows, columns]."""
        if occupied.ndim != 2 or occupied.size > MAX_CELLS:
            raise StreamTooLargeError(f"a grid of {occupied.shape}; at most {MAX_CELLS} cells")
        y, x = np.nonzero(occupied)
        self.count = len(y)
        number = np.full(np.add(occupied.shape, 2 * _PAD), self.count, np.int32)
        number[y + _PAD, x + _PAD] = np.arange(self.count)
        found = [self._first(number, y, x, cells) for cells in (_LEFT, _ABOVE)]
        self.neighbours = np.stack(found, 1)
        crowd = sum(
            (number[y + _PAD + i, x + _PAD + j] < self.count).astype(np.int32)
            for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j
        )  # fmt: skip
        self.distance = (x * _RANGES // occupied.shape[1]).astype(np.int32)
        self.place = (self.distance * _CROWD + crowd).astype(np.int32)

    def _first(self, number: np.ndarray, y: np.ndarray, x: np.ndarray, cells: Any) -> np.ndarray:
        """The first of some cells that is occupied."""
        out = np.full(len(y), self.count, np.int32)
        for down, right in reversed(cells):
            seen = number[y + _PAD + down, x + _PAD + right]
            out = np.where(seen < self.count, seen, out)
        return out


def index_contexts(
    around: Surroundings, before: Indices, classes: np.ndarray, k: int, n: int
) -> Contexts:
    """Contexts of the indices of codebook k with n rows.

    Args:
      around: of the map.
      before: int32 [k, P], indices of the codebooks before.
      classes: see `RqModel`.
      k: which codebook.
      n: its rows that take part.
    """
    fine, coarse = (_with_none(classes[k, i, :n], size) for i, size in ((0, FINE), (1, COARSE)))
    none = np.zeros(n + 1, np.int32)
    many, few = FINE + 1, COARSE + 1
    zero = np.zeros(around.count, np.int32)
    # (base, size, stride at the left, above, classes)
    experts = [
        (around.place, _RANGES * _CROWD, (0, 0), none),
        (around.distance, many * _RANGES, (_RANGES, 0), fine),
        (around.distance, many * _RANGES, (0, _RANGES), fine),
        (zero, few * few, (few, 1), coarse),
    ]
    if k:
        last_fine, last_coarse = (classes[k - 1, i][before[-1]] for i in (0, 1))
        experts.append((last_fine * _RANGES + around.distance, FINE * _RANGES, (0, 0), none))
        experts.append((last_coarse * few, COARSE * few, (1, 0), coarse))
        experts.append((last_coarse * few, COARSE * few, (0, 1), coarse))
    if k > 1:
        first = classes[0, 0][before[0]]
        experts.append((first * COARSE + last_coarse, FINE * COARSE, (0, 0), none))
    base, sizes, stride, seen = zip(*experts, strict=True)
    there = (around.neighbours < around.count).astype(np.int32)
    return Contexts(
        around.neighbours,
        np.stack(base, 1).astype(np.int32),
        np.asarray(stride, np.int32),
        np.stack(seen).astype(np.int32),
        (2 * there[:, 0] + there[:, 1]).astype(np.int32),
        tuple(int(s) for s in sizes),
        4,
    )


def _with_none(classes: np.ndarray, none: int) -> np.ndarray:
    return np.append(classes, none).astype(np.int32)


# --- learning -------------------------------------------------------------------------------------


def row_classes(rows: np.ndarray, steps: int = 20) -> np.ndarray:
    """Groups the rows of every codebook: int32 [K, 2, N], `FINE` and `COARSE` groups.

    The first rows are the first centres, and a few steps of k-means follow; what comes out is
    stored, so it need not be the same everywhere.
    """
    out = np.zeros((rows.shape[0], 2, rows.shape[1]), np.int32)
    for k, vectors in enumerate(rows.astype(np.float64)):
        for i, groups in enumerate((FINE, COARSE)):
            centres = vectors[:groups].copy()
            for _ in range(steps):
                distance = np.square(vectors[:, None] - centres[None]).sum(-1)
                own = distance.argmin(1)
                for g in range(len(centres)):
                    if (own == g).any():
                        centres[g] = vectors[own == g].mean(0)
            out[k, i] = own
    return out


def fit_occupancy(frames: Iterable[Frame]) -> Mixture:
    """Tables of the map."""
    return occupancy.fit(frame.occupied for frame in frames)


def fit_indices(frames: Sequence[Frame], classes: np.ndarray) -> dict[tuple[int, int], Mixture]:
    """Tables of every codebook of the frames, which have one point.

    Returns:
      {(k, n): tables}.
    """
    tables = {}
    around = [Surroundings(frame.occupied) for frame in frames]
    for k, n in enumerate(frames[0].point):
        streams = (
            (frame.indices[k], index_contexts(near, frame.indices[:k], classes, k, n))
            for frame, near in zip(frames, around, strict=True)
        )
        tables[k, n] = context_learning.fit(streams, n, refined=True)
    return tables


def order_0_bits(training: Sequence[Frame], frames: Sequence[Frame]) -> float:
    """Bits of the frames' indices with one table per codebook and no context, learned likewise."""
    total = 0.0
    for k, n in enumerate(training[0].point):
        seen = np.concatenate([frame.indices[k] for frame in training])
        p = (np.bincount(seen, minlength=n) + 1 / n) / (len(seen) + 1)
        total -= sum(float(np.log2(p[frame.indices[k]]).sum()) for frame in frames)
    return total
