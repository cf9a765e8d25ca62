"""Time of PointPillars' parts at full size, beside PyTorch with the same weights.

    python benchmarks/pointpillars.py                 # a synthetic sweep of 20,000 points
    python benchmarks/pointpillars.py --sweep 000134.bin

Parts: `voxelise` (host, one core) and `voxelise in jit`; `head` (pillar encoder and scatter to the
496 x 432 canvas), `tail` (backbone, neck, outputs), `decode`. Ratios are to the same network in
PyTorch, which encodes padded pillars and runs in its faster layout (channels last); before timing,
the outputs are compared. The goal of both halves is a ratio of 1.0, that of voxelising 10 ms.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common

LIMIT = 1e-4  # largest difference of the outputs, of their range
POINTS = 20_000


def main() -> int:
    """Prints the table; exit status 1 if the outputs differ."""
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs (default 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--sweep", metavar="FILE", help="a KITTI .bin cut to the camera's view")
    args = parser.parse_args()
    records = _measure(args)
    common.finish(records, args.json)
    return 0 if all(r["met"] for r in records if r["name"] == "largest difference") else 1


def _measure(args: Any) -> list[dict[str, Any]]:
    ours = _ours(_sweep(args.sweep))
    theirs, difference = _theirs(args.threads, ours)
    runs = {**ours["runs"], **{f"PyTorch {k}": v for k, v in theirs.items()}}
    times = common.interleave(
        [functools.partial(common.warm_seconds, run) for run in runs.values()], args.repeats
    )
    found = dict(zip(runs, times, strict=True))
    records = [
        common.record("points", len(ours["points"]), "points"),
        common.record("pillars", len(ours["pillars"].cells), "pillars"),
        common.record("largest difference", difference, "of the range", goal=LIMIT),
        common.record("voxelise", found["voxelise"] * 1e3, "ms", goal=10.0),
        common.record("voxelise in jit", found["voxelise in jit"] * 1e3, "ms"),
        common.record("decode", found["decode"] * 1e3, "ms"),
    ]
    for name in theirs:
        records.append(
            common.record(
                name, found[name] * 1e3, "ms", peer="PyTorch",
                peer_value=found[f"PyTorch {name}"] * 1e3, goal=1.0,
            )
        )  # fmt: skip
    return records


def _sweep(path: str | None) -> np.ndarray:
    """Points of a file, or some that crowd near the sensor and on surfaces as real ones do."""
    if path is not None:
        from jaxcomp.data.lidar_files import read_sweep

        return read_sweep(path)
    rng = np.random.default_rng(0)
    distance = 4 + rng.gamma(1.6, 9.0, POINTS)
    angle = np.round(rng.uniform(-0.7, 0.7, POINTS), 2) + rng.normal(0, 0.002, POINTS)
    flat = [distance * np.cos(angle), distance * np.sin(angle)]
    rows = [*flat, rng.uniform(-1.8, 0.5, POINTS), rng.random(POINTS)]
    return np.stack(rows, 1).astype(np.float32)


def _ours(points: np.ndarray) -> dict[str, Any]:
    import jax

    from jaxcomp.interop.pointpillars_weights import pointpillars_from_torch, tensor_table
    from jaxcomp.models import pointpillars
    from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig
    from jaxcomp.ops import voxelise, voxelise_jax
    from jaxcomp.ops.compiling import inference_options

    cfg = PointPillarsConfig()
    model = PointPillars(cfg)
    weights = {e.name: _random(e.name, e.shape) for e in tensor_table(cfg)}
    variables = jax.tree.map(jax.numpy.asarray, pointpillars_from_torch(weights, cfg))
    sizes = {"max_points": cfg.max_points, "max_pillars": cfg.max_pillars_eval}
    host = functools.partial(voxelise.voxelise, points, cfg.grid, **sizes)
    pillars, _ = voxelise.voxelise_batch([points], cfg.grid, **sizes)
    pillars = jax.tree.map(jax.numpy.asarray, pillars)
    padded = jax.numpy.asarray(np.pad(points, ((0, voxelise.bucket(len(points)) - len(points)),
                                               (0, 0))))  # fmt: skip
    traced = functools.partial(voxelise_jax.voxelise, padded, len(points), grid=cfg.grid, **sizes)
    options = inference_options()
    head, tail = (
        jax.jit(functools.partial(model.apply, method=name), compiler_options=options)
        for name in ("head", "tail")
    )
    decode = jax.jit(functools.partial(pointpillars.decode, cfg=cfg))
    block = jax.block_until_ready
    canvas = block(head(variables, pillars))
    maps = block(tail(variables, canvas))
    runs = {
        "voxelise": host,
        "voxelise in jit": lambda: block(traced()),
        "decode": lambda: block(decode(maps)),
        "head": lambda: block(head(variables, pillars)),
        "tail": lambda: block(tail(variables, canvas)),
    }
    return {
        "runs": runs, "points": points, "pillars": host()[0], "weights": weights, "canvas": canvas,
        "maps": maps, "max_points": cfg.max_points,
    }  # fmt: skip


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """He-like weights and plausible statistics, so that activations keep their size."""
    rng = np.random.default_rng([1, *name.encode()])
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    if len(shape) == 1:
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    inputs = shape[0] if "decoder" in name else int(np.prod(shape[1:]))
    return (rng.standard_normal(shape) * (2 / inputs) ** 0.5).astype(np.float32)


def _theirs(threads: int, ours: dict[str, Any]) -> tuple[dict[str, Callable[[], Any]], float]:
    """PyTorch's halves with our weights, and how far its outputs are from ours."""
    try:
        import torch

        from benchmarks.pointpillars_peer import Peer
    except ImportError as error:
        raise SystemExit("benchmarks/pointpillars.py needs PyTorch: pip install torch") from error

    from jaxcomp.ops.voxelise import dense

    torch.set_num_threads(threads)
    peer = Peer().eval()
    state = {k: torch.tensor(v) for k, v in ours["weights"].items()}
    peer.load_state_dict({**peer.state_dict(), **state})
    peer = peer.to(memory_format=torch.channels_last)
    pillars = ours["pillars"]
    inputs = (
        torch.tensor(dense(pillars, ours["max_points"])),
        torch.tensor(pillars.cells.astype(np.int64)),
        torch.tensor(pillars.counts),
    )

    def inference(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return function(*args)

        return run

    head = inference(peer.pillar_encoder, *inputs)
    canvas = head()
    tail = inference(peer.tail, canvas)
    maps = [ours["maps"][name] for name in ("classes", "boxes", "directions")]
    pairs = [(ours["canvas"], canvas), *zip(maps, tail(), strict=True)]
    worst = 0.0
    for own, their in pairs:
        theirs = np.moveaxis(their.numpy(), 1, -1)
        worst = max(worst, float(np.abs(np.asarray(own) - theirs).max() / np.abs(theirs).max()))
    return {"head": head, "tail": tail}, worst


if __name__ == "__main__":
    sys.exit(main())
