"""Writing weights to disk: whole files or none, and arrays in the form that the formats need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxcomp.errors import CheckpointError, ShapeError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends without an error.

    Unlike `workdir.atomic_write` the content is not held in memory as a whole.

    Raises:
      CheckpointError: the place cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be written ({error.strerror or error}); choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def little_endian(name: str, value: Any, dtypes: Container[np.dtype]) -> np.ndarray:
    """`value` as a contiguous little-endian array of one of the dtypes; ShapeError otherwise."""
    array = np.asarray(value, order="C")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype not in dtypes:
        raise ShapeError(f"{name!r} is {array.dtype}, which the file cannot hold; use float32")
    return array
