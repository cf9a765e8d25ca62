"""Weight files of PyTorch (`.pth`, `.pt`, old and new) and `.safetensors`, without PyTorch.

    file ── format, told from its bytes ── tree of descriptions ── state dictionary ── arrays

Reading runs no code of the file (see `torch_pickle`) and holds each number once. `write_torch` and
`write_safetensors` are the other direction.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxcomp.errors import CheckpointError
from jaxcomp.interop.safetensors_file import is_safetensors, read_safetensors, write_safetensors
from jaxcomp.interop.torch_archive import open_legacy, open_zip, read_tensors
from jaxcomp.interop.torch_objects import RefusedPickle, Tensor
from jaxcomp.interop.torch_writer import write_torch

__all__ = ["COUNTERS", "is_counter", "read_weights", "write_safetensors", "write_torch"]

COUNTERS = ("num_batches_tracked", "total_ops", "total_params")  # no weights: dropped
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys of a whole training state
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_FIX = "save it again with torch.save(model.state_dict(), PATH), or as safetensors"


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The state dictionary in a file of weights.

    A training state is searched for its state dictionary (`WRAPPERS`), prefixes that all names
    share (`PREFIXES`) are removed, counters (`COUNTERS`) dropped.

    Args:
      path: what `torch.save` wrote (version 0.2 or later), or a `.safetensors`; told from the
        content, not from the name.

    Returns:
      Name to array, contiguous and in its own memory, in the file's order. bfloat16, which numpy
      has not, becomes float32, exactly; all other dtypes stay.

    Raises:
      CheckpointError: the file is missing, truncated, damaged, of another kind, or a pickle that
        asks for anything but tensors, numbers, texts and containers of these.
    """
    where = repr(str(path))
    if not Path(path).is_file():
        what = "is a directory" if Path(path).is_dir() else "does not exist"
        raise CheckpointError(f"{where} {what}; give a .pth, .pt or .safetensors file of weights")
    try:
        with open(path, "rb") as stream:
            weights = _read(stream)
    except RefusedPickle as error:
        raise CheckpointError(f"{where} is not read: {error}; {_FIX}") from error
    except (
        OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError,
        struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{where} is truncated or damaged ({error}); copy or download it again"
        ) from error
    return weights


def _read(stream: BinaryIO) -> dict[str, np.ndarray]:
    size = os.fstat(stream.fileno()).st_size
    head = stream.read(512)
    stream.seek(0)
    if size < 9:
        raise RefusedPickle(f"it has {size} bytes")
    if is_safetensors(head, size):
        weights = _without_prefix(read_safetensors(stream))
        return {name: value for name, value in weights.items() if not is_counter(name)}
    if head.startswith(b"PK"):
        opened = open_zip(stream)
    elif head.startswith(b"\x80"):
        opened = open_legacy(stream)
    elif head[257:262] == b"ustar" or _is_tar(stream):
        raise RefusedPickle("it is a tar archive, as PyTorch before 0.2 wrote them")
    else:
        raise RefusedPickle("it is neither a file of torch.save nor safetensors")
    with opened as (tree, fetch, order):
        return read_tensors(_state_dict(tree), fetch, order, size)


def _is_tar(stream: BinaryIO) -> bool:
    try:
        with tarfile.open(fileobj=stream, mode="r:"):
            return True
    except tarfile.TarError:
        return False


def _state_dict(tree: Any) -> dict[str, Tensor]:
    """The state dictionary in a tree, perhaps a whole training state."""
    for _ in WRAPPERS:
        inner = [tree[k] for k in WRAPPERS if isinstance(tree, dict) and k in tree]
        tree = next((value for value in inner if isinstance(value, dict)), tree)
    if not isinstance(tree, dict) or not any(isinstance(v, Tensor) for v in tree.values()):
        held = f"a {type(tree).__name__}"
        if isinstance(tree, dict):
            held = f"the keys {[str(key)[:40] for key in tree][:5]}"
        raise RefusedPickle(f"it holds {held}, no state dictionary (also not under {WRAPPERS})")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise RefusedPickle(f"{str(name)[:80]!r} in its state dictionary is not a tensor")
    return {k: v for k, v in _without_prefix(tree).items() if not is_counter(k)}


def is_counter(name: str) -> bool:
    """Whether a name of a state dictionary is one of `COUNTERS`."""
    return name.split(".")[-1] in COUNTERS


def _without_prefix(weights: Mapping[str, Any]) -> dict[str, Any]:
    weights = dict(weights)
    for prefix in PREFIXES * 2:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
