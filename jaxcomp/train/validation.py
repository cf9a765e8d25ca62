"""Averages of a task's `eval_loss` over the validation data."""

from __future__ import annotations

import contextlib

import jax

from jaxcomp import sharding
from jaxcomp.errors import DataError
from jaxcomp.feed import prefetched
from jaxcomp.train.in_flight import InFlight
from jaxcomp.types import Batch, DataSplits, Metrics, PyTree, Task, TrainState


def evaluate_loss(
    task: Task, state: TrainState, frozen: PyTree, data: DataSplits, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Validation averages over all real rows.

    Args:
      task: the workload.
      state: the state to judge.
      frozen: its frozen parameters.
      data: the splits; `validation` is read once.
      mesh: where the state lives.

    Returns:
      Each sum of `task.eval_loss` divided by the total "count".

    Raises:
      DataError: there is no validation row.
    """
    return Validator(task, data, mesh)(state, frozen)


class Validator:
    """`evaluate_loss` again and again: holds the evaluation step, so that it is compiled once."""

    def __init__(self, task: Task, data: DataSplits, mesh: jax.sharding.Mesh):

        def step(params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
            params, stats = sharding.gather(mesh, (params, stats))
            return task.eval_loss(params, stats, frozen, batch)

        self._step = jax.jit(step, out_shardings=sharding.replicated(mesh))
        self._data = data
        self._mesh = mesh

    def __call__(self, state: TrainState, frozen: PyTree) -> dict[str, float]:
        """Averages, as `evaluate_loss` returns and raises."""
        sums: dict[str, float] = {}

        def count_in(found: dict[str, float]) -> None:
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value

        in_flight = InFlight(count_in)
        batches = prefetched(self._data.validation(), lambda b: sharding.put_batch(self._mesh, b))
        with contextlib.closing(batches):
            for batch in batches:
                in_flight.add(self._step(state.params, state.stats, frozen, batch))
        in_flight.drain()
        count = sums.pop("count", 0.0)
        if not count:
            raise DataError("The validation split has no row; check config.data.val_size.")
        return {name: value / count for name, value in sums.items()}
