"""Metrics of steps that the devices still compute, read when the next step is already queued."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxcomp import log

LAG = 1  # steps in flight


class InFlight:
    """Hands the metrics of each step to `use`, in order and `LAG` steps late.

    Its length is the number of steps that are queued and not handed on.
    """

    def __init__(self, use: Callable[[dict[str, float]], None]):
        """Calls `use` with flat names and Python floats."""
        self._use = use
        self._pending: deque[Mapping[str, Any]] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes the device metrics of the step just queued; waits for the one before it."""
        self._pending.append(metrics)
        self._collect(LAG)

    def drain(self) -> None:
        """Waits for all steps."""
        self._collect(0)

    def _collect(self, most: int) -> None:
        while len(self._pending) > most:
            self._use(_host(self._pending.popleft()))


def _host(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Device metrics as flat Python floats; waits for the step that computes them."""
    flat = log.flatten_metrics(jax.device_get(metrics))
    return {k: float(np.asarray(v)) for k, v in flat.items()}
