"""What a workload hands to the main command: the task, its data and what follows training."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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


def variables_of(params: PyTree, stats: PyTree) -> dict[str, PyTree]:
    """Flax variables from the two halves of a train state."""
    return {"params": params, **stats}


def canvas_of(config: Any) -> tuple[int, int]:
    """(rows, columns) of the network's input."""
    return config.data.height, config.data.width
