#!/usr/bin/env python3
"""Trains the codecs of a sweep, then measures them beside the anchors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jaxcomp.errors import ConfigError  # noqa: E402
from jaxcomp.jobs import sweep  # noqa: E402
from jaxcomp.jobs.scripts import chosen, run_script  # noqa: E402

DESCRIPTION = """\
Trains every codec of a sweep in a process of its own, one after the other or side by side, and ends
with the tables and the page of rate against accuracy. Finished runs are skipped, interrupted ones
go on: start the same command again. SIGINT, SIGTERM and SIGHUP are handed on: the runs save and
end, then this ends with 130, 143 or 129.

  python launch/sweep.py --config=configs/fpn_lambda_sweep.py
  python launch/sweep.py --config=configs/fpn_lambda_sweep.py --only=random,random_task --jobs=2
  python launch/sweep.py --config=configs/fpn_lambda_sweep.py --devices=0,1,2,3     # GPUs
  python launch/sweep.py --config=configs/fpn_lambda_sweep.py --shard=0/4           # one of 4 hosts
  python launch/sweep.py --config=configs/fpn_lambda_sweep.py --report-only         # afterwards
"""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    words = argparse.ArgumentParser(
        "launch/sweep.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("--jobs", type=int, default=0, help="processes at a time (default 1)")
    words.add_argument("--devices", default="", help="accelerators, as 0,1: a process on each")
    words.add_argument("--only", default="", help="members to run, as joint,random_task")
    words.add_argument("--shard", default="0/1", metavar="I/N", help="the I-th of N parts")
    words.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    words.add_argument("--no-report", action="store_true", help="train only")
    words.add_argument("--report-only", action="store_true", help="measure what is finished")
    return words


def main(argv: Sequence[str]) -> int:
    """Runs a sweep; returns the exit status."""
    return run_script(argv, "sweep", "configs/fpn_lambda_sweep.py", parser(), run)


def run(config, args: argparse.Namespace) -> int:
    """Trains, tabulates and measures."""
    runs = sweep.plan(config)
    mine = sweep.shard(_chosen(runs, args.only), *_part(args.shard))
    if args.dry_run:
        print("\n".join(sweep.shell_line(one) for one in mine))
        return 0
    devices, jobs = _places(args)
    finished = {one.folder for one in runs if one.finished}  # before hours of training, not after
    left = [one for one in mine if one.folder not in finished]
    root = Path(config.root)
    root.mkdir(parents=True, exist_ok=True)
    failed = []
    if not args.report_only:
        print(f"{len(mine)} runs, {len(mine) - len(left)} finished, {jobs} at a time, in {root}")
        failed = sweep.Sweep(mine, jobs=jobs, devices=devices).start()
    print(sweep.write_table(root, runs))
    for one in failed:
        print(f"not finished: {one.name}, see {one.log}", file=sys.stderr)
    if not args.no_report and args.shard == "0/1" and any(one.finished for one in runs):
        status = sweep.report(config)
        return status or (1 if failed else 0)
    return 1 if failed else 0


def _places(args: argparse.Namespace) -> tuple[list[str], int]:
    """The accelerators, and how many processes there are at a time."""
    devices = [d.strip() for d in args.devices.split(",") if d.strip()]
    twice = next((d for d in devices if devices.count(d) > 1), None)
    if twice is not None:
        raise ConfigError(f"--devices={args.devices}: {twice} is there twice; name each once")
    if args.jobs < 0:
        raise ConfigError(f"--jobs={args.jobs}: give a number from 1")
    jobs = args.jobs or len(devices) or 1
    if devices and jobs > len(devices):
        raise ConfigError(f"--jobs={jobs} for {len(devices)} devices; give as many at most")
    return devices, jobs


def _chosen(runs, only: str):
    names = chosen(only, list(dict.fromkeys(one.member for one in runs)))
    return [one for one in runs if one.member in names]


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise ConfigError(f"--shard={text}: give I/N, as 0/4")
    return int(index), int(count)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
