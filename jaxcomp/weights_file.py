"""Weights that travel (a frozen detector, a final codec) as one file, without pickle.

A `.npz` holds arrays by path, a JSON record, and a digest that is checked when the file is read.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxcomp.errors import CheckpointError
from jaxcomp.trees import leaves_by_path, tree_digest, unflatten
from jaxcomp.types import PyTree
from jaxcomp.workdir import atomic_write

MAX_NPZ_BYTES = 4 << 30  # of the arrays of a weights file


def export_npz(path: str | os.PathLike[str], tree: PyTree, meta: Mapping[str, Any]) -> str:
    """Writes a tree and a record as one portable file, atomically and without pickle.

    Args:
      path: the file, by convention `.npz`.
      tree: nested dictionaries of arrays; names without "/".
      meta: JSON-serialisable; the digest is added as `meta["digest"]`.

    Returns:
      The digest of the tree (`tree_digest`).

    Raises:
      CheckpointError: the place cannot be written.
    """
    leaves = {k: np.asarray(v) for k, v in leaves_by_path(tree).items()}
    for name in leaves:
        if name == "__meta__":
            raise CheckpointError(f"{str(path)!r}: '__meta__' is reserved; rename the leaf.")
    digest = tree_digest(tree)
    # numpy's format has no name for bfloat16: store the bits and say so in the record.
    halves = [k for k, v in leaves.items() if v.dtype == ml_dtypes.bfloat16]
    arrays = {k: v.view(np.uint16) if k in halves else v for k, v in leaves.items()}
    record = json.dumps({"meta": {**meta, "digest": digest}, "bfloat16": halves})
    arrays["__meta__"] = np.frombuffer(record.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(path, buffer.getvalue())
    return digest


def _check_members(path: str | os.PathLike[str]) -> None:
    """Raises `ValueError` for a file whose arrays would not fit it, before any is allocated."""
    with open(path, "rb") as blob, zipfile.ZipFile(blob) as archive:
        total = sum(info.file_size for info in archive.infolist())
        if total > MAX_NPZ_BYTES:
            raise ValueError(f"{total} bytes of arrays")
        for info in archive.infolist():
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(member)
                if math.prod(shape) * dtype.itemsize > info.file_size:
                    raise ValueError(f"{info.filename} announces more than it holds")


def load_npz(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a file of `export_npz` and checks its digest.

    Args:
      path: the file.

    Returns:
      (nested dictionaries of numpy arrays, the record with its `digest`).

    Raises:
      CheckpointError: the file is missing, truncated, damaged or not of this kind.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{str(path)!r} does not exist; give the path of an .npz of weights.")
    try:
        _check_members(path)
        with open(path, "rb") as blob, np.load(blob, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        record = json.loads(arrays.pop("__meta__").tobytes())
        meta = record["meta"]
        for name in record["bfloat16"]:
            arrays[name] = arrays[name].view(ml_dtypes.bfloat16)
    except (
        OSError, ValueError, KeyError, EOFError, AttributeError, TypeError,
        zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{str(path)!r} is truncated or is not a file of weights ({type(error).__name__}); "
            "copy or export it again."
        ) from error
    tree = unflatten(arrays)
    if tree_digest(tree) != meta.get("digest"):
        raise CheckpointError(f"{str(path)!r} is damaged: its digest differs; copy it again.")
    return tree, meta
