"""Which rows of which codebook learn at a step: a pure function of the step.

    codebook 0: 16 -> 32 -> ... -> 256 rows, codebook 1: 16 -> ..., and so on; each of these stages
    is `warmup_steps` of k-means by moving averages and then gradient steps.

Nothing of this is state: a run resumed in the middle of a stage goes on exactly there, and the step
number is the only thing that distinguishes one stage from another in the compiled program.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp

PREVIOUS = ("matched", "full")


class Stage(NamedTuple):
    """Where a step is; integers, or traced arrays for a traced step.

    Attributes:
      index: number of the stage in the whole run.
      codebook: which one learns.
      low: rows below were trained before.
      high: rows from here on take no part yet.
      step: within the stage.
      warmup: whether moving averages, not gradients, move the rows.
      start: whether it is the first step of the stage.
      scale: factor of the learning rate: 1 at the first gradient epoch, falling as a cosine by
        epoch.
    """

    index: Any
    codebook: Any
    low: Any
    high: Any
    step: Any
    warmup: Any
    start: Any
    scale: Any


@dataclasses.dataclass(frozen=True)
class StageSchedule:
    """The stages of a run.

    Attributes:
      codebooks: K.
      sizes: rows after each stage of a codebook, rising.
      stage_epochs: epochs of a stage.
      warmup_epochs: of these, by moving averages.
      steps_per_epoch: optimiser steps.
      previous: rows of the finished codebooks while a later one learns: "matched", as many as this
        one has, which is what a point (n, ..., n) means; "full", all.
      joint: one stage in which all codebooks of the single size learn together.
    """

    codebooks: int
    sizes: tuple[int, ...]
    stage_epochs: int
    warmup_epochs: int
    steps_per_epoch: int
    previous: str = "matched"
    joint: bool = False

    def __post_init__(self):
        rising = all(a < b for a, b in itertools.pairwise(self.sizes))
        if not self.sizes or self.sizes[0] < 1 or not rising:
            raise ValueError(f"sizes {self.sizes} must rise")
        if not 0 <= self.warmup_epochs <= self.stage_epochs or self.steps_per_epoch < 1:
            raise ValueError("warmup_epochs must be 0 to stage_epochs")
        if self.previous not in PREVIOUS or (self.joint and len(self.sizes) != 1):
            raise ValueError(f"previous={self.previous!r}, joint={self.joint}, sizes {self.sizes}")

    @property
    def stages(self) -> int:
        """Their number."""
        return 1 if self.joint else self.codebooks * len(self.sizes)

    @property
    def epochs(self) -> int:
        """Of the whole run."""
        return self.stages * self.stage_epochs

    def at(self, step: Any) -> Stage:
        """The stage of a step; those behind the end belong to the last one."""
        length = self.stage_epochs * self.steps_per_epoch
        index = jnp.minimum(step // length, self.stages - 1)
        within = step - index * length
        last = self.codebooks - 1
        codebook = jnp.int32(last) if self.joint else index // len(self.sizes)
        part = index % len(self.sizes)
        highs = jnp.asarray(self.sizes, jnp.int32)
        lows = jnp.asarray((0, *self.sizes[:-1]), jnp.int32)
        epoch = within // self.steps_per_epoch - self.warmup_epochs
        share = jnp.clip(epoch / max(1, self.stage_epochs - self.warmup_epochs), 0.0, 1.0)
        return Stage(
            index=index,
            codebook=codebook,
            low=lows[part],
            high=highs[part],
            step=within,
            warmup=within < self.warmup_epochs * self.steps_per_epoch,
            start=within == 0,
            scale=0.5 * (1.0 + jnp.cos(jnp.pi * share)),
        )

    def end(self, step: int) -> int:
        """The first step behind the stage of a step."""
        length = self.stage_epochs * self.steps_per_epoch
        return (min(step // length, self.stages - 1) + 1) * length

    def active(self, stage: Stage) -> Any:
        """Rows of every codebook that take part, int32 [K]."""
        number = jnp.arange(self.codebooks)
        if self.joint:
            return jnp.full(self.codebooks, self.sizes[-1], jnp.int32)
        before = stage.high if self.previous == "matched" else self.sizes[-1]
        active = jnp.where(number < stage.codebook, before, 0)
        return jnp.where(number == stage.codebook, stage.high, active).astype(jnp.int32)

    def trainable(self, stage: Stage) -> Any:
        """Rows that may move, bool [K, N]."""
        number = jnp.arange(self.codebooks)[:, None]
        row = jnp.arange(self.sizes[-1])[None]
        own = (number >= 0) if self.joint else (number == stage.codebook)
        return own & (row >= stage.low) & (row < stage.high)

    def trained(self, index: int) -> list[int]:
        """Rows of every codebook that stage number `index` and those before it have trained."""
        if self.joint:
            return [self.sizes[-1]] * self.codebooks
        codebook, part = divmod(index, len(self.sizes))
        rest = self.codebooks - codebook - 1
        return [self.sizes[-1]] * codebook + [self.sizes[part]] + [0] * rest

    def name(self, index: int) -> str:
        """Of a stage's files."""
        if self.joint:
            return f"codebook_{self.codebooks - 1}_stage_0"
        return f"codebook_{index // len(self.sizes)}_stage_{index % len(self.sizes)}"
