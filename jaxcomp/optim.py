"""Optimisers, learning rates, plateau and early stopping.

Optimisers are optax chains whose learning rate lies in the state, so that the plateau rule can
change it between epochs and a checkpoint carries it. Plateau and early stopping are pure state
machines on the host: a state, a value, a new state.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcomp.errors import ConfigError
from jaxcomp.types import Array, PyTree


def leaf_sums_of_squares(tree: PyTree) -> Array:
    """The sum of squares of each leaf, float32, as a vector in leaf order."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.stack(squares) if squares else jnp.zeros((0,), jnp.float32)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips as `torch.nn.utils.clip_grad_norm_`: scale by min(1, max_norm / (norm + 1e-6))."""

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        norm = jnp.sqrt(jnp.sum(leaf_sums_of_squares(updates)))
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def kernels(params: PyTree) -> PyTree:
    """True for what decays when biases, norms, positions and tokens do not: the kernels."""

    def named(path: Any, leaf: Any) -> bool:
        name = str(getattr(path[-1], "key", path[-1]))
        return name == "kernel" or name.endswith("_kernel")

    return jax.tree_util.tree_map_with_path(named, params)


def weight_decay(training: Any, steps_per_epoch: int) -> float | optax.Schedule:
    """The weight decay: a number, or a half cosine to `training.weight_decay_end` if there is one.

    Args:
      training: the section `config.training`.
      steps_per_epoch: optimiser steps of one epoch.
    """
    start = training.weight_decay
    end = training.get("weight_decay_end", start)
    if end == start:
        return start
    total = max(training.epochs * steps_per_epoch, 1)

    def value(step: Any) -> Array:
        share = jnp.clip(step / total, 0.0, 1.0)
        return end + (start - end) / 2 * (1 + jnp.cos(math.pi * share))

    return value


def _rule(
    name: str,
    weight_decay: float | Array,
    momentum: float,
    b1: float | Array = 0.9,
    b2: float = 0.999,
    mask: Any = None,
) -> list[optax.GradientTransformation]:
    """The update direction, before the learning rate; `mask` says what decays."""
    none = isinstance(weight_decay, float | int) and not weight_decay
    decay = [] if none else [optax.add_decayed_weights(weight_decay, mask)]
    if name == "adam":  # coupled: the decay is part of the gradient that Adam rescales
        return [*decay, optax.scale_by_adam(b1, b2, 1e-8)]  # type: ignore[arg-type]
    if name == "adamw":  # decoupled: the decay is only multiplied by the learning rate
        return [optax.scale_by_adam(b1, b2, 1e-8), *decay]  # type: ignore[arg-type]
    if name == "sgd":
        return [*decay, optax.trace(momentum, nesterov=momentum > 0)]
    raise ConfigError(f"config.training.optimiser={name!r} is unknown. Valid: adam, adamw, sgd.")


@dataclasses.dataclass(frozen=True)
class OneCycle:
    """Shape of the one-cycle schedule (Smith and Topin, 2018), as `torch.optim.OneCycleLR` has it.

    `config.training.one_cycle` may set each field; the defaults are those of the usual lidar
    detectors. `config.training.learning_rate` is the peak.

    Attributes:
      peak_at: share of the steps after which the peak is reached.
      start_div: the rate starts at peak / start_div,
      end_div: and ends at peak / start_div / end_div.
      high: first decay rate of Adam at the start and the end,
      low: and at the peak.
      b2: second decay rate of Adam.
    """

    peak_at: float = 0.4
    start_div: float = 10.0
    end_div: float = 1e4
    high: float = 0.95
    low: float = 0.85025
    b2: float = 0.99

    def schedule(self, total: int, start: float, peak: float, end: float) -> optax.Schedule:
        """From `start` over `peak` to `end` at step total - 1, two half cosines."""
        turn, last = self.peak_at * total - 1, max(total - 1, 1)

        def value(step: Any) -> Array:
            up = jnp.clip(step / max(turn, 1e-9), 0.0, 1.0)
            down = jnp.clip((step - turn) / max(last - turn, 1e-9), 0.0, 1.0)
            first = peak + (start - peak) / 2 * (1 + jnp.cos(math.pi * up))
            second = end + (peak - end) / 2 * (1 + jnp.cos(math.pi * down))
            return jnp.where(step <= turn, first, second)

        return value

    def rates(self, peak: float, total: int) -> tuple[optax.Schedule, optax.Schedule]:
        """(learning rate, first decay rate of Adam) by step."""
        start = peak / self.start_div
        return (
            self.schedule(total, start, peak, start / self.end_div),
            self.schedule(total, self.high, self.low, self.high),
        )


