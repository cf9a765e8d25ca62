"""Small quantised sweeps and tables for tests."""

import numpy as np

from jaxcomp.codecs import rq_stream as rs

SHAPE, ROWS, SIZES = (24, 40), 8, (4, 8)


def sweep_map(rng, shape=SHAPE):
    """Arcs and dots, as pillars lie."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    arc = np.abs(np.hypot(y - shape[0] / 2, x) % 9 - rng.uniform(2, 6)) < 0.7
    return (arc & (rng.random(shape) < 0.8)) | (rng.random(shape) < 0.01)


def frame(rng, point, shape=SHAPE):
    """Indices that depend on their neighbours and on the codebook before."""
    occupied = sweep_map(rng, shape)
    count = int(occupied.sum())
    indices = np.zeros((len(point), count), np.int32)
    for k, n in enumerate(point):
        drift = np.cumsum(rng.random(count) < 0.2)
        noise = (rng.random(count) < 0.1) * rng.integers(0, n, count)
        follows = (rng.random(count) < 0.6) & bool(k)
        indices[k] = np.where(follows, indices[k - 1], drift + noise) % n
    return rs.Frame(occupied, indices, tuple(point))


def model(codebooks=3, sizes=SIZES, shape=SHAPE, seed=0):
    """Codebooks with tables for the points (n, ..., n)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(codebooks, max(sizes), 5)).astype(np.float32)
    classes = rs.row_classes(rows)
    tables = {}
    for n in sizes:
        frames = [frame(rng, (n,) * codebooks, shape) for _ in range(6)]
        tables |= rs.fit_indices(frames, classes)
    return rs.RqModel(rows, classes, rs.fit_occupancy(frames), tables)
