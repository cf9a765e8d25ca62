"""One training step of H-JEPA against the same computation in PyTorch, and what dropping saves.

    python benchmarks/hjepa.py                                # ViT-T and ViT-S, 224 x 224, batch 8
    python benchmarks/hjepa.py --sizes tiny --batch 4 --repeats 3

A step is both encoders, the predictor, a pyramid that adds, the loss, backward, clipping, AdamW and
the moving average; ours is the trainer's own. Three sides take turns, each in a process of its own:
ours, PyTorch with the same lists of patches, and ours with hidden and unseen patches kept in the
context encoder, masked out of its attention ("all tokens"). The goal is a ratio of at most 1.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common

SIDES = ("jaxcomp", "torch", "all tokens")
SIZES = ("tiny", "small", "base")


def main() -> None:
    """Measures the chosen sizes and prints the comparison."""
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", default="tiny,small", help="of tiny, small and base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--fpn", default="add", choices=("none", "add"), help="ours alone: none")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", help="internal: serve one side of the comparison")
    args = parser.parse_args()
    if args.worker:
        return common.serve(make(**json.loads(args.worker)))
    sides = [
        s
        for s in SIDES
        if s != "torch" or (importlib.util.find_spec("torch") and args.fpn == "add")
    ]
    records = []
    for size in args.sizes.split(","):
        if size not in SIZES:
            sys.exit(f"hjepa: unknown size {size!r}; choose from {', '.join(SIZES)}")
        records += compare(size, args, sides)
    if "torch" not in sides:
        print("PyTorch is not installed (pip install torch), or --fpn=none: no peer.")
    common.finish(records, args.json)
    return None


def compare(size: str, args, sides: list[str]) -> list[dict]:
    """Records of one size."""
    shared = {"size": size, "batch": args.batch, "threads": args.threads, "fpn": args.fpn}
    workers = {s: common.Worker(__file__, shared | {"side": s}, args.threads) for s in sides}
    times = common.interleave([w.step for w in workers.values()], args.repeats)
    step = dict(zip(workers, times, strict=True))
    ends = {side: worker.close() for side, worker in workers.items()}
    name, ours = f"ViT-{size} x{args.batch}", step["jaxcomp"]
    records = [
        common.record(f"{name} images/s", args.batch / ours, "1/s"),
        common.record(f"{name} step", ours, "s", peer="all tokens", peer_value=step["all tokens"]),
        common.record(f"{name} peak", ends["jaxcomp"][1], "MB"),
        common.record(f"{name} first step", ends["jaxcomp"][0], "s"),
    ]
    if "torch" in step:
        theirs = {"peer": "torch", "peer_value": step["torch"], "goal": 1.0}
        records.insert(0, common.record(f"{name} step", ours, "s", **theirs))
        records[-2] |= {"peer": "torch", "peer_value": ends["torch"][1]}
        records[-2]["ratio"] = records[-2]["value"] / ends["torch"][1]
    return records


def make(side: str, size: str, batch: int, threads: int, fpn: str) -> Callable[[], None]:
    """A closure that runs one step of a side and waits for it."""
    import numpy as np

    from jaxcomp.config import load_config
    from jaxcomp.data.pictures import mask_sampler

    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    config = load_config(
        f"{folder}/configs/hjepa.py:fpn={fpn},{size}",
        ["model.dtype=float32", f"training.batch_size={batch}"],
    )
    rng, sampler = np.random.default_rng(0), mask_sampler(config)
    images = rng.integers(0, 256, (batch, config.data.height, config.data.width, 3), np.uint8)
    rows = {"image": images, "mask": np.ones(batch, np.float32), **sampler(rng, batch)}
    if side == "torch":
        import torch

        from benchmarks.hjepa_peer import Step

        torch.set_num_threads(threads)
        model = config.model
        sizes = {k: int(model[k]) for k in ("width", "depth", "heads", "patch", "predictor_depth")}
        sizes["predictor_heads"] = 12
        return Step(sizes, rows, (sampler.max_masked, sampler.max_context))
    return our_step(config, rows, sampler.max_masked, side == "jaxcomp" and sampler.max_context)


def our_step(config, rows, max_masked: int, max_context: int) -> Callable[[], None]:
    """One step of the trainer; `max_context` 0 keeps all patches in the context encoder."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxcomp import optim
    from jaxcomp.models.hjepa import HJEPA
    from jaxcomp.step import create_state, make_train_step
    from jaxcomp.tasks.jepa import EMASchedule, JEPATask, hjepa_config, loss_config

    cfg = hjepa_config(config)
    task = JEPATask(
        HJEPA(cfg), loss_config(config.loss), EMASchedule(total_steps=1000),
        max_masked=max_masked, max_context=max_context or None,
    )  # fmt: skip
    tx = optim.make_optimiser(config.training, 100)
    state, frozen = create_state(task, tx, jax.random.key(0), rows)
    jitted = make_train_step(task, tx)
    batch, held = jax.tree.map(jnp.asarray, rows), [state]

    def step() -> None:
        held[0], metrics = jitted(held[0], frozen, batch, np.uint32(0))
        metrics["loss"].block_until_ready()

    return step


if __name__ == "__main__":
    main()
