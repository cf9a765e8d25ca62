"""Batches: seeded, endless, resumable training iterators and ordered, padded validation batches.

A training batch is a pure function of (seed, step): the step gives the epoch, the epoch its
permutation, the permutation the rows. So the position of an iterator is one number, and restoring
it gives exactly the batches that would have followed. Grain runs that function ahead in threads.

Of several processes each reads its own part of every batch. What they read together is the batch
that one process would have read, augmentation included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from jaxcomp.errors import DataError
from jaxcomp.types import Batch, DataSplits

# rows and a generator (or None) to a batch; draws have the row as their first axis
Gather = Callable[[np.ndarray, Any], dict[str, np.ndarray]]
_ENDLESS = 2**40  # steps; a bound that no run reaches


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation (int64 [size]) of one epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(
        size
    )


class PartOfDraws:
    """Draws for a whole batch of which a process keeps its own rows.

    It has the methods of `numpy.random.Generator` that augmentations use, for sizes whose first
    axis is the row. However many processes share a batch, a row gets the same numbers.
    """

    def __init__(self, rng: np.random.Generator, index: int, count: int):
        """Keeps part `index` of `count` equal parts of what `rng` draws."""
        self._rng, self._index, self._count = rng, index, count

    def _part(self, draw: Callable[[tuple[int, ...]], np.ndarray], size: Any) -> np.ndarray:
        rows, *rest = (size,) if isinstance(size, int) else size
        return draw((rows * self._count, *rest))[self._index * rows : (self._index + 1) * rows]

    def random(self, size: Any) -> np.ndarray:
        """As of the generator."""
        return self._part(self._rng.random, size)

    def uniform(self, low: float, high: float, size: Any) -> np.ndarray:
        """As of the generator."""
        return self._part(functools.partial(self._rng.uniform, low, high), size)

    def integers(self, low: int, high: int, size: Any) -> np.ndarray:
        """As of the generator."""
        return self._part(functools.partial(self._rng.integers, low, high), size)

    def permuted(self, x: np.ndarray, axis: int) -> np.ndarray:
        """As of the generator, for rows that are all alike."""
        whole = np.concatenate([x] * self._count)
        return self._part(lambda size: self._rng.permuted(whole, axis=axis), x.shape)


class TrainBatches:
    """The training batches by step number; `len` is how many a run may ask for.

    Args:
      gather: rows [B] and a generator (for augmentation) to a batch.
      size: rows of the data set.
      batch_size: rows of a batch (of this process).
      seed: of the shuffling and augmentation.
      shard: (index, count) of this process among those that share the data.
    """

    def __init__(self, gather: Gather, size: int, batch_size: int, seed: int, shard=(0, 1)):
        self.gather, self.size, self.batch_size, self.seed, self.shard = (
            gather,
            size,
            batch_size,
            seed,
            shard,
        )
        self.steps_per_epoch = size // (batch_size * shard[1])
        self._order = functools.lru_cache(maxsize=2)(functools.partial(epoch_order, size, seed))

    def rows(self, step: int) -> np.ndarray:
        """Indices [B] of the rows of a step; the remainder of an epoch is dropped."""
        epoch, place = divmod(step, self.steps_per_epoch)
        index, count = self.shard
        start = (place * count + index) * self.batch_size
        return self._order(epoch)[start : start + self.batch_size]

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step."""
        entropy = np.random.SeedSequence([self.seed, 1, int(step), 0])
        rng: Any = np.random.Generator(np.random.Philox(entropy))
        if self.shard[1] > 1:
            rng = PartOfDraws(rng, *self.shard)
        return _with_mask(self.gather(self.rows(int(step)), rng), self.batch_size)


