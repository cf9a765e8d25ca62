"""A tiny task and data set for tests of the trainer; also a script that trains it."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import config as config_lib
from jaxcomp.types import DataSplits, LossAux

ROWS = 40


class Endless:
    """Shuffled batches for ever; each epoch's order is a function of (seed, epoch)."""

    def __init__(self, batch_size: int, seed: int = 0, rows: int = ROWS):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(rows, 3)).astype(np.float32)
        self.y = self.x @ np.array([[1.0], [-2.0], [0.5]], np.float32)
        self.size, self.seed, self.position = batch_size, seed, 0

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def __iter__(self):
        return self

    def __next__(self):
        each = len(self.x) // self.size
        epoch, i = divmod(self.position, each)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.x))
        rows = order[i * self.size : (i + 1) * self.size]
        self.position += 1
        return {"x": self.x[rows], "y": self.y[rows], "mask": np.ones(len(rows), np.float32)}


def splits(batch_size: int = 8) -> DataSplits:
    def validation():
        source = Endless(batch_size, rows=batch_size * 2)
        for i in range(2):
            batch = next(source)
            if i:  # the last batch is half padding, whose content must not matter
                batch["mask"][batch_size // 2 :] = 0
                batch["y"][batch_size // 2 :] = 1e6
            yield batch

    return DataSplits(lambda: Endless(batch_size), ROWS // batch_size, validation)


class Toy:
    """Linear regression with noise from the step's key and an average of the weights in `stats`."""

    def __init__(self, noise: float = 0.01, mask=None, bad_step: int = -1):
        self.noise, self.mask, self.bad_step = noise, mask, bad_step

    def init(self, rng, batch):
        w = jax.random.normal(rng, (batch["x"].shape[1], 1))
        params = {"dense": {"kernel": w, "bias": jnp.zeros((1,))}}
        return params, {"ema": params}, {"scale": jnp.ones(())}

    def _error(self, params, frozen, batch):
        dense = params["dense"]
        out = batch["x"] @ dense["kernel"] * frozen["scale"] + dense["bias"][None]
        return jnp.square(out - batch["y"])[:, 0]

    def loss(self, params, stats, frozen, batch, rng, step):
        noise = self.noise * jax.random.normal(rng, ())
        mse = jnp.mean(self._error(params, frozen, batch))
        loss = mse + noise * jnp.sum(params["dense"]["bias"])
        kernel = params["dense"]["kernel"]
        loss += jnp.where(step == self.bad_step, jnp.nan, 0.0) * jnp.sum(kernel)
        return loss, LossAux(
            metrics={"mse": mse, "feature_max": {"L2": jnp.max(batch["x"])}}, stats=stats
        )

    def eval_loss(self, params, stats, frozen, batch):
        error = self._error(params, frozen, batch) * batch["mask"]
        return {"count": jnp.sum(batch["mask"]), "loss": jnp.sum(error), "mse": jnp.sum(error)}

    def after_update(self, params, stats, step):
        return {"ema": jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, stats["ema"], params)}

    def update_mask(self, params, step):
        return self.mask


class WideToy(Toy):
    """The toy with a hidden layer, of which arrays are large enough to be shared out."""

    HIDDEN = 512

    def init(self, rng, batch):
        first, second = jax.random.split(rng)
        inputs = batch["x"].shape[1]
        params = {
            "hidden": 0.3 * jax.random.normal(first, (inputs, self.HIDDEN)),
            "dense": {
                "kernel": 0.03 * jax.random.normal(second, (self.HIDDEN, 4)),
                "bias": jnp.zeros((4,)),
            },
        }
        return params, {"ema": params}, {"scale": jnp.ones(())}

    def _error(self, params, frozen, batch):
        batch = {**batch, "x": jnp.tanh(batch["x"] @ params["hidden"])}
        return super()._error(params, frozen, batch)


def config(**changes):
    made = config_lib.base_config()
    overrides = {
        "data.train_size": ROWS,
        "training.epochs": 6,
        "training.learning_rate": 0.05,
        "log.every_steps": 2,
        "log.progress": False,
    } | {k.replace("__", "."): v for k, v in changes.items()}
    changed = config_lib.apply_overrides(made, [f"{k}={v}" for k, v in overrides.items()])
    return config_lib.validate(changed)


def main(workdir: str, out: str, *overrides: str) -> None:
    """Trains the toy and writes its digest and history; run it again to resume."""
    from jaxcomp.train import fit
    from jaxcomp.trees import tree_digest

    changes = dict(o.split("=") for o in overrides)
    result = fit(Toy(), config(**changes), splits(), workdir)
    record = {"digest": tree_digest(result.state), "history": result.history, "steps": result.steps}
    with open(out, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
