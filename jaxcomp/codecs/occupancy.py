"""Which cells of a grid hold a pillar: a binary map coded in raster order with causal contexts.

About 3 % of a lidar sweep's cells are occupied, along arcs and walls. Three experts are mixed
(see `context_mixing`):

    10 cells coded before, with the distance      the shape of an arc depends on the range
    14 cells coded before                         longer lines
    6 cells, distance and direction               what is seldom seen: the borders of the view
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from jaxcomp.codecs import context_learning, context_mixing
from jaxcomp.codecs.context_mixing import Contexts, Mixture
from jaxcomp.errors import ShapeError
from jaxcomp.ops import native

# (rows up, columns to the right), the nearest first.
_CELLS: tuple[tuple[int, int], ...] = (
    *((0, -1), (1, 0), (0, -2), (1, -1), (1, 1), (2, 0), (1, -2), (1, 2), (2, -1), (2, 1)),
    *((0, -3), (2, -2), (2, 2), (3, 0)),
)
_SHORT, _MIDDLE, _LONG = 6, 10, 14
_NEAR, _FAR, _SIDES = 8, 16, 9
_SIZES = (_NEAR << _MIDDLE, 1 << _LONG, (_FAR * _SIDES) << _SHORT)
_ABOVE, _LEFT, _RIGHT = 3, 3, 2  # how far a context reaches
_SIGNATURE = (
    "Tuple((i8, i8))(b1, i8, u2[::1], u1[::1], i8, i4[::1], i4[::1], i4[::1], i8[::1], i4[:, ::1],"
    " i4[::1], i4[::1], i4[::1])"
)


@functools.lru_cache(maxsize=4)
def map_contexts(shape: tuple[int, int]) -> Contexts:
    """The contexts of all cells of a grid [rows (y), columns (x)]."""
    height, width = shape
    y, x = np.divmod(np.arange(height * width, dtype=np.int64), width)
    neighbours = np.full((height * width, _LONG), height * width, np.int32)
    for m, (up, right) in enumerate(_CELLS):
        inside = (y - up >= 0) & (x + right >= 0) & (x + right < width)
        neighbours[inside, m] = ((y - up) * width + x + right)[inside]
    columns, more, rows = _places(shape)
    near, far, side = columns[x], more[x], rows[y]
    base = np.stack([near << _MIDDLE, 0 * near, (far * _SIDES + side) << _SHORT], 1)
    powers = 1 << np.arange(_LONG)
    stride = np.stack([np.where(np.arange(_LONG) < n, powers, 0) for n in (_MIDDLE, _LONG, _SHORT)])
    classes = np.tile(np.array([0, 1, 0], np.int32), (3, 1))
    return Contexts(neighbours, base, stride.astype(np.int32), classes, near, _SIZES, _NEAR)


def _places(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance of each column, in few and in many steps, and of each row from the middle: int32."""
    height, width = shape
    x, y = np.arange(width), np.arange(height)
    side = np.abs(2 * y + 1 - height) * _SIDES // (height + 1)
    near, far = x * _NEAR // width, x * _FAR // width
    return near.astype(np.int32), far.astype(np.int32), side.astype(np.int32)


def fit(maps: Iterable[np.ndarray]) -> Mixture:
    """Tables from training maps, bool [rows, columns] each."""
    return context_learning.fit(((_flat(m), map_contexts(m.shape)) for m in maps), 2)


def encode(occupied: np.ndarray, mixture: Mixture) -> bytes:
    """A map bool [rows, columns] to bytes: those of `context_mixing.encode`, much faster."""
    _flat(occupied)
    ranges = _run(False, 0, np.zeros(0, np.uint16), _padded(occupied), mixture)
    return context_mixing.pack(ranges[0], ranges[1])


def decode(payload: bytes, shape: tuple[int, int], mixture: Mixture) -> np.ndarray:
    """What `encode` coded; raises as `context_mixing.decode`."""
    state, words = context_mixing.split(payload)
    cells = _padded(np.zeros(shape, bool))
    _, _, end, used = _run(True, state, words, cells, mixture)
    context_mixing.check_end(end, used, words)
    return cells[_ABOVE:, _LEFT:-_RIGHT].astype(bool)


def _padded(occupied: np.ndarray) -> np.ndarray:
    """uint8, with zeros for all that a context may see outside the map."""
    return np.pad(occupied.astype(np.uint8), ((_ABOVE, 0), (_LEFT, _RIGHT)))


def _run(
    decoding: bool, state: int, words: np.ndarray, cells: np.ndarray, mixture: Mixture
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """As `context_mixing` runs its loop, on the padded map; decoding fills it."""
    if tuple(mixture.sizes) != _SIZES or mixture.symbols != 2:
        raise ShapeError(f"tables of sizes {tuple(mixture.sizes)}; those of a map have {_SIZES}")
    shape = cells.shape[0] - _ABOVE, cells.shape[1] - _LEFT - _RIGHT
    near, far, side = _places(shape)
    steps = np.array([right - up * cells.shape[1] for up, right in _CELLS], np.int64)
    start, width = (np.zeros(shape[0] * shape[1], np.int32) for _ in range(2))
    weights = np.ascontiguousarray(mixture.weights, np.int32)
    zeros = np.ascontiguousarray(mixture.full[:, 1])
    end, used = native.compiled(_loop, _SIGNATURE)(
        decoding, state, words, cells.reshape(-1), cells.shape[1], near, far, side, steps, weights,
        zeros, start, width,
    )  # fmt: skip
    return start, width, int(end), int(used)


def _loop(
    decoding, state, words, cells, stride, near, far, side, steps, weights, zeros, start, width
):
    """Ranges of all cells in raster order; what the experts see are low bits of one number."""
    x, used, have, t = np.int64(state), np.int64(0), np.int64(words.shape[0]), 0
    second = 8192  # where the rows of the second and of the third expert begin
    third = second + 16384
    for row in range(side.shape[0]):
        for column in range(near.shape[0]):
            at = (row + 3) * stride + column + 3
            seen = np.int64(0)
            for m in range(14):
                seen |= np.int64(cells[at + steps[m]]) << m
            place = near[column]
            zero = weights[place, 0] * np.int64(zeros[(place << 10) + (seen & 1023)])
            zero += weights[place, 1] * np.int64(zeros[second + seen])
            corner = (np.int64(far[column]) * 9 + side[row]) << 6
            zero += weights[place, 2] * np.int64(zeros[third + corner + (seen & 63)])
            zero = zero >> 8
            if decoding:
                cells[at] = np.uint8((x & 65535) >= zero)
            one = cells[at] == 1
            low = zero if one else np.int64(0)
            f = 65536 - zero if one else zero
            start[t], width[t] = low, f
            t += 1
            if decoding:
                x = f * (x >> 16) + (x & 65535) - low
                if x < 65536 and used < have:
                    x = (x << 16) | np.int64(words[used])
                    used += 1
    return x, used


def _flat(occupied: np.ndarray) -> np.ndarray:
    array = np.asarray(occupied)
    if array.ndim != 2 or array.dtype != bool:
        raise ShapeError(
            f"an occupancy map is bool [rows, columns], not {array.dtype} {array.ndim}d"
        )
    return array.reshape(-1).astype(np.int32)
