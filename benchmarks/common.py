"""What the benchmark scripts share: the record of one claim, its table and its JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def record(
    name: str,
    value: float,
    unit: str,
    *,
    peer: str | None = None,
    peer_value: float | None = None,
    goal: float | None = None,
    higher_is_better: bool = False,
) -> dict[str, Any]:
    """One measurement beside its peer.

    Args:
      name: what was measured.
      value: our figure.
      unit: its unit.
      peer: what it is compared with, measured in the same run.
      peer_value: the peer's figure, in the same unit.
      goal: the ratio value / peer_value (without a peer: the value) that is aimed at.
      higher_is_better: whether the goal is a minimum.

    Returns:
      {name, value, unit, peer, peer_value, ratio, goal, met}; absent figures are None.
    """
    ratio = value / peer_value if peer_value else None
    judged = ratio if peer is not None else value
    met = None
    if goal is not None and judged is not None:
        met = judged >= goal if higher_is_better else judged <= goal
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "goal": goal,
        "met": met,
    }


def print_table(records: Sequence[dict[str, Any]]) -> None:
    """Prints records as aligned columns."""
    head = ["name", "value", "unit", "peer", "peer_value", "ratio", "goal", "met"]
    rows = [head] + [[_text(r[key]) for key in head] for r in records]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def write_json(path: str, records: Sequence[dict[str, Any]]) -> None:
    """Writes the list of records, atomically."""
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".json", delete=False) as file:
        json.dump(list(records), file, indent=1)
    os.replace(file.name, path)


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the `--json PATH` that every benchmark takes."""
    out = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--json", metavar="PATH", help="also write the records here")
    return out


def finish(records: Sequence[dict[str, Any]], path: str | None) -> None:
    """Prints the table and writes the JSON if a path was given."""
    print(f"# {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print_table(records)
    if path:
        write_json(path, records)


def interleave(runs: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """Medians of `repeats` alternating calls, so that a slow moment of the machine hits all.

    Args:
      runs: functions that each return one measurement.
      repeats: how often to go round.
    """
    values = [[run() for run in runs] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*values, strict=True)]


class Worker:
    """One side of a comparison in its own process: a line in, the seconds of one step out.

    The script is started again with `--worker SPEC`; it answers by `serve`.
    """

    def __init__(self, script: str, spec: Mapping[str, Any], threads: int):
        """Starts it on the first `threads` processors, and takes the first step."""
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, os.path.abspath(script), "--worker", json.dumps(dict(spec))]
        if hasattr(os, "sched_getaffinity"):
            cpus = ",".join(str(c) for c in sorted(os.sched_getaffinity(0))[:threads])
            command = ["taskset", "-c", cpus, *command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.first = self.step()

    def step(self) -> float:
        """Runs one step there; seconds."""
        time.sleep(0.1)  # lets the other side's spinning threads go to sleep
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> tuple[float, float]:
        """(seconds of the first step with compilation, peak memory in MB)."""
        out, _ = self.process.communicate("end\n")
        return self.first, float(out)


def serve(step: Callable[[], object]) -> None:
    """Answers each line on stdin with the time of a step, and the end with the peak memory."""
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(seconds(step), flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def warm_seconds(call: Callable[[], object]) -> float:
    """How long the second of two calls takes."""
    call()  # untimed: the threads of the one that ran before wait actively for a while
    return seconds(call)


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median over calls in a row."""
    return statistics.median(seconds(call) for _ in range(repeats))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