def _with_mask(batch: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Pads to `size` rows by repeating the first one and adds `mask`.

    A gather may bring a mask of its own, 0 for rows that it could not read.
    """
    real = len(next(iter(batch.values())))
    batch = {"mask": np.ones(real, np.float32), **batch}
    if real < size:
        batch = {
            k: np.concatenate([v, np.repeat(v[:1], size - real, axis=0)]) for k, v in batch.items()
        }
    return {**batch, "mask": batch["mask"] * (np.arange(size) < real).astype(np.float32)}


def train_iterator(batches: TrainBatches, threads: int = 1, ahead: int = 2) -> Any:
    """An endless iterator with `get_state` and `set_state`, prepared ahead in Grain's threads."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
    steps = grain.MapDataset.range(_ENDLESS).map(batches)
    return iter(steps.to_iter_dataset(options))


def validation_batches(
    gather: Gather, size: int, batch_size: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Every row once, in order; the last batch is padded and masked.

    Args:
      gather: reads rows.
      size: how many there are.
      batch_size: rows of a batch (of this process).
      shard: (index, count) of this process, which gets its part of every batch.
    """
    index, count = shard
    for start in range(index * batch_size, size + index * batch_size, batch_size * count):
        rows = np.arange(start, min(start + batch_size, size))
        if len(rows):
            yield _with_mask(gather(rows, None), batch_size)
        else:  # the others' parts hold the last rows
            batch = _with_mask(gather(np.zeros(1, np.int64), None), batch_size)
            yield {**batch, "mask": np.zeros_like(batch["mask"])}


def make_data_splits(
    train: tuple[Gather, int],
    validation: tuple[Gather, int],
    batch_size: int,
    seed: int,
    threads: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> DataSplits:
    """`DataSplits` of two (gather, size) pairs.

    Args:
      train: rows to batch, and how many rows there are; its gather does not augment without a
        generator.
      validation: the same for the held-out rows; its gather gets no generator.
      batch_size: rows of a batch (of this process).
      seed: of shuffling and augmentation.
      threads: that prepare training batches ahead; 0 prepares them in the caller.
      shard: (index, count) of this process. The result's `sharded` makes the same data for
        another one.

    Raises:
      DataError: a split has no rows, or fewer than one batch to train on.
    """
    if batch_size < 1:
        raise DataError(f"batch size {batch_size}: set training.batch_size to 1 or more")
    if validation[1] < 1:
        raise DataError("the validation split is empty; raise data.val_size or check data.dir")
    if train[1] < batch_size * shard[1]:
        raise DataError(
            f"the training split has {train[1]} rows, less than one batch of "
            f"{batch_size * shard[1]}; lower training.batch_size or raise data.train_size"
        )
    batches = TrainBatches(*train, batch_size=batch_size, seed=seed, shard=shard)
    return DataSplits(
        train=functools.partial(train_iterator, batches, threads),
        steps_per_epoch=batches.steps_per_epoch,
        validation=functools.partial(validation_batches, *validation, batch_size, shard),
        train_once=functools.partial(validation_batches, *train, batch_size),
        sharded=lambda index, count: make_data_splits(
            train, validation, part_of_batch(batch_size * shard[1], count), seed, threads,
            (index, count),
        ),
    )  # fmt: skip


def part_of_batch(batch_size: int, count: int) -> int:
    """Rows of each process.

    Raises:
      DataError: the processes cannot have equal parts.
    """
    if batch_size % count:
        raise DataError(
            f"config.training.batch_size={batch_size} rows cannot be shared out among {count} "
            f"processes; the nearest that can is {max(1, round(batch_size / count)) * count}"
        )
    return batch_size // count


def array_splits(
    train: Mapping[str, np.ndarray],
    validation: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
) -> DataSplits:
    """`DataSplits` of arrays in memory (cached features): one gather for each key and batch.

    Args:
      train: name to [N, ...] array.
      validation: name to [M, ...] array with the same names.
      batch_size: rows of a batch.
      seed: of the shuffling.
      shard: (index, count) of this process.

    Raises:
      DataError: a split is empty, or its arrays disagree in length.
    """
    sizes = (_rows_of(train, "training"), _rows_of(validation, "validation"))
    gathers = tuple(functools.partial(_take, dict(arrays)) for arrays in (train, validation))
    pairs = tuple(zip(gathers, sizes, strict=True))
    return make_data_splits(pairs[0], pairs[1], batch_size, seed, shard=shard)


def _take(arrays: dict[str, np.ndarray], rows: np.ndarray, rng) -> dict[str, np.ndarray]:
    return {key: np.take(value, rows, axis=0) for key, value in arrays.items()}


def _rows_of(arrays: Mapping[str, np.ndarray], split: str) -> int:
    lengths = {key: len(value) for key, value in arrays.items()}
    if not lengths or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise DataError(
            f"the {split} arrays have lengths {lengths}; give one or more arrays of the same, "
            "non-zero length"
        )
    return next(iter(lengths.values()))
