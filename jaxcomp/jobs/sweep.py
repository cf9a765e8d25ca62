"""A sweep: many runs of the main command, one directory each, that end as curves.

    ROOT/MEMBER/rate_0.01/            a run of a codec for the whole pyramid
    ROOT/MEMBER/rate_0.01/level_2/    one of five runs of codecs for single levels
    ROOT/features/                    what the frozen detector computes, once for all runs
    ROOT/sweep.json, sweep.csv        a row for each run

Every run is a process of its own. What is finished is skipped, what was interrupted goes on.

A member may be `chained`: the run of its smallest rate weight trains from scratch, each further one
starts from the codec before it and trains for `chained_epochs`. Its runs then follow one another;
different members still run side by side. A member with `after` names another one: each of its runs
starts from the run of that member with as small a rate weight, and also trains for that share.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from jaxcomp import config as config_lib
from jaxcomp.errors import ConfigError, JaxcompError
from jaxcomp.jobs.children import POLL, Children
from jaxcomp.workdir import atomic_write, json_text

SUMMARY = "summary.json"
CODEC = "codec.npz"
_COLUMNS = (
    *("member", "rate_weight", "level", "state", "bytes_per_frame", "bpp_image", "bits_per_value"),
    *("estimated_bits", "actual_bits", "relative_mse", "map50_uncompressed", "map50", "seconds"),
    *("uncoded_knn", "knn", "uncoded_linear", "linear"),  # of tokens
)


class SweepInterrupted(JaxcompError):
    """A signal ended the sweep; its runs have ended, and go on when it is started again.

    Attributes:
      signum: the signal.
    """

    def __init__(self, signum: int):
        name = signal.Signals(signum).name
        super().__init__(f"{name}: interrupted; the same command goes on from here")
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
      member: name of the curve.
      rate_weight: of the loss.
      level: pyramid level, None for a codec of all levels.
      folder: its run directory.
      arguments: of `python -m jaxcomp.main`.
      after: the folder of the run that it starts from, None if it starts from scratch.
      chain: member and level of the chain that it belongs to, or follows.
    """

    member: str
    rate_weight: float
    level: int | None
    folder: Path
    arguments: tuple[str, ...]
    after: Path | None = None
    chain: tuple[str, int | None] = ("", None)

    @property
    def finished(self) -> bool:
        """Whether its summary is there.

        Raises:
          ConfigError: it is that of a run with another config.
        """
        path = self.folder / SUMMARY
        if not path.exists():
            return False
        content = summary(self)
        stored = content.get("config_digest")
        if stored is not None and stored != config_lib.digest(self.config):
            _check_same(self, content.get("config") or {})
        return True

    @functools.cached_property
    def config(self) -> Any:
        """The config that its arguments give."""
        spec, overrides, _ = config_lib.split_argv(self.arguments)
        assert spec is not None  # `plan` gives it
        return config_lib.load_config(spec, overrides)

    @property
    def name(self) -> str:
        """How messages call it."""
        level = "" if self.level is None else f" level {self.level}"
        return f"{self.member} rate {self.rate_weight:g}{level}"

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.folder.with_name(self.folder.name + ".log")


def _check_same(run: Run, stored: dict[str, Any]) -> None:
    """Raises `ConfigError` unless two configs differ only in where the sweep's folder is."""
    own = json.loads(json_text(json.loads(config_lib.to_json(run.config))))
    before, now = (dict(_comparable(tree)) for tree in (stored, own))
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"{os.fspath(run.folder)!r} holds a finished run with another config "
            f"({', '.join(changed[:3])}{more}); give another --config.sweep.root=FOLDER, "
            "or remove this folder to train it anew"
        )


