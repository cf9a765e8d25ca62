"""Training batches of one level: the level is drawn for each step, everything else is as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp.data.pipeline import array_splits
from jaxcomp.types import Batch, DataSplits

_STREAM = 2  # of the seed; rows and augmentation use others


def drawn_level(seed: int, step: int, count: int) -> int:
    """The level of a step, uniform among `count`; the same in every process."""
    entropy = np.random.SeedSequence([seed, _STREAM, step])
    return int(np.random.Generator(np.random.Philox(entropy)).integers(count))


class LevelDraws:
    """An endless iterator that tells each batch of another its level; the position is saved."""

    def __init__(
        self, batches: Any, levels: Sequence[str], seed: int, choose: Callable[[Batch, str], Batch]
    ):
        """Wraps `batches` (`__next__`, `get_state`, `set_state`); `choose` makes the batch."""
        self._batches, self._levels, self._seed, self._choose = batches, levels, seed, choose
        self._step = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        level = self._levels[drawn_level(self._seed, self._step, len(self._levels))]
        self._step += 1
        return self._choose(batch, level)

    def get_state(self) -> dict[str, Any]:
        """The position."""
        return {"batches": self._batches.get_state(), "step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._batches.set_state(state["batches"])
        self._step = int(state["step"])


def level_draws(splits: DataSplits, levels: Sequence[str], seed: int) -> DataSplits:
    """Batches of images marked with the one level to take, `batch["take"] = {level: mask}`.

    Validation batches are left as they are: all levels are judged.
    """

    def choose(batch: Batch, level: str) -> Batch:
        return {**batch, "take": {level: batch["mask"]}}

    sharded = splits.sharded
    return dataclasses.replace(
        splits,
        train=lambda: LevelDraws(splits.train(), levels, seed, choose),
        sharded=sharded and (lambda *shard: level_draws(sharded(*shard), levels, seed)),
    )


def cached_levels(
    train: Mapping[str, np.ndarray],
    validation: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    *,
    levels: Sequence[str],
    draw: bool,
) -> DataSplits:
    """`DataSplits` of cached pyramids {level: [N, H_l, W_l, C]}.

    Args:
      train: features to train on; with each level go its regions, if any, as "regions_LEVEL".
      validation: held-out features.
      batch_size: frames of a batch.
      seed: of the shuffling, and of the levels.
      levels: what is drawn from.
      draw: whether a training batch holds one level, drawn for each step, instead of all.
    """
    if not draw:
        return array_splits(train, validation, batch_size, seed)
    frames = {"row": np.arange(len(next(iter(train.values()))))}
    return _drawn(
        train,
        array_splits(frames, {"row": np.arange(1)}, batch_size, seed),
        array_splits(train, validation, batch_size, seed),
        levels,
        seed,
    )


def _drawn(
    train: Mapping[str, np.ndarray],
    rows: DataSplits,
    whole: DataSplits,
    levels: Sequence[str],
    seed: int,
) -> DataSplits:
    """`whole`, but with the levels drawn in training: only the drawn one is read."""

    def choose(batch: Batch, level: str) -> Batch:
        own = {key: x for key, x in train.items() if key in (level, f"regions_{level}")}
        rows = {key: np.take(x, batch["row"], axis=0) for key, x in own.items()}
        return {"mask": batch["mask"], **rows}

    shard_rows, shard_whole = rows.sharded, whole.sharded
    assert shard_rows and shard_whole
    return dataclasses.replace(
        whole,
        train=lambda: LevelDraws(rows.train(), levels, seed, choose),
        sharded=lambda *shard: _drawn(train, shard_rows(*shard), shard_whole(*shard), levels, seed),
    )