def one_cycle(training: Any) -> OneCycle:
    """The shape of the schedule that a config's `training` section asks for."""
    return OneCycle(**dict(training.get("one_cycle", {})))


def learning_rate(training: Any, steps_per_epoch: int) -> float | optax.Schedule:
    """The learning rate as a number ("plateau", "constant") or as a function of the step.

    Args:
      training: the section `config.training`.
      steps_per_epoch: optimiser steps of one epoch.

    Returns:
      What `make_optimiser` gives to `optax.inject_hyperparams`.

    Raises:
      ConfigError: the schedule's name is unknown.
    """
    schedule, peak = training.lr_schedule, training.learning_rate
    total, warm = training.epochs * steps_per_epoch, schedule.warmup_epochs * steps_per_epoch
    if schedule.name in ("plateau", "constant"):
        return peak
    if schedule.name == "cosine":
        return optax.cosine_decay_schedule(peak, total, alpha=schedule.min_lr / peak)
    if schedule.name == "warmup_cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warm, total, schedule.min_lr)
    if schedule.name == "one_cycle":
        return one_cycle(training).rates(peak, total)[0]
    raise ConfigError(
        f"config.training.lr_schedule.name={schedule.name!r} is unknown. "
        "Valid: plateau, constant, cosine, warmup_cosine, one_cycle."
    )