def _comparable(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What changes results; of a path within the sweep only the part below its folder."""
    for key, value in config_lib.result_keys(tree).items():
        if key == "model.initial":
            value = Path(value).parts[-3:]
        if key != "data.feature_store":
            yield key, value


def plan(config: Any) -> list[Run]:
    """The runs of a sweep config, those of a chain in their order.

    Args:
      config: the `sweep` section: `root`, `overrides` of all runs, and `members`: {name: {config,
        rate_weights, levels, epochs, overrides, chained_epochs, after}}; see
        `configs/fpn_lambda_sweep.py`.
    """
    root, runs = Path(config.root), []
    for name, member in sorted(config.members.items(), key=lambda item: bool(item[1].after)):
        weights = sorted(float(x) for x in member.rate_weights)
        for i, level in enumerate(tuple(member.levels) or (None,)):
            common = [*config.overrides, *member.overrides]
            if config.store_features:
                common.append(f"data.feature_store={root / 'features'}")
            epochs = member.epochs[i] if member.epochs else 0
            first = [
                r for r in runs if member.after and (r.member, r.level) == (member.after, level)
            ]
            runs += _chain(root / name, name, member, weights, level, common, epochs, first)
    return runs


def _chain(
    root: Path,
    name: str,
    member: Any,
    weights: Sequence[float],
    level: int | None,
    common: Sequence[str],
    epochs: int,
    first: Sequence[Run],
) -> list[Run]:
    """The runs of one codec from the smallest rate weight on; `epochs` 0 means the config's."""
    runs: list[Run] = []
    spec = member.config if level is None else _with_argument(member.config, f"level={level}")
    for i, weight in enumerate(weights):
        folder = root / f"rate_{weight:g}"
        if level is not None:
            folder = folder / f"level_{level}"
        own, previous = [f"training.rate_weight={weight!r}"], None
        if first or (runs and member.chained_epochs):
            previous = (first[i] if first else runs[-1]).folder
            own.append(f"model.initial={previous / CODEC}")
        share = member.chained_epochs if previous else 1.0
        if epochs:
            own.append(f"training.epochs={max(1, round(share * epochs))}")
        words = [f"--config={spec}", f"--workdir={folder}"]
        words += [f"--config.{override}" for override in (*common, *own)]
        chain = (member.after or name, level)
        runs.append(Run(name, weight, level, folder, tuple(words), previous, chain))
    return runs


def _with_argument(spec: str, argument: str) -> str:
    return f"{spec},{argument}" if ":" in spec else f"{spec}:{argument}"


def shard(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """The part of a sweep that one of `count` hosts does; chains stay together.

    Raises:
      ConfigError: there is no such part.
    """
    if not 0 <= index < count:
        raise ConfigError(f"--shard={index}/{count}: the index goes from 0 to {count - 1}")
    chains = list(dict.fromkeys(run.chain for run in runs))
    mine = {chain for i, chain in enumerate(chains) if i % count == index}
    return [run for run in runs if run.chain in mine]


def report_command(config: Any) -> list[str]:
    """The words that measure all codecs of a sweep beside the anchors."""
    anchors = ",".join(config.anchors) or "none"
    words = [sys.executable, "-m", "jaxcomp", "evaluate", config.root]
    return [*words, f"--out={config.root.rstrip('/')}_report", f"--anchors={anchors}"]


class Sweep:
    """Runs processes side by side, each chain in its order.

    A signal to it goes on to them; they save, and go on when the sweep is started again.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        jobs: int = 1,
        devices: Sequence[str] = (),
        say: Callable[[str], None] = print,
        result: Callable[[Run], str] | None = None,
    ):
        """Describes it.

        Args:
          runs: from `plan`.
          jobs: processes at a time.
          devices: accelerators, by number; each process sees one (CUDA_VISIBLE_DEVICES).
          say: prints a line.
          result: what that line tells of a finished run; None: bytes and mAP.
        """
        self.runs, self.jobs, self.devices, self.say = list(runs), jobs, tuple(devices), say
        self.result = result or _result
        self._children = Children()
        self._done = 0

    def start(self) -> list[Run]:
        """Does what is not finished; returns the runs that failed, and those that wait for them.

        Raises:
          SweepInterrupted: SIGINT, SIGTERM or SIGHUP came, and the runs have saved and ended.
        """
        chains: dict[tuple[str, int | None], list[Run]] = {}
        for run in self.runs:
            chains.setdefault((run.member, run.level), []).append(run)
        after = {key: chain[0].chain for key, chain in chains.items() if chain[0].chain != key}
        pending: list[Future[list[Run]]] = []
        told, pool = self._children.told(), ThreadPoolExecutor(max_workers=self.jobs)

        def follow(key: tuple[str, int | None]) -> list[Run]:
            left = self._chain(chains[key])
            for other in (k for k, first in after.items() if first == key):
                pending.append(pool.submit(follow, other))
            return left

        with told, pool:
            # One whose first runs are no part of this call starts at once, or says that it waits.
            pending += [pool.submit(follow, k) for k in chains if after.get(k) not in chains]
            while wait(pending, timeout=POLL).not_done or not all(f.done() for f in pending):
                if self._children.stop_if_told():
                    self.say("interrupted: the runs save and end, which can take a while")
        if self._children.signum is not None:
            raise SweepInterrupted(self._children.signum)
        return [run for one in pending for run in one.result()]

    def _chain(self, chain: Sequence[Run]) -> list[Run]:
        for i, run in enumerate(chain):
            if self._children.stopped:
                return list(chain[i:])
            if not run.finished and not (self._can_start(run) and self._run(run)):
                return list(chain[i:])
            with self._children.lock:
                self._done += 1
                self.say(f"[{self._done}/{len(self.runs)}] {run.name}: {self.result(run)}")
        return []

    def _can_start(self, run: Run) -> bool:
        if run.after is None or (run.after / SUMMARY).exists():
            return True
        with self._children.lock:
            self.say(f"{run.name} waits for {run.after}, which is not finished")
        return False

    def _run(self, run: Run) -> bool:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        with self._children.lock:  # no other thread takes the same device
            if self.devices:
                used = {getattr(p, "device", None) for p in self._children.running}
                free = [d for d in self.devices if d not in used]
                environment["CUDA_VISIBLE_DEVICES"] = free[0]
            with run.log.open("ab") as log:
                process = self._children.start(
                    command(run), stdout=log, stderr=subprocess.STDOUT, env=environment
                )
            if process is None:
                return False
            process.device = environment.get("CUDA_VISIBLE_DEVICES")  # type: ignore[attr-defined]
        return self._children.wait(process) == 0 and run.finished


def report(config: Any) -> int:
    """Measures all codecs of a sweep (`report_command`); returns the exit status.

    Raises:
      SweepInterrupted: a signal came, and the process has ended.
    """
    children = Children()
    with children.told():
        status = children.run(report_command(config))
    if children.signum is not None:
        raise SweepInterrupted(children.signum)
    return status


def command(run: Run) -> list[str]:
    """The words that start a run."""
    return [sys.executable, "-m", "jaxcomp.main", "--config.log.progress=False", *run.arguments]


def shell_line(run: Run) -> str:
    """The same, to be pasted into a shell."""
    return shlex.join(["python", *command(run)[1:]])


def summary(run: Run) -> dict[str, Any]:
    """What a finished run has stored; empty before."""
    try:
        return json.loads((run.folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return {}


def _result(run: Run) -> str:
    content = summary(run)
    if "knn" in content:
        return (
            f"{content['bytes_per_frame']:,.0f} bytes a picture, k-NN {content['knn']:.3f} "
            f"(uncoded {content['uncoded_knn']:.3f})"
        )
    return (
        f"{content.get('bytes_per_frame', float('nan')):,.0f} bytes a frame, "
        f"mAP {content.get('map50', float('nan')):.3f} "
        f"(uncompressed {content.get('map50_uncompressed', float('nan')):.3f})"
    )


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run, finished or not."""
    table = []
    for run in runs:
        content = summary(run)
        known = {key: content.get(key) for key in _COLUMNS}
        state = "finished" if content else "started" if run.folder.is_dir() else "waiting"
        table.append(
            known
            | {"member": run.member, "rate_weight": run.rate_weight, "level": run.level}
            | {"state": state}
        )
    return table


def write_table(root: Path, runs: Sequence[Run]) -> Path:
    """Writes `sweep.json` and `sweep.csv`; returns the latter."""
    table = rows(runs)
    atomic_write(root / "sweep.json", json_text(table))
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(table)
    atomic_write(root / "sweep.csv", text.getvalue())
    return root / "sweep.csv"
