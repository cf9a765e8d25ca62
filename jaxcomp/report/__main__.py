"""`python -m jaxcomp.report DIR [DIR ...]`: pages and tables of runs that are there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxcomp.errors import CheckpointError, JaxcompError
from jaxcomp.report import comparison, tables, token_comparison
from jaxcomp.report.index import build_index
from jaxcomp.report.page import build_page
from jaxcomp.report.reading import read_summary


def find_run(path: Path) -> Path:
    """A run directory, or the run finished last in a folder of runs.

    Raises:
      CheckpointError: there is neither.
    """
    if (path / "summary.json").exists():
        return path
    finished = list(path.glob("*/summary.json"))
    if not finished:
        raise CheckpointError(
            f"{str(path)!r} holds no finished run (no summary.json in it or one level below); "
            "give the directory that the run printed."
        )
    return max(finished, key=lambda file: file.stat().st_mtime_ns).parent


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    words = argparse.ArgumentParser(
        "python -m jaxcomp.report",
        description="Rebuilds the pages of runs and prints their table.",
    )
    words.add_argument(
        "runs", nargs="+", type=Path, help="run directories, or folders whose last run is meant"
    )
    words.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    words.add_argument("--out", type=Path, help="also write the table as this HTML page")
    return words


def run(paths: Sequence[Path], *, markdown: bool = False, out: Path | None = None) -> None:
    """Rebuilds pages and prints the table of several runs.

    Args:
      paths: run directories, or folders of which the run finished last is taken; of folders that
        `python -m jaxcomp evaluate` made, tables, figures and page are written again.
      markdown: print a Markdown table instead of a plain one.
      out: also write the table as this page.

    Raises:
      CheckpointError: a path holds no finished run.
    """
    for made in (comparison, token_comparison):
        compared = [path for path in paths if (path / made.RESULTS).exists()]
        for path in compared:
            print(f"page: {made.rebuild(path)}")
        paths = [path for path in paths if path not in compared]
    if not paths:
        return
    runs = [find_run(path) for path in paths]
    summaries = [read_summary(run) for run in runs]
    pages = [build_page(run) for run in runs]
    if out:
        pages.append(build_index(runs, out))
    if markdown:
        print(tables.markdown_table(summaries), end="")
        return
    one = len(summaries) == 1
    print(tables.text_table(summaries[0]) if one else tables.plain_table(summaries), end="")
    print("".join(f"page: {page}\n" for page in pages), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        run(args.runs, markdown=args.markdown, out=args.out)
    except JaxcompError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
