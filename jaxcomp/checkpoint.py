"""Saving and loading the Orbax checkpoints of a run.

A run's folder `checkpoints/` holds one numbered folder per saved step: the train state as arrays
and, beside it, a JSON record (position in the data, counters, best step). Both are committed by one
rename, so a killed process leaves either all or nothing of a step. The latest steps and the best
one are kept.

Weights that travel are single files, see `weights_file`; `load_frozen` reads either.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxcomp import processes
from jaxcomp.errors import CheckpointError
from jaxcomp.trees import check_same, leaves_by_path, tree_digest
from jaxcomp.types import PyTree
from jaxcomp.weights_file import load_npz
from jaxcomp.workdir import disk_errors

_LOG = logging.getLogger("jaxcomp")
_DISK_WORDS = {  # what storage layers say: what it means
    "no space left": "the disk is full; free some space",
    "resource_exhausted": "the disk is full; free some space",
    "disk quota": "the disk quota is used up; free some space",
    "read-only file system": "the file system is read-only; choose another --workdir",
    "permission denied": "permission is denied; choose another --workdir or change its mode",
}


class _KeepLatestAndBest:
    """Orbax preservation policy: the newest `keep` steps and the best one."""

    def __init__(self, keep: int):
        self.keep = keep
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One flag per checkpoint, oldest first."""
        newest = len(checkpoints) - self.keep
        return [i >= newest or c.step == self.best for i, c in enumerate(checkpoints)]


@contextlib.contextmanager
def _orbax_errors(path: Path) -> Iterator[None]:
    """Words what the storage layers say about full disks and forbidden places."""
    with disk_errors(path):
        try:
            yield
        except (ValueError, RuntimeError) as error:
            text = str(error).lower()
            reason = next((fix for word, fix in _DISK_WORDS.items() if word in text), None)
            if reason is not None:
                raise CheckpointError(f"Cannot write {str(path)!r}: {reason}.") from error
            raise


class Checkpointer:
    """The checkpoints of one run; also a context manager that waits for the last save.

    Attributes:
      path: the folder that holds the numbered steps.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2):
        """Opens or makes the folder.

        Args:
          path: the folder.
          keep: how many of the newest steps to keep beside the best; at least two, so that there
            is one to fall back to.

        Raises:
          CheckpointError: the place cannot be written.
        """
        self.path = Path(path).absolute()
        self._policy = _KeepLatestAndBest(max(keep, 2))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True
        )
        with _orbax_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handlers = {
                "state": ocp.StandardCheckpointHandler(),
                "extra": ocp.JsonCheckpointHandler(),
            }
            self._manager = ocp.CheckpointManager(
                self.path, options=options, item_handlers=handlers
            )

    def steps(self) -> list[int]:
        """The steps on disk, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, extra: Mapping[str, Any], best: int | None) -> None:
        """Starts saving in the background; returns as soon as the arrays are copied.

        Args:
          step: the number to save under, larger than any before.
          state: a tree of arrays.
          extra: JSON-serialisable record.
          best: the step that must be kept (may be this one).

        Raises:
          CheckpointError: this save or the one before could not be written.
        """
        self._policy.best = best
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(dict(extra))
        )
        with _orbax_errors(self.path):
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Blocks until everything is on disk; raises `CheckpointError` if it could not be."""
        with _orbax_errors(self.path):
            self._manager.wait_until_finished()

    def restore(self, like: PyTree, step: int) -> tuple[PyTree, dict[str, Any]]:
        """Reads one step.

        Args:
          like: a tree of arrays with the structure, shapes, dtypes and shardings to restore to.
          step: one of `steps()`.

        Returns:
          (the state, the JSON record).

        Raises:
          CheckpointError: the step is missing, cannot be read or is of another model.
        """
        self.wait()
        if step not in self._manager.all_steps():
            raise CheckpointError(f"{str(self.path)!r} has no step {step}, only {self.steps()}.")
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            metadata = self._manager.item_metadata(step)["state"]
            found = leaves_by_path(getattr(metadata, "tree", metadata))
        except Exception as error:
            raise self._unreadable(step, error) from error
        check_same(found, leaves_by_path(wanted), self.path / str(step))
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(wanted), extra=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:
            raise self._unreadable(step, error) from error
        return restored["state"], restored["extra"]

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        return CheckpointError(
            f"{str(self.path / str(step))!r} is truncated or damaged ({reason}). "
            "Remove it to use an earlier one."
        )

    def restore_latest(self, like: PyTree) -> tuple[PyTree, dict[str, Any], int] | None:
        """Reads the newest step that can be read, removing damaged newer ones with a warning.

        Several processes agree on one step, which the first one chooses.

        Args:
          like: as in `restore`.

        Returns:
          (the state, the JSON record, the step), or None if nothing was ever saved.

        Raises:
          CheckpointError: there are steps but none can be read, or they are of another model.
          ProcessError: the processes do not see the same steps, or the first one can read none.
        """
        if processes.count() > 1:
            return self._restore_agreed(like)
        failure: CheckpointError | None = None
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                state, extra = self.restore(like, step)
            except CheckpointError as error:
                if "truncated or damaged" not in str(error):
                    raise
                failure, damaged = error, [*damaged, step]
                continue
            self._drop(damaged, step)
            return state, extra, step
        if failure is not None:
            raise failure
        return None

    def _restore_agreed(self, like: PyTree) -> tuple[PyTree, dict[str, Any], int] | None:
        """`restore_latest` of several processes.

        Each reads its own part of the arrays, so that one may see damage where another sees none:
        the first process reads everything beforehand, alone, and says which step it is.
        """
        self.wait()
        found = processes.from_primary(self._newest_readable, "checkpoint")
        if found is None:
            return None
        step, damaged = found
        processes.check_agreement(
            str(self.steps()), "list of checkpoints",
            "all of them must see the same run directory; start them again",
        )  # fmt: skip
        state, extra = self.restore(like, step)
        self._drop(damaged, step)
        return state, extra, step

    def _newest_readable(self) -> tuple[int, list[int]] | None:
        """(the newest step of which every byte can be read, damaged newer ones), None without any.

        Raises:
          CheckpointError: there are steps, but none can be read.
        """
        failure: CheckpointError | None = None
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                _read_step(self.path / str(step))
            except Exception as error:
                failure, damaged = self._unreadable(step, error), [*damaged, step]
                continue
            return step, damaged
        if failure is not None:
            raise failure
        return None

    def _drop(self, damaged: Sequence[int], step: int) -> None:
        """Removes steps that cannot be read, newer than `step`, which is used instead."""
        for bad in damaged:
            _LOG.warning("Checkpoint %d is damaged; going back to step %d.", bad, step)
            self._manager.delete(bad)

    def close(self) -> None:
        """Waits for the last save and frees the manager's threads."""
        with _orbax_errors(self.path):
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self.close()
        except CheckpointError:
            if kind is None:  # else the first error says what happened
                raise


