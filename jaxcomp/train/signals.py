"""Being asked to stop: the signals of one process, and the notice that any of several got."""

from __future__ import annotations

import signal
import threading
from typing import Any

from jaxcomp import processes
from jaxcomp.log import LOG


class Signals:
    """Notes SIGINT and SIGTERM; a second one acts as it would have without this.

    A context manager; in another thread than the main one it hears nothing.

    Attributes:
      signum: the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._old: dict[int, Any] = {}

    def _note(self, signum: int, frame: Any) -> None:
        self.signum = signum
        LOG.warning("%s: saving after this step.", signal.Signals(signum).name)
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
        self._old = {}

    def poll(self, step: int) -> None:
        """Notes a SIGTERM that any of several processes got, at the same step in all of them."""
        if not self.signum and processes.preempted(step):
            self.signum = signal.SIGTERM
            LOG.warning("A process is to stop: saving after this step.")

    def __enter__(self) -> Signals:
        # Of several processes, the coordination service listens to SIGTERM.
        alone = processes.count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._old[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()
