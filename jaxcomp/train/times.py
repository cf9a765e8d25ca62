"""How long a run takes and what for: steps, waiting for data, all of it over its restarts."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator


class Times:
    """The clock of a run."""

    def __init__(self, seconds: float):
        """Goes on from the `seconds` that the run took before it was interrupted."""
        self._began = time.perf_counter() - seconds
        self._steps: list[float] = []
        self._first = 0  # step of the present epoch
        self._train = self._wait = 0.0
        self._collected_at: float | None = None

    def seconds(self) -> float:
        """Of the run so far, over all restarts."""
        return time.perf_counter() - self._began

    def collected(self) -> None:
        """A step is finished: its time is that since the one before, unless there was a pause."""
        now = time.perf_counter()
        if self._collected_at is not None:
            self._steps.append(now - self._collected_at)
        self._collected_at = now

    def pause(self) -> None:
        """Something else than a step follows."""
        self._collected_at = None

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Around the steps of an epoch."""
        self.pause()
        self._first = len(self._steps)
        began = time.perf_counter()
        yield
        self._train += time.perf_counter() - began

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch, within `training`."""
        asked = time.perf_counter()
        yield
        self._wait += time.perf_counter() - asked

    def step_ms(self) -> float | None:
        """Median time of a step in milliseconds, None before the second one."""
        return _median_ms(self._steps)

    def epoch_step_ms(self) -> float | None:
        """The same of the last epoch alone: stages differ in what a step does."""
        return _median_ms(self._steps[self._first :])

    def input_wait(self) -> float:
        """Share of the time of training spent waiting for data, 0 to 1."""
        return self._wait / self._train if self._train else 0.0


def _median_ms(seconds: list[float]) -> float | None:
    return 1e3 * statistics.median(seconds) if seconds else None
