"""The loop over many files: progress, what is up to date, failures by name, the summary."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import tqdm

from jaxcomp.errors import BitstreamError, DataError, NonFiniteError, ShapeError

# The fault of one file; anything else (a full disk, a wrong model) would stop all others too.
PER_FILE = (BitstreamError, DataError, NonFiniteError, ShapeError)


class Job(Protocol):
    """Something to make from a file."""

    @property
    def source(self) -> Path:
        """The file it is made of; names it in messages."""


JobT = TypeVar("JobT", bound=Job)


@dataclasses.dataclass(frozen=True)
class Done:
    """What one file gave.

    Attributes:
      line: printed where it is the only file.
      raw: bytes of its features as float32.
      coded: bytes of its stream.
      damaged: what is wrong with it although an output was made, or empty.
    """

    line: str
    raw: int = 0
    coded: int = 0
    damaged: str = ""


@dataclasses.dataclass
class Tally:
    """What all files gave; `failed` counts damaged ones."""

    done: list[Done] = dataclasses.field(default_factory=list)
    up_to_date: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def raw(self) -> int:
        """Bytes of features of the files made."""
        return sum(one.raw for one in self.done)

    @property
    def coded(self) -> int:
        """Bytes of streams of the files made."""
        return sum(one.coded for one in self.done)

    def summary(self) -> str:
        """One line: files, bytes, ratio, speed in features, what was left out or failed."""
        parts = [f"{len(self.done)} file{'' if len(self.done) == 1 else 's'}"]
        if self.coded:
            speed = self.raw / 1e6 / max(self.seconds, 1e-9)
            parts.append(f"features {self.raw} bytes, streams {self.coded} bytes")
            parts.append(f"{self.raw / self.coded:.1f}x")
            parts.append(f"{speed:.3g} MB/s of features")
        if self.up_to_date:
            parts.append(f"{self.up_to_date} up to date")
        if self.failed:
            parts.append(f"{self.failed} failed or damaged")
        return ", ".join(parts)


def run_files(
    jobs: Sequence[JobT],
    work: Callable[[JobT], Done],
    *,
    up_to_date: Callable[[JobT], bool],
    junk: Sequence[Path] = (),
    single: bool = False,
) -> int:
    """Makes every file, goes on after a bad one, and prints what happened.

    Args:
      jobs: what to make.
      work: makes one.
      up_to_date: whether one need not be made again.
      junk: files of folders that nobody reads, to be named.
      single: one file given by name: its line is printed instead of a summary.

    Returns:
      The exit status: 1 if a file failed or is damaged, otherwise 0.

    Raises:
      JaxcompError: what would stop every file.
    """
    for path in junk:
        print(f"skipped: {path} (no ending that this command reads)", file=sys.stderr)
    tally, started = Tally(), time.monotonic()
    hidden = True if single else None  # None: unless somebody watches
    for job in tqdm.tqdm(jobs, unit="file", dynamic_ncols=True, mininterval=0.5, disable=hidden):
        if up_to_date(job):
            tally.up_to_date += 1
            continue
        try:
            done = work(job)
        except PER_FILE as error:
            tally.failed += 1
            _complain(job, error)
        else:
            tally.done.append(done)
            if done.damaged:
                tally.failed += 1
                _complain(job, done.damaged)
    tally.seconds = time.monotonic() - started
    if not single:
        print(tally.summary())
    elif tally.up_to_date:
        print(f"{jobs[0].source}: its output is up to date; --overwrite makes it again")
    for done in tally.done if single else []:
        print(done.line)
    return 1 if tally.failed else 0


def _complain(job: Job, error: object) -> None:
    """One line on stderr, above the progress bar, that names the file."""
    text = str(error).replace("\n", " ")
    path = str(job.source)
    named = text if text.startswith(path) or repr(path) in text else f"{path}: {text}"
    tqdm.tqdm.write(f"error: {named}", file=sys.stderr)
