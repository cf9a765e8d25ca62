"""Batches on the device before they are asked for: one thread reads while the step runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from jaxcomp.errors import DataError
from jaxcomp.types import Batch


class Feeder:
    """Reads one batch ahead of an endless iterator and knows its position; a context manager.

    Attributes:
      state: the iterator's state just after the batch that `next` returned last; None before.
    """

    def __init__(self, iterator: Any, put: Callable[[Batch], Batch]):
        """Wraps `iterator` (`__next__`, `get_state`); `put` places a batch on the devices."""
        self.state: Any = None
        self._iterator = iterator
        self._put = put
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feeder")
        self._ahead: Future[tuple[Batch, Any]] | None = None

    def _read(self) -> tuple[Batch, Any]:
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise DataError(
                "The training iterator ended; DataSplits.train must make an endless one."
            ) from None
        return self._put(batch), copy.deepcopy(self._iterator.get_state())

    def next(self) -> Batch:
        """The next batch, on the devices; the one after it is read meanwhile."""
        ahead = self._ahead or self._pool.submit(self._read)
        self._ahead = None
        batch, self.state = ahead.result()
        self._ahead = self._pool.submit(self._read)
        return batch

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def prefetched(
    batches: Iterator[Batch], put: Callable[[Batch], Batch]
) -> Generator[Batch, None, None]:
    """Yields the placed batches of a finite iterator, reading one ahead; close it after use."""

    def read() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else put(batch)

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead = pool.submit(read)
        while (batch := ahead.result()) is not None:
            ahead = pool.submit(read)
            yield batch
