"""The clock of a run: steps of all epochs and of the last one, told apart."""

import pytest

from jaxcomp.train import times as times_module


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def epoch(clock, times, seconds, steps):
    with times.training():
        for _ in range(steps):
            clock.now += seconds
            times.collected()


def test_an_epochs_step_is_that_of_the_epoch(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(times_module, "time", clock)
    times = times_module.Times(seconds=5.0)
    assert times.step_ms() is None and times.epoch_step_ms() is None
    epoch(clock, times, 0.1, steps=5)
    assert times.epoch_step_ms() == pytest.approx(100)
    epoch(clock, times, 0.3, steps=3)
    assert times.epoch_step_ms() == pytest.approx(300)
    assert times.step_ms() == pytest.approx(100)  # four short ones, two long ones
    epoch(clock, times, 0.3, steps=1)  # nothing to measure between
    assert times.epoch_step_ms() is None
    assert times.seconds() == pytest.approx(5.0 + 0.5 + 0.9 + 0.3)
