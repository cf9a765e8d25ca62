"""One process makes what many need, the others wait for it instead of making it too."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def one_at_a_time(path: Path, say: Callable[[], Any]) -> Iterator[None]:
    """Holds the lock of a file, which is made if need be; waits while another process does.

    Who comes in looks again whether the work is done. The system frees the lock of a process that
    ends, however it ends. Where files have no locks or none can be made, nobody waits: the work
    must be safe to do twice.

    Args:
      path: the file; it stays, empty.
      say: called once before waiting.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))
            if not held(file):
                say()
                held(file, wait=True)
        yield


def held(file: BinaryIO, wait: bool = False) -> bool:
    """Whether this process now holds the lock of an open file; False too where there are none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
