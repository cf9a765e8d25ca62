#!/usr/bin/env python3
"""Runs configs with several seeds and prints one table of means and standard deviations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jaxcomp.errors import ConfigError  # noqa: E402
from jaxcomp.jobs import seeds, sweep  # noqa: E402
from jaxcomp.jobs.scripts import chosen, run_script  # noqa: E402

DESCRIPTION = """\
Trains every variant of a config with every seed, each in a process of its own, and ends with a
table of mean and standard deviation. Finished runs are skipped, interrupted ones go on: start the
same command again.

  python launch/seeds.py --config=configs/hjepa_seeds.py --jobs=2     # pyramids of H-JEPA
  python launch/seeds.py --config=configs/featherface_seeds.py        # with and without a teacher
  python launch/seeds.py --config=configs/hjepa_seeds.py --config.seeds.seeds=0,1,2,3,4
"""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    words = argparse.ArgumentParser(
        "launch/seeds.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("--jobs", type=int, default=1, help="processes at a time")
    words.add_argument("--only", default="", help="variants to run, as none,add")
    words.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    words.add_argument("--table-only", action="store_true", help="tabulate what is finished")
    return words


def main(argv: Sequence[str]) -> int:
    """Runs it; returns the exit status."""
    return run_script(argv, "seeds", "configs/hjepa_seeds.py", parser(), run)


def run(config, args: argparse.Namespace) -> int:
    """Trains and tabulates."""
    if args.jobs < 1:
        raise ConfigError(f"--jobs={args.jobs}: give a number from 1")
    runs = seeds.plan(config)
    names = chosen(args.only, list(config.variants))
    mine = [one for one in runs if one.variant in names]
    if args.dry_run:
        print("\n".join(sweep.shell_line(one) for one in mine))
        return 0
    failed: list[sweep.Run] = []
    if not args.table_only:
        done = sum(one.finished for one in mine)
        print(f"{len(mine)} runs, {done} finished, {args.jobs} at a time, in {config.root}")
        failed = sweep.Sweep(mine, jobs=args.jobs, result=seeds.result).start()
    path = seeds.write_table(config, runs)
    print(path.read_text() + str(path))
    for one in failed:
        print(f"not finished: {one.name}, see {one.log}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
