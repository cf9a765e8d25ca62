"""Hard voxelisation of lidar sweeps into pillars, compiled for the host.

"Hard" (Zhou and Tuzel, 2018; Lang et al., 2019, section 2.1): the order of the points decides. A
cell becomes a pillar when its first point comes, as long as there is room for pillars; a pillar
keeps its first points. Nothing is random, so the same sweep gives the same pillars anywhere.

Points stay a flat list, ordered by pillar: a [pillars, 32, 4] array would be nine tenths zeros.

    points   0 0 0 1 1 2 3 3 . .      number of the pillar of each point; input order within it
    pillars  cells 71 12 90 15 . .    counts 3 2 1 2 . .

`jaxcomp.ops.voxelise_jax` is the same inside jit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcomp.errors import ConfigError, DataError, ShapeError
from jaxcomp.ops.native import compiled

_SIGNATURE = (
    "UniTuple(i8, 4)(f4[:, ::1], f4[::1], f4[::1], f4[::1], i8, i8, i8, i8,"
    " i4[::1], i4[::1], i4[::1], i4[::1])"
)
_PLACE = "void(f4[:, ::1], i4[::1], i4[::1], i8[::1], f4[:, ::1], i4[::1])"
_LEAST = 1024  # smallest padded length, so that few shapes are compiled
_REFUSED = -2


class Pillars(NamedTuple):
    """Points by pillar on static shapes; numpy or JAX arrays, with or without a batch axis first.

    Attributes:
      points: float32 [N, 4] x, y, z, intensity, ordered by pillar; zeros in the padding.
      pillar: int32 [N] number of the point's pillar; P in the padding.
      cells: int32 [P] cell of each pillar, row * columns + column; rows * columns in the padding.
      counts: int32 [P] points of each pillar; 0 in the padding.
    """

    points: Any
    pillar: Any
    cells: Any
    counts: Any


class Dropped(NamedTuple):
    """Points that did not make it into a pillar, and why.

    Attributes:
      bad: a coordinate or the intensity is NaN or infinite.
      outside: out of range (bounds excluded).
      crowded: their pillar was full.
      overflow: points of cells that came when there was no room for another pillar.
      pillars: such cells.
    """

    bad: int
    outside: int
    crowded: int
    overflow: int
    pillars: int


@dataclasses.dataclass(frozen=True)
class PillarGrid:
    """The cells that a sweep is cut into.

    Attributes:
      low: x, y, z in metres where the grid starts; points must lie strictly above.
      high: and strictly below this.
      size: of a cell, metres; the grid has one layer, so size z is high z - low z.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    size: tuple[float, float, float]

    def __post_init__(self) -> None:
        for axis, low, high, size in zip("xyz", self.low, self.high, self.size, strict=True):
            if not (low < high and size > 0):
                raise ConfigError(
                    f"grid: {axis} goes from {low} to {high} in steps of {size}; "
                    "raise the end above the start and the step above 0"
                )
        if self._cells(2) != 1:
            raise ConfigError(
                f"grid: {self._cells(2)} layers of {self.size[2]} m; pillars need one, "
                f"set the cell's height to {self.high[2] - self.low[2]:g}"
            )

    def _cells(self, axis: int) -> int:
        return round((self.high[axis] - self.low[axis]) / self.size[axis])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the grid: cells along y, cells along x."""
        return self._cells(1), self._cells(0)

    @property
    def cells(self) -> int:
        """Number of cells."""
        rows, columns = self.shape
        return rows * columns


def checked_points(points: Any, where: str = "points") -> np.ndarray:
    """Points as a contiguous float32 [N, 4] array.

    Raises:
      ShapeError: they are no [N, 4].
    """
    array = np.ascontiguousarray(points, np.float32)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ShapeError(f"{where}: shape {array.shape}; give [N, 4]: x, y, z, intensity")
    return array


def voxelise(
    points: Any, grid: PillarGrid, *, max_points: int, max_pillars: int
) -> tuple[Pillars, Dropped]:
    """Pillars of one sweep, without padding.

    Args:
      points: [N, 4] x, y, z (metres) and intensity; any order, any number, also none.
      grid: the cells.
      max_points: that a pillar keeps.
      max_pillars: that are kept.

    Returns:
      (pillars, what was dropped); pillars are in the order of their first points.

    Raises:
      ShapeError: the points are no [N, 4].
    """
    points = np.array(checked_points(points), order="C")  # compiled code refuses read-only arrays
    rows, columns = grid.shape
    most = min(max_pillars, grid.cells, len(points))
    cells, counts = np.empty(most, np.int32), np.empty(most, np.int32)
    pillar, slot = np.empty(len(points), np.int32), np.empty(len(points), np.int32)
    found, bad, outside, refused = compiled(_assign, _SIGNATURE)(
        points, *(np.array(v, np.float32) for v in (grid.low, grid.high, grid.size)),
        rows, columns, max_points, most, cells, counts, pillar, slot,
    )  # fmt: skip
    cells, counts = cells[:found], counts[:found]
    kept = int(counts.sum())
    out, owner = np.empty((kept, 4), np.float32), np.empty(kept, np.int32)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    compiled(_place, _PLACE)(points, pillar, slot, starts, out, owner)
    overflow = int((pillar == _REFUSED).sum())
    crowded = len(points) - bad - outside - overflow - kept
    dropped = Dropped(bad, outside, crowded, overflow, refused)
    return Pillars(out, owner, cells, counts), dropped


def pad(
    pillars: Pillars, grid: PillarGrid, points: int | None = None, count: int | None = None
) -> Pillars:
    """Pads to static lengths.

    Args:
      pillars: of one sweep.
      grid: the cells.
      points: padded number of points; the next power of two without.
      count: padded number of pillars; the next power of two without.

    Raises:
      DataError: there are more points or pillars than that.
    """
    have = len(pillars.points), len(pillars.cells)
    points, count = (
        bucket(n) if wanted is None else wanted
        for n, wanted in zip(have, (points, count), strict=True)
    )
    if have[0] > points or have[1] > count:
        raise DataError(
            f"{have[0]} points in {have[1]} pillars do not fit into {points} and {count}; "
            "raise the padded sizes"
        )
    more, empty = points - have[0], count - have[1]
    return Pillars(
        np.concatenate([pillars.points, np.zeros((more, 4), np.float32)]),
        np.concatenate([pillars.pillar, np.full(more, count, np.int32)]),
        np.concatenate([pillars.cells, np.full(empty, grid.cells, np.int32)]),
        np.concatenate([pillars.counts, np.zeros(empty, np.int32)]),
    )


def bucket(count: int) -> int:
    """The next power of two, at least 1024: so many shapes are compiled, and not one per sweep."""
    return max(_LEAST, 1 << max(0, count - 1).bit_length())


def voxelise_batch(
    sweeps: Sequence[Any],
    grid: PillarGrid,
    *,
    max_points: int,
    max_pillars: int,
    pad_points: int | None = None,
    pad_pillars: int | None = None,
) -> tuple[Pillars, list[Dropped]]:
    """Pillars of several sweeps on one static shape.

    Args:
      sweeps: [N_i, 4] points each.
      grid: the cells.
      max_points: that a pillar keeps.
      max_pillars: that a sweep keeps.
      pad_points: padded points of a sweep; by the largest sweep, as `bucket` says, without. Whole
        pillars that do not fit are dropped from the end and counted as overflow.
      pad_pillars: padded pillars of a sweep; likewise.

    Returns:
      (pillars with a batch axis, what was dropped from each sweep).
    """
    if not sweeps:
        raise ShapeError("no sweep is given; give one or more")
    limit = max_pillars if pad_pillars is None else min(max_pillars, pad_pillars)
    found = [voxelise(s, grid, max_points=max_points, max_pillars=limit) for s in sweeps]
    if pad_points is not None:
        found = [_cut(*one, pad_points) for one in found]
    points = bucket(max(len(p.points) for p, _ in found)) if pad_points is None else pad_points
    count = bucket(max(len(p.cells) for p, _ in found)) if pad_pillars is None else pad_pillars
    padded = [pad(p, grid, points, count) for p, _ in found]
    return Pillars(*(np.stack(c) for c in zip(*padded, strict=True))), [d for _, d in found]


def pillar_batch(sweeps: Sequence[Any], grid: PillarGrid, **sizes: Any) -> dict[str, np.ndarray]:
    """`voxelise_batch` as entries of a batch: the fields of `Pillars`, and int32 [B] counts.

    "overflow" counts the pillars for which there was no room and "bad" the points that are not
    finite: what a caller should warn about.
    """
    pillars, dropped = voxelise_batch(sweeps, grid, **sizes)
    counts = {"overflow": [d.pillars for d in dropped], "bad": [d.bad for d in dropped]}
    return {**pillars._asdict(), **{k: np.array(v, np.int32) for k, v in counts.items()}}


def pillars_of(batch: Mapping[str, Any]) -> Pillars:
    """The pillars in a batch that `pillar_batch` made."""
    return Pillars(*(batch[field] for field in Pillars._fields))


def _cut(pillars: Pillars, dropped: Dropped, points: int) -> tuple[Pillars, Dropped]:
    """Drops whole pillars from the end until the points fit."""
    ends = np.cumsum(pillars.counts)
    kept = int(np.searchsorted(ends, points, side="right"))
    if kept == len(ends):
        return pillars, dropped
    last = int(ends[kept - 1]) if kept else 0
    lost = len(pillars.points) - last
    dropped = dropped._replace(
        overflow=dropped.overflow + lost, pillars=dropped.pillars + len(ends) - kept
    )
    cut = Pillars(
        pillars.points[:last], pillars.pillar[:last], pillars.cells[:kept], pillars.counts[:kept]
    )
    return cut, dropped


def dense(pillars: Pillars, max_points: int) -> np.ndarray:
    """The zero-padded [P, max_points, 4] form of one sweep, for those who want it."""
    out = np.zeros((len(pillars.counts), max_points, 4), np.float32)
    real = np.flatnonzero(pillars.pillar < len(pillars.counts))
    starts = np.cumsum(pillars.counts) - pillars.counts
    owner = pillars.pillar[real]
    out[owner, real - starts[owner]] = pillars.points[real]
    return out


def _assign(
    points, low, high, size, rows, columns, max_points, most, cells, counts, pillar, slot
):  # fmt: skip
    """Pillar and place of every point (-1: dropped), cells and counts of the pillars."""
    where = np.full(rows * columns, -1, np.int32)
    found, bad, outside, refused = 0, 0, 0, 0
    for i in range(len(points)):
        pillar[i] = -1
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(z) and np.isfinite(points[i, 3])):
            bad += 1
            continue
        if not (low[0] < x < high[0] and low[1] < y < high[1] and low[2] < z < high[2]):
            outside += 1
            continue
        # All float32: in float64 a point on the edge of a cell may land in its neighbour.
        column = np.int64(np.floor((x - low[0]) / size[0]))
        row = np.int64(np.floor((y - low[1]) / size[1]))
        if column >= columns or row >= rows:
            outside += 1
            continue
        cell = row * columns + column
        number = where[cell]
        if number == -1:
            if found < most:
                number = found
                cells[found] = cell
                counts[found] = 0
                found += 1
            else:
                number = -2
                refused += 1
            where[cell] = number
        if number == -2:
            pillar[i] = -2
        elif counts[number] < max_points:
            pillar[i] = number
            slot[i] = counts[number]
            counts[number] += 1
    return found, bad, outside, refused


def _place(points, pillar, slot, starts, out, owner):
    """Writes every kept point behind the others of its pillar."""
    for i in range(len(points)):
        if pillar[i] >= 0:
            place = starts[pillar[i]] + slot[i]
            owner[place] = pillar[i]
            for k in range(4):
                out[place, k] = points[i, k]
