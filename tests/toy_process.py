"""Trains the toy as one of several processes: a script for the tests of `jaxcomp.processes`.

arguments: workdir, out file, then words KEY=VALUE of `toy.config`, and of these:
  pause=SECONDS            before each batch is read
  bad=I                    process I cannot read the training batch of the seventh step
  wide=1                   the toy with a hidden layer
  coordinator, processes, process_id, as of the main command
"""

import json
import sys
import time

import numpy as np
import toy

from jaxcomp import processes
from jaxcomp.errors import DataError, JaxcompError
from jaxcomp.progress import Interrupted

ROWS, INTERRUPTED, FAILED = 40, 3, 4


def splits(batch_size, pause, bad):
    """The toy's rows, read slowly, if at all."""
    from jaxcomp.data.pipeline import make_data_splits

    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 3)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32)

    reads = []

    def gather(rows, draws):
        time.sleep(pause)
        reads.append(draws is not None)
        if bad and sum(reads) == 7:
            raise DataError("frame 000007.png is truncated; copy it again")
        noise = 0 if draws is None else draws.uniform(-0.1, 0.1, (len(rows), 3))
        return {"x": (x[rows] + noise).astype(np.float32), "y": y[rows]}

    return make_data_splits((gather, ROWS), (gather, 11), batch_size, seed=0)


def main(workdir, out, *words):
    """Returns the exit status."""
    options = dict(word.split("=", 1) for word in words)
    pause = float(options.pop("pause", 0))
    bad = int(options.pop("bad", -1))
    task = toy.WideToy() if options.pop("wide", "") else toy.Toy()
    coordinator = options.pop("coordinator", "")
    count, index = int(options.pop("processes", 1)), int(options.pop("process_id", 0))
    try:
        if coordinator:
            processes.join(coordinator, count, index, timeout=60)
        from jaxcomp.train import fit
        from jaxcomp.trees import tree_digest

        config = toy.config(**{k.replace(".", "__"): v for k, v in options.items()})
        data = splits(config.training.batch_size, pause, bad == index)
        result = fit(task, config, data, workdir)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return INTERRUPTED
    except JaxcompError as error:
        processes.tell_failure(error)
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if processes.is_primary():
        record = {"digest": tree_digest(result.state), "history": result.history}
        with open(out, "w") as file:
            json.dump(record | {"steps": result.steps}, file)
    processes.wait_for_all("the end")
    return 0


if __name__ == "__main__":
    processes.end(main(*sys.argv[1:]))
