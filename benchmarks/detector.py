"""Time and memory of the full-size detector's forward pass, beside PyTorch with the same weights.

    python benchmarks/detector.py                # 384 x 1280, the goal is a ratio of 1.0

Parts: `head` (body and pyramid), `proposal convolutions`, `box head` (1,000 regions), and
`everything`: for us with proposals, suppression and RoIAlign, for PyTorch the sum of those parts
(torchvision's compiled operators are not needed here, and left out of its time). Before timing, the
outputs are compared. PyTorch runs in its faster layout (channels last).
"""

from __future__ import annotations

import functools
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common

HEIGHT, WIDTH, REGIONS = 384, 1280, 1000
LIMIT = 1e-4  # largest difference of the outputs, of their range


def main() -> int:
    """Prints the table; exit status 1 if the outputs differ."""
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs (default 5)")
    args = parser.parse_args()
    records = _measure(args.repeats)
    common.finish(records, args.json)
    return 0 if all(r["met"] for r in records if r["name"] == "largest difference") else 1


def _measure(repeats: int) -> list[dict[str, Any]]:
    ours, compile_seconds, temp = _ours()
    records = [
        common.record("compile head and tail", compile_seconds, "s"),
        common.record("XLA's working memory", temp / 2**20, "MiB"),
        common.record("peak memory, PyTorch not loaded", _peak_gib(), "GiB", goal=6.0),
    ]
    theirs, difference = _theirs(ours)
    records.append(common.record("largest difference", difference, "of the range", goal=LIMIT))
    times = common.interleave(
        [
            functools.partial(common.warm_seconds, f)
            for f in (*ours["runs"].values(), *theirs.values())
        ],
        repeats,
    )
    own = dict(zip(ours["runs"], times, strict=False))
    peer = dict(zip(theirs, times[len(own) :], strict=True))
    peer["everything"] = sum(peer.values())
    for name, value in own.items():
        records.append(
            common.record(
                name, value, "s", peer="PyTorch", peer_value=peer[name], goal=1.2
                if name == "everything" else None,
            )
        )  # fmt: skip
    return records


def _peak_gib() -> float:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def _ours() -> tuple[dict[str, Any], float, int]:
    """Our parts, compiled and run once: {"runs", "variables", "outputs"}, seconds, bytes."""
    import jax

    from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN
    from jaxcomp.ops.compiling import inference_options

    model = FasterRCNN(DetectorConfig())
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, HEIGHT, WIDTH, 3)).astype(np.uint8)
    size = np.array([[HEIGHT, WIDTH]], np.float32)
    init = jax.jit(functools.partial(model.init, train=True))
    variables = init(jax.random.key(0), image[:, :64, :64], size)

    def compiled(function: Callable[..., Any], *args: Any) -> Any:
        jitted = jax.jit(function, compiler_options=inference_options())
        return jitted.lower(*args).compile()

    head = functools.partial(model.apply, method="features")
    tail = functools.partial(model.apply, method="detect")
    start = time.perf_counter()
    shapes = jax.eval_shape(head, variables, image)
    run_head = compiled(head, variables, image)
    run_tail = compiled(tail, variables, shapes, size)
    seconds = time.perf_counter() - start
    temp = max(f.memory_analysis().temp_size_in_bytes for f in (run_head, run_tail))
    rpn = functools.partial(model.apply, method=lambda m, f: m.rpn(f))
    box = functools.partial(model.apply, method=lambda m, x: m.box_head(x, False))
    pooled = rng.standard_normal((REGIONS, 7, 7, 256), np.float32)
    features = jax.block_until_ready(run_head(variables, image))
    jax.block_until_ready(run_tail(variables, features, size))
    run_rpn, run_box = compiled(rpn, variables, features), compiled(box, variables, pooled)
    block = jax.block_until_ready
    runs = {
        "head": lambda: block(run_head(variables, image)),
        "proposal convolutions": lambda: block(run_rpn(variables, features)),
        "box head": lambda: block(run_box(variables, pooled)),
        "everything": lambda: block(run_tail(variables, run_head(variables, image), size)),
    }
    outputs = {"features": features, "logits": run_box(variables, pooled)[0]}
    inputs = {"image": image, "pooled": pooled, "cfg": model.cfg}
    return {"runs": runs, "variables": variables, "outputs": outputs, **inputs}, seconds, temp


def _theirs(ours: dict[str, Any]) -> tuple[dict[str, Callable[[], Any]], float]:
    """PyTorch's parts with our weights, and how far its outputs are from ours."""
    try:
        import torch

        from benchmarks.detector_peer import Peer
    except ImportError as error:
        raise SystemExit("benchmarks/detector.py needs PyTorch: pip install torch") from error

    from jaxcomp.interop.detector_weights import detector_to_torch
    from jaxcomp.models.transform import normalise_image

    torch.set_num_threads(os.cpu_count() or 1)
    peer = Peer().eval()
    state = detector_to_torch(ours["variables"], ours["cfg"])
    peer.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in state.items()})
    peer = peer.to(memory_format=torch.channels_last)

    def tensor(x: Any) -> Any:
        nchw = torch.tensor(np.moveaxis(np.asarray(x), -1, 1))
        return nchw.contiguous(memory_format=torch.channels_last)

    x, pooled = tensor(normalise_image(ours["image"])), tensor(ours["pooled"])

    def inference(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return function()

        return run

    runs = {"head": inference(lambda: peer.pyramid(x))}
    pyramid = runs["head"]()
    runs["proposal convolutions"] = inference(lambda: peer.rpn["head"](pyramid))
    runs["box head"] = inference(lambda: peer.roi_heads(pooled))
    runs["proposal convolutions"]()
    pairs = [(ours["outputs"]["logits"], runs["box head"]()[0].numpy())]
    for own, their in zip(ours["outputs"]["features"].values(), pyramid, strict=True):
        pairs.append((own, np.moveaxis(their.numpy(), 1, -1)))
    worst = max(float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs)
    return runs, worst


if __name__ == "__main__":
    sys.exit(main())
