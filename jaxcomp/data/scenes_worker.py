"""Renders frames in worker processes that talk through pipes.

Plain subprocesses of `python -m jaxcomp.data.scenes_worker` rather than `multiprocessing`: they
never import the caller's `__main__`, so they start in a fraction of a second and work from scripts
without a main guard, `python -m` programs, notebooks and standard input alike. Worker k renders the
frames k, k + n, k + 2n, ...; a pipe that is full makes it wait, which bounds the memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Iterator

from jaxcomp.data import scenes_frame
from jaxcomp.errors import DataError


def examples(
    settings: scenes_frame.SceneSettings, split: str, size: int, workers: int = 1
) -> Iterator[tuple[int, dict]]:
    """Yields (index, example) in order; the bytes do not depend on `workers`.

    Raises:
      DataError: a worker process died.
    """
    if workers <= 1:
        for index in range(size):
            yield index, scenes_frame.frame_example(settings, split, index)
        return
    pool = [_start(settings, split, size, k, workers) for k in range(min(workers, size))]
    try:
        for index in range(size):
            yield index, _receive(pool[index % len(pool)], split, index)
    finally:
        for process in pool:
            process.kill()
            process.stdout.close()
            process.wait()


def _start(settings, split: str, size: int, first: int, step: int) -> subprocess.Popen:
    job = {"settings": dataclasses.asdict(settings), "split": split,
           "indices": [first, size, min(step, size)]}  # fmt: skip
    root = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "jaxcomp.data.scenes_worker", json.dumps(job)]
    # The arrays are small: threads inside a worker would only fight the other workers.
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def _receive(process: subprocess.Popen, split: str, index: int) -> dict:
    try:
        return pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"scenes: the worker that renders {split} frame {index} ended early "
            f"(exit code {process.wait()}); set data.workers=1 to see its error here"
        ) from error


def main(arguments: list[str]) -> None:
    """Writes the examples of one job to standard output, one pickle each."""
    job = json.loads(arguments[0])
    settings = scenes_frame.SceneSettings(**job["settings"])
    out = sys.stdout.buffer
    try:
        for index in range(*job["indices"]):
            pickle.dump(scenes_frame.frame_example(settings, job["split"], index), out)
            out.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # the reader is gone: nothing is left to say, and nobody to say it to


if __name__ == "__main__":
    main(sys.argv[1:])
