"""What a workload hands to the main command: the task, its data and what follows training."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcomp import config as config_lib
from jaxcomp import trees, weights_file
from jaxcomp.errors import NonFiniteError
from jaxcomp.train import FitResult, Stop
from jaxcomp.types import DataSplits, PyTree, Task
from jaxcomp.workdir import atomic_write


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      task: what the trainer optimises.
      splits: the batches it sees.
      callbacks: called with a `train.EpochSummary` after every epoch.
      evaluate: `evaluate(result, workdir, progress) -> metrics` runs after training: it writes the
        weights and whatever the report shows, and returns JSON values for `summary.json`.
      fingerprint: of the data, see `DataSplits`.
      stop: see `train.fit`.
    """

    task: Task
    splits: DataSplits
    callbacks: Sequence[Callable[..., None]]
    evaluate: Callable[[FitResult, Path, Callable[[int], None]], Mapping[str, Any]]
    fingerprint: str = ""
    stop: Stop | None = None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as one compressed `.npz`, atomically.

    Raises:
      CheckpointError: the place cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(path, buffer.getvalue())


def export_weights(
    path: Path,
    variables: PyTree,
    config: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, Any],
    *,
    dtype: Any = np.float16,
    collections: Collection[str] | None = None,
) -> None:
    """Writes the weights of a run as one `.npz`, with what is needed to use them.

    Args:
      path: the file.
      variables: {"params": ..., ...}.
      config: of the run; it becomes a part of the record.
      meta: what else the reader of the file needs to know, first its "kind".
      metrics: what was measured with these weights.
      dtype: of the written numbers.
      collections: the keys of `variables` that are written in this dtype, the others stay as they
        are; None: all of them.

    Raises:
      NonFiniteError: a weight does not fit the dtype.
      CheckpointError: the place cannot be written.
    """
    names = variables if collections is None else collections
    with np.errstate(over="ignore"):
        cast = {k: jax.tree.map(lambda x: np.asarray(x, dtype), variables[k]) for k in names}
    for name, leaf in trees.leaves_by_path(cast).items():
        if not np.isfinite(leaf).all():
            raise NonFiniteError(f"weight {name!r} is not finite in {np.dtype(dtype).name}")
    whole = {"config": json.loads(config_lib.to_json(config)), "metrics": dict(metrics)}
    weights_file.export_npz(path, {**variables, **cast}, {**meta, **whole})


def variables_of(params: PyTree, stats: PyTree) -> dict[str, PyTree]:
    """Flax variables from the two halves of a train state."""
    return {"params": params, **stats}


def canvas_of(config: Any) -> tuple[int, int]:
    """(rows, columns) of the network's input."""
    return config.data.height, config.data.width
