"""Child processes that end as their parent is told to.

Each child is in a session of its own, so that what the terminal or a scheduler sends to the parent
reaches it once: as the one SIGTERM that the parent hands on, upon which a run saves and ends.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.1  # seconds between two looks for a signal


class Children:
    """Processes side by side, started by any thread.

    Attributes:
      signum: the first signal that the parent got, None before.
      running: the processes that have not ended.
      lock: held while `running` changes.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.RLock()
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether no further process is started."""
        return self._stopped

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes] | None:
        """Starts a process with the options of `Popen`, unless all are told to stop."""
        with self.lock:  # `stop` sees this process, or this sees that it was called
            if self._stopped:
                return None
            process = subprocess.Popen(words, start_new_session=True, **options)
            self.running.add(process)
            return process

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status of a process, once it has ended."""
        try:
            return process.wait()
        finally:
            with self.lock:
                self.running.discard(process)

    def stop(self) -> bool:
        """Sends SIGTERM to all, once; returns whether this was the call that did."""
        with self.lock:
            first, self._stopped = not self._stopped, True
            for process in self.running if first else ():
                process.send_signal(signal.SIGTERM)
            return first

    def stop_if_told(self) -> bool:
        """`stop` if there was a signal; the main thread calls it every `POLL` seconds."""
        return self.signum is not None and self.stop()

    def run(self, words: Sequence[str]) -> int:
        """The exit status of one process; a signal meanwhile goes on to it (`told`)."""
        process = self.start(words)
        if process is None:
            return 1
        while process.poll() is None:
            self.stop_if_told()
            time.sleep(POLL)
        return self.wait(process)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Notes `SIGNALS` in `signum` meanwhile; those that are ignored (`nohup`) stay so.

        Python gives signals to its main thread alone: in another one this does nothing.
        """
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in SIGNALS}
        caught = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
        try:
            for number in caught:
                signal.signal(number, self._note)
            yield
        finally:
            for number, old in caught.items():
                signal.signal(number, old)

    def _note(self, signum: int, frame: Any) -> None:
        # No more than this: a handler that took the lock could wait for the thread it interrupts.
        del frame
        if self.signum is None:
            self.signum = signum
