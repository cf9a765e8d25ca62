"""The shared vocabulary: arrays, batches, features, the train state and the four protocols.

Nothing here imports another module of the package, so every room may import it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Any]  # numpy arrays outside jit, jax arrays inside
Features = Mapping[str, Any]  # {"p2": [B, H, W, C], ...}
Metrics = Mapping[str, Any]  # scalars


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes and a checkpoint saves.

    Attributes:
      step: int32 scalar, the number of optimiser steps taken.
      params: trainable parameters.
      stats: state that gradients do not move (batch statistics, feature statistics, EMA targets).
      opt: optax state.
    """

    step: Array
    params: PyTree
    stats: PyTree
    opt: PyTree


class LossAux(flax.struct.PyTreeNode):
    """What a loss returns beside its value.

    Attributes:
      metrics: name to scalar (or to a small dict of scalars); averaged over an epoch.
      stats: the new `stats` of the train state.
    """

    metrics: Metrics
    stats: PyTree


@dataclasses.dataclass(frozen=True)
class DataSplits:
    """The data as the trainer sees it.

    Attributes:
      train: makes the endless, shuffled, seeded training iterator. The iterator has `__next__`,
        `get_state() -> dict` and `set_state(dict)`, so that its position is saved and restored.
      steps_per_epoch: batches that make one epoch.
      validation: makes a fresh iterator over the held-out batches, always in the same order. The
        last batch is padded to the full size; `batch["mask"]` ([B] float32, 1 = real) marks rows.
      train_once: like `validation`, over the training rows: each once, in order, not augmented.
      fingerprint: what tells these data from others where the config alone does not; a run goes on
        with the same one only.
      sharded: `sharded(index, count)` makes the part of one of `count` processes: of each batch of
        `train` and `validation` its own rows. None: the data are for one process.
    """

    train: Callable[[], Any]
    steps_per_epoch: int
    validation: Callable[[], Iterator[Batch]]
    train_once: Callable[[], Iterator[Batch]] | None = None
    fingerprint: str = ""
    sharded: Callable[[int, int], DataSplits] | None = None


@runtime_checkable
class Task(Protocol):
    """A workload: what to optimise and how to judge it. See `jaxcomp.train` for the loop.

    A task that inherits from this class trains everything and moves nothing after an update, unless
    it says otherwise; the other methods it must have.
    """

    @abc.abstractmethod
    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """Returns (params, stats, frozen) for a batch of the training data."""
        ...

    @abc.abstractmethod
    def loss(
        self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch, rng: Array, step: Array
    ) -> tuple[Array, LossAux]:
        """The training loss (scalar, float32) and its auxiliary outputs."""
        ...

    @abc.abstractmethod
    def eval_loss(self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """Validation metrics of a batch, summed over real rows: {"count": n, "loss": sum, ...}."""
        ...

    def after_update(self, params: PyTree, stats: PyTree, step: Array) -> PyTree:
        """New stats after the optimiser step (exponential moving averages); here the same."""
        del params, step
        return stats

    def update_mask(self, params: PyTree, step: Array) -> PyTree | None:
        """A tree of 0/1 that multiplies the *update*, or None to train everything; here None."""
        del params, step
        return None


class Evaluator(Protocol):
    """Measures something users care about and returns named floats."""

    def __call__(
        self, variables: PyTree, batches: Iterable[Batch], workdir: str
    ) -> Mapping[str, float]:
        """Runs over `batches`, may write files below `workdir`."""
        ...


class SplitModel(Protocol):
    """A network cut in two, with the law `tail(head(x)) == model(x)`."""

    def head(self, variables: PyTree, batch: Batch) -> Features:
        """The part that runs at the edge."""
        ...

    def tail(
        self, variables: PyTree, features: Features, meta: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The part that runs elsewhere; `meta` holds image sizes and scales, never pixels."""
        ...


class Codec(Protocol):
    """The differentiable half of a feature codec; coding to bytes is a function on integers."""

    def analyse(self, x: Array) -> Array:
        """[B, H, W, C] features to [B, h, w, M] latents (not rounded)."""
        ...

    def synthesise(self, y: Array, shape: tuple[int, int]) -> Array:
        """[B, h, w, M] latents to [B, H, W, C] features, cropped to `shape` = (H, W)."""
        ...

    def bits(self, y: Array) -> Array:
        """[B, h, w, M] code lengths in bits (not nats)."""
        ...
