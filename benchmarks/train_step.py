"""One training step of the 256-128-192 codec against the same network in PyTorch.

    python benchmarks/train_step.py                          # P3..P6 of a 384x1280 image, batch 8
    python benchmarks/train_step.py --levels p5,p6 --repeats 5 --json step.json

A step is forward, backward, clipping and Adam; ours is the trainer's own. Both run on the same
number of threads, each in a process of its own (so that each has its own peak memory), taking turns
step by step. PyTorch uses the channels-last layout, its fastest here. The goal is a ratio of at
most 1.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common

HEIGHT, WIDTH, RATE_WEIGHT = 384, 1280, 1e-3
LEVELS = {f"p{i + 2}": (HEIGHT // 2 ** (i + 2), WIDTH // 2 ** (i + 2)) for i in range(5)}


def main() -> None:
    """Measures the chosen levels and prints the comparison."""
    parser = common.parser(__doc__)
    parser.add_argument("--levels", default="p6,p5,p4,p3")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", help="internal: serve one side of the comparison")
    args = parser.parse_args()
    if args.worker:
        return serve(**json.loads(args.worker))
    if importlib.util.find_spec("torch") is None:
        sys.exit(
            "train_step: PyTorch is not installed (pip install torch); nothing to compare with"
        )
    records = []
    levels = args.levels.split(",")
    if unknown := set(levels) - set(LEVELS):
        sys.exit(f"train_step: unknown levels {sorted(unknown)}; choose from {', '.join(LEVELS)}")
    for level in levels:
        shape = (args.batch, *LEVELS[level], 256)
        records += compare(level, shape, args.threads, args.repeats)
    common.finish(records, args.json)
    return None


def compare(level: str, shape: tuple[int, ...], threads: int, repeats: int) -> list[dict]:
    """Records of step time, peak memory and first-step time for one feature shape."""
    specs = [{"side": s, "shape": shape, "threads": threads} for s in ("jaxcomp", "torch")]
    sides = [common.Worker(__file__, spec, threads) for spec in specs]
    ours, theirs = common.interleave([side.step for side in sides], repeats)
    (our_first, our_peak), (their_first, their_peak) = (side.close() for side in sides)
    name = f"{level} {list(shape)}"
    return [
        common.record(f"{name} step", ours, "s", peer="torch", peer_value=theirs, goal=1.0),
        common.record(f"{name} peak", our_peak, "MB", peer="torch", peer_value=their_peak),
        common.record(f"{name} first step", our_first, "s", peer="torch", peer_value=their_first),
    ]


def serve(side: str, shape: list[int], threads: int) -> None:
    """One side of the comparison, as `common.Worker` asks for it."""
    common.serve({"jaxcomp": our_step, "torch": torch_step}[side](tuple(shape), threads))


def our_step(shape: tuple[int, ...], threads: int) -> Callable[[], None]:
    """A closure that runs one step of the trainer (`jaxcomp.train`) and waits for it."""
    del threads  # XLA takes the CPUs that taskset leaves it
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxcomp import optim, train
    from jaxcomp.codecs.factorised import FactorisedCodec
    from jaxcomp.config import base_config
    from jaxcomp.tasks.feature_codec import FeatureCodecTask

    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    batch = {"features": jnp.asarray(x), "mask": jnp.ones(shape[0])}
    statistics = {"mean": np.zeros(shape[-1], np.float32), "scale": np.float32(1)}
    task = FeatureCodecTask(FactorisedCodec(in_channels=shape[-1]), RATE_WEIGHT, statistics)
    tx = optim.make_optimiser(base_config().training, 1)  # Adam, clipping at a norm of 1
    state, frozen = train.create_state(task, tx, jax.random.key(0), batch)
    jitted = train.make_train_step(task, tx)
    held = [state]

    def step() -> None:
        held[0], metrics = jitted(held[0], frozen, batch, np.uint32(0))
        metrics["loss"].block_until_ready()

    return step


def torch_step(shape: tuple[int, ...], threads: int) -> Callable[[], None]:
    """The same network, loss and optimiser in PyTorch, channels last."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = _torch_codec(torch, shape[-1]).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), 1e-4)
    x = torch.randn(shape).permute(0, 3, 1, 2)  # NHWC memory is what channels_last means

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        x_hat, bits = model(x)
        rate = bits / (shape[0] * shape[1] * shape[2])
        value = torch.mean((x_hat - x) ** 2) + RATE_WEIGHT * rate
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        value.item()

    return step


def _torch_codec(torch, channels: int, hidden: int = 128, latent: int = 192):
    """The codec as a PyTorch module that returns (x_hat, total bits) under noise."""
    nn, fn = torch.nn, torch.nn.functional

    class Norm(nn.Module):
        def __init__(self, inverse):
            super().__init__()
            self.inverse = inverse
            self.beta = nn.Parameter(torch.ones(hidden))
            self.gamma = nn.Parameter((0.1 * torch.eye(hidden)).sqrt())

        def forward(self, x):
            gamma = self.gamma.clamp_min(2**-18) ** 2
            beta = self.beta.clamp_min(1e-3) ** 2
            norm = fn.conv2d(x * x, gamma[:, :, None, None], beta)
            return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))

    class Density(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = (1, 3, 3, 3, 3, 1)
            self.matrices = nn.ParameterList(
                torch.full((latent, o, i), -1.0) for i, o in itertools.pairwise(sizes)
            )
            self.biases = nn.ParameterList(torch.rand(latent, o, 1) - 0.5 for o in sizes[1:])
            self.factors = nn.ParameterList(torch.zeros(latent, o, 1) for o in sizes[1:-1])

        def logits(self, v):
            for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
                v = fn.softplus(matrix) @ v + bias
                if i < 4:
                    v = v + torch.tanh(self.factors[i]) * torch.tanh(v)
            return v

        def forward(self, y):
            flat = y.permute(1, 0, 2, 3).reshape(latent, 1, -1)
            lower, upper = self.logits(flat - 0.5), self.logits(flat + 0.5)
            sign = -torch.sign(lower + upper).detach()
            p = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
            return -torch.log2(p.clamp_min(1e-9)).sum()

    def down(a, b):
        return nn.Conv2d(a, b, 5, 2, 2)

    def up(a, b):
        return nn.ConvTranspose2d(a, b, 5, 2, 2, 1)

    class Codec(nn.Module):
        def __init__(self):
            super().__init__()
            self.analysis = nn.Sequential(
                *(down(channels, hidden), Norm(False), down(hidden, hidden), Norm(False)),
                *(down(hidden, hidden), Norm(False), down(hidden, latent)),
            )
            self.synthesis = nn.Sequential(
                *(up(latent, hidden), Norm(True), up(hidden, hidden), Norm(True)),
                *(up(hidden, hidden), Norm(True), up(hidden, channels)),
            )
            self.density = Density()

        def forward(self, x):
            height, width = x.shape[2:]
            y = self.analysis(fn.pad(x, (0, -width % 16, 0, -height % 16)))
            y = y + torch.rand_like(y) - 0.5
            return self.synthesis(y)[:, :, :height, :width], self.density(y)

    return Codec()


if __name__ == "__main__":
    main()
