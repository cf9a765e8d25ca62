"""Runs main commands one after another as one of several processes: a script for tests.

arguments: a JSON file of command lines, the coordinator, how many processes, the index of this one.
It ends with status 1 at the first command that fails.
"""

import json
import sys

from jaxcomp import main, processes


def run(file, coordinator, count, index):
    """Returns the exit status."""
    with open(file) as lines:
        commands = json.load(lines)
    first = [f"--coordinator={coordinator}", f"--processes={count}", f"--process_id={index}"]
    for argv in commands:  # they meet once
        status = main.main([*argv, *first])
        if status:
            print(f"status {status}: {argv}", file=sys.stderr)
            return status
        first = []
    return 0


if __name__ == "__main__":
    processes.end(run(*sys.argv[1:]))