def _read_step(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(train state as numpy arrays, record) of a saved step, read by this process alone."""
    record = json.loads((folder / "extra" / "metadata").read_text())
    alone = ocp.options.MultiprocessingOptions(
        primary_host=processes.index(), active_processes={processes.index()}
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        found = reader.metadata(folder / "state").item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found)
        state = reader.restore(folder / "state", ocp.args.PyTreeRestore(restore_args=numpy))
    return state, record


def load_frozen(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Reads trained weights from an `.npz` file or from the best checkpoint of a run directory.

    One of several processes may do so alone.

    Args:
      path: an `.npz`, a run directory (with `checkpoints/`) or its `checkpoints/` folder.

    Returns:
      (variables, metadata, digest). From a run: variables = {"params": …, "stats": …} as nested
      dictionaries of numpy arrays, metadata = {"config": …, "step": …, "record": …}, where the
      record is that of the newest checkpoint (`progress.Progress`). From a file: what `export_npz`
      was given. The digest is `tree_digest(variables)`.

    Raises:
      CheckpointError: missing, truncated or damaged.
    """
    path = Path(path).absolute()  # Orbax finds no metadata below a relative one
    if not path.exists():
        raise CheckpointError(f"{str(path)!r} does not exist; give an .npz or a run directory.")
    if path.is_file():
        tree, meta = load_npz(path)
        return tree, meta, meta["digest"]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    if not steps:
        raise CheckpointError(
            f"{str(path)!r} holds no checkpoint; give an .npz or a run directory."
        )
    try:
        record = json.loads((folder / str(steps[-1]) / "extra" / "metadata").read_text())
        best = record.get("best", {}).get("step")
        step = best if best in steps else steps[-1]
        state, _ = _read_step(folder / str(step))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError(f"{str(path)!r} is truncated or damaged ({reason}).") from error
    variables = {"params": state["params"], "stats": state["stats"]}
    config = folder.parent / "config.json"
    meta = {
        "step": step,
        "config": json.loads(config.read_text()) if config.is_file() else {},
        "record": record,
    }
    return variables, meta, tree_digest(variables)


def load_params(path: str | os.PathLike[str]) -> PyTree:
    """The parameters alone, from the same places as `load_frozen`.

    Args:
      path: as in `load_frozen`.

    Returns:
      Nested dictionaries of numpy arrays.

    Raises:
      CheckpointError: missing, truncated, damaged or without parameters.
    """
    variables, _, _ = load_frozen(path)
    if "params" not in variables:
        raise CheckpointError(f"{str(path)!r} holds {sorted(variables)}, but no 'params'.")
    return variables["params"]