def faster_prior(factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of `params["prior"]`.

    An entropy model starts broad and has far to go, while the transforms must move slowly: with one
    rate for both, short runs end before the model knows the latents.
    """

    def is_prior(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: getattr(path[0], "key", None) == "prior", params
        )

    return optax.masked(optax.scale(factor), is_prior)


def make_optimiser(
    training: Any, steps_per_epoch: int, momentum: float = 0.9
) -> optax.GradientTransformation:
    """Clip, weight decay, rule and learning rate, as `config.training` says.

    A workload may add `decay_kernels_only`, `weight_decay_end`, `betas` (of Adam) and
    `prior_lr_factor` to it.

    Args:
      training: the section `config.training`.
      steps_per_epoch: optimiser steps of one epoch (for schedules).
      momentum: of SGD (Nesterov, as in PyTorch).

    Returns:
      An optax transformation whose state has `hyperparams["learning_rate"]`.
    """
    mask = kernels if training.get("decay_kernels_only", False) else None
    adam_betas = training.get("betas", ())

    def whole(
        learning_rate: float | Array, decay: float | Array, *betas: Any
    ) -> optax.GradientTransformation:
        clip = [clip_by_global_norm(training.clip_norm)] if training.clip_norm else []
        rule = _rule(training.optimiser, decay, momentum, *betas, mask=mask)  # type: ignore[misc]
        faster = [faster_prior(training.prior_lr_factor)] if "prior_lr_factor" in training else []
        return optax.chain(*clip, *rule, optax.scale_by_learning_rate(learning_rate), *faster)

    def chain(learning_rate: float | Array) -> optax.GradientTransformation:
        return whole(learning_rate, training.weight_decay, *adam_betas)

    def decaying(
        learning_rate: float | Array, weight_decay: float | Array
    ) -> optax.GradientTransformation:
        return whole(learning_rate, weight_decay, *adam_betas)

    rate = learning_rate(training, steps_per_epoch)
    decay = weight_decay(training, steps_per_epoch)
    if callable(decay) and training.lr_schedule.name != "one_cycle":
        return optax.inject_hyperparams(decaying, hyperparam_dtype=jnp.float32)(
            learning_rate=rate, weight_decay=decay
        )
    if training.lr_schedule.name != "one_cycle":
        return optax.inject_hyperparams(chain, hyperparam_dtype=jnp.float32)(learning_rate=rate)
    if training.optimiser not in ("adam", "adamw"):
        raise ConfigError(
            f"config.training.optimiser={training.optimiser!r} has no one-cycle schedule here; "
            "use 'adamw' or another config.training.lr_schedule.name."
        )
    cycle = one_cycle(training)
    b1 = cycle.rates(training.learning_rate, training.epochs * steps_per_epoch)[1]

    def cycling(learning_rate: float | Array, b1: Array) -> optax.GradientTransformation:
        return whole(learning_rate, training.weight_decay, b1, cycle.b2)

    return optax.inject_hyperparams(cycling, hyperparam_dtype=jnp.float32)(
        learning_rate=rate, b1=b1
    )


class Accumulated(NamedTuple):
    """Optimiser state while gradients of several micro-batches are summed.

    Attributes:
      inner: the optimiser's own state.
      grads: the sum of the gradients so far, as the parameters.
      batches: int32, micro-batches in the sum.
      position: int32, micro-batches seen in this epoch.
    """

    inner: PyTree
    grads: PyTree
    batches: Array
    position: Array


def init_optimiser(tx: optax.GradientTransformation, params: PyTree, accumulation: int) -> PyTree:
    """The optimiser's state, wrapped in `Accumulated` where more than one batch makes a step."""
    inner = tx.init(params)
    if accumulation == 1:
        return inner
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Accumulated(inner, zeros, jnp.int32(0), jnp.int32(0))


def get_learning_rate(opt: PyTree) -> Array | None:
    """The learning rate of the last step (before the first: of the first); None without one."""
    inner = opt.inner if isinstance(opt, Accumulated) else opt
    return getattr(inner, "hyperparams", {}).get("learning_rate")


def set_learning_rate(opt: PyTree, value: float) -> PyTree:
    """The same state with another learning rate; schedules of the step overwrite it again."""
    if isinstance(opt, Accumulated):
        return opt._replace(inner=set_learning_rate(opt.inner, value))
    old = opt.hyperparams["learning_rate"]
    new = jax.device_put(jnp.asarray(value, old.dtype), old.sharding)
    return opt._replace(hyperparams={**opt.hyperparams, "learning_rate": new})


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Reduce on plateau with the semantics of `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Mode "min", relative threshold 1e-4, cooldown 0: a value is better when it is below
    best · (1 - 1e-4); `patience` + 1 values in a row that are not multiply the rate by `factor`.

    Attributes:
      lr: the learning rate now.
      best: the lowest value so far.
      bad: values since then that were not better.
    """

    lr: float
    best: float = math.inf
    bad: int = 0

    def update(self, value: float, factor: float, patience: int, min_lr: float) -> Plateau:
        """The state after one more epoch with this validation loss."""
        if value < self.best * (1.0 - 1e-4):
            return Plateau(self.lr, value, 0)
        if self.bad + 1 <= patience:
            return Plateau(self.lr, self.best, self.bad + 1)
        lower = max(self.lr * factor, min_lr)
        return Plateau(lower if self.lr - lower > 1e-8 else self.lr, self.best, 0)


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stops when the validation loss has not improved by `min_delta` for `patience` epochs.

    Attributes:
      best: the value to beat; None before the first.
      counter: epochs in a row above best - min_delta.
    """

    best: float | None = None
    counter: int = 0

    def update(self, value: float, min_delta: float) -> EarlyStopping:
        """The state after one more epoch with this validation loss."""
        if self.best is not None and not value <= self.best - min_delta:
            return EarlyStopping(self.best, self.counter + 1)
        return EarlyStopping(value, 0)

    def stop(self, patience: int) -> bool:
        """Whether to stop now; patience 0 never stops."""
        return 0 < patience <= self.counter
