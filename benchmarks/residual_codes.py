"""Residual codes of real lidar sweeps at full size: bytes, what contexts save, time, memory.

    python benchmarks/residual_codes.py --kitti KITTI_FOLDER
    python benchmarks/residual_codes.py --kitti KITTI_FOLDER --detector epoch_160.pth

The codebooks are learned by k-means alone from the training sweeps, on the features of the
detector; without one those of an untrained pillar encoder stand for them, which changes the indices
but not how many there are. Bytes are means over the validation sweeps. Goals: 20 times less than
the dense map of fixed-length indices (107,136 bytes at 1x16, 1,071,360 at 5x256), 15 % of the index
bytes saved by contexts over one learned table per codebook, 50 ms of one core to encode and decode
a sweep.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common

CODEBOOKS, SIZES = 5, (16, 256)
BATCH, STEPS = 16384, 25  # vectors of a k-means step; steps of a stage


def main() -> int:
    """Prints the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--kitti", required=True, metavar="DIR", help="a KITTI object folder")
    parser.add_argument("--detector", default="", metavar="FILE", help="weights of a detector")
    parser.add_argument("--frames", type=int, default=1000, help="sweeps of each split at most")
    args = parser.parse_args()
    common.finish(_measure(args), args.json)
    return 0


def _detector(path: str) -> Any:
    import jax

    from jaxcomp.loaders_lidar import LidarDetector, load_lidar_detector
    from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig
    from jaxcomp.tasks.pointpillars import init_variables

    if path:
        return load_lidar_detector(path)
    model = PointPillars(PointPillarsConfig())
    return LidarDetector(model, init_variables(model, jax.random.key(0)), {})


def _measure(args: Any) -> list[dict[str, Any]]:
    from jaxcomp.codecs import bitstream, rq_stream
    from jaxcomp.data.lidar import kitti_frames
    from jaxcomp.data.lidar_records import LidarRecords
    from jaxcomp.jobs import rq_grid

    detector = _detector(args.detector)
    split = {
        name: LidarRecords(frames[: args.frames], detector.classes, 1)
        for name, frames in kitti_frames(args.kitti).items()
    }
    rows = _codebooks(detector, split["train"])
    quantiser = rq_grid.Quantiser(detector, rows)
    model, counts = rq_grid.learn_model(quantiser, split["train"], SIZES, args.frames)
    points = [(16,), (256,), (16,) * 5, (256,) * 5]
    sums: dict[Any, list[list[float]]] = {point: [] for point in points}
    for row in range(len(split["validation"])):
        vectors = quantiser.vectors(split["validation"].sweep(row))
        for point in points:
            frame = quantiser.frame(vectors, point)
            start = time.process_time()
            blob = rq_stream.compress(frame, model)
            decoded = rq_stream.decompress(blob, model)
            seconds = time.process_time() - start
            assert (decoded.dense() == frame.dense()).all()
            parts = [len(s.payload) for s in bitstream.read(blob).streams]
            order_0 = rq_grid._order_0(frame, counts) / 8
            sums[point].append([len(blob), parts[0], sum(parts[1:]), order_0, seconds])
    pillars = [int(quantiser.frame(vectors, (16,)).occupied.sum())]
    records = [common.record("sweeps", len(split["validation"]), "validation sweeps")]
    records += [common.record("pillars", pillars[0], "in the last sweep")]
    for point, found in sums.items():
        size, occupied, index, order_0 = (float(v) for v in np.mean(found, 0)[:4])
        name = rq_grid.point_name(point)
        dense = float(np.prod(quantiser.shape) * np.log2(point).sum() / 8)
        records += [
            common.record(f"{name} file", size, "bytes", peer="dense map", peer_value=dense,
                          goal=0.05),
            common.record(f"{name} occupancy", occupied, "bytes"),
            common.record(f"{name} indices", index, "bytes", peer="no context",
                          peer_value=order_0, goal=0.85),
            common.record(f"{name} encode + decode, CPU", 1e3 * float(np.median(found, 0)[4]), "ms",
                          goal=50.0),
        ]  # fmt: skip
    return [*records, _memory(detector)]


def _memory(detector: Any) -> dict[str, Any]:
    """Temporary memory of the search over a whole canvas in one program."""
    import jax
    import jax.numpy as jnp

    from jaxcomp.codecs import residual_vq

    positions, features = detector.cfg.grid.cells, detector.cfg.encoder_features
    x = jax.ShapeDtypeStruct((positions, features), jnp.float32)
    rows = jax.ShapeDtypeStruct((256, features), jnp.float32)
    program = jax.jit(lambda a, b: residual_vq.nearest(a, b, 256)).lower(x, rows).compile()
    used = program.memory_analysis().temp_size_in_bytes
    return common.record(
        "search, temporary memory", used / 1e6, "MB", peer="all distances",
        peer_value=positions * 256 * 4 / 1e6, goal=0.5,
    )  # fmt: skip


def _codebooks(detector: Any, records: Any) -> np.ndarray:
    """Codebooks [5, 256, C] by k-means of the residuals, stage after stage."""
    import jax
    import jax.numpy as jnp

    from jaxcomp.codecs import residual_vq as rq

    vectors = []
    for row in range(len(records)):
        x, pillars = detector.encode(records.sweep(row))
        vectors.append(np.asarray(x[0])[np.asarray(pillars.counts[0]) > 0])
    pool, rng = np.concatenate(vectors), np.random.default_rng(0)
    books, mask = rq.make_codebooks(CODEBOOKS, SIZES[-1], pool.shape[1]), jnp.ones(BATCH, bool)

    @jax.jit
    def residual(rows: Any, x: Any, sizes: Any, k: Any) -> Any:
        indices = rq.quantise(rows, x, mask, sizes).indices
        return rq.residual_before(rows, x, indices, sizes, k), indices[k]

    @jax.jit
    def average(books: Any, k: Any, r: Any, index: Any) -> Any:
        return rq.ema_update(books, k, r, index, mask, 0.8)

    for k in range(CODEBOOKS):
        for low, high in zip((0, *SIZES[:-1]), SIZES, strict=True):
            free = rq.trainable_rows(CODEBOOKS, SIZES[-1], k, low, high)
            books = books._replace(frozen=~free)
            sizes = rq.point_sizes((high,) * (k + 1), CODEBOOKS)
            for step in range(STEPS):
                x = jnp.asarray(pool[rng.integers(0, len(pool), BATCH)])
                r, index = residual(books.rows, x, sizes, k)
                if step == 0:
                    key = jax.random.key(SIZES[-1] * k + low)
                    books = rq.initialise(books, k, low, high, r, mask, key)
                else:
                    books = average(books, k, r, index)
    return np.asarray(books.rows)


if __name__ == "__main__":
    sys.exit(main())
