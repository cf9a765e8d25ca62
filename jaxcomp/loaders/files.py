"""Weights files: found by path, directory or pattern, and read as what they must be."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcomp import weights_file
from jaxcomp.errors import BitstreamError, CheckpointError

DETECTOR_FILE, CODEC_FILE = "detector.npz", "codec.npz"


def find_file(path: str | os.PathLike[str], name: str) -> Path:
    """The weights file that a path means: a file, a run directory, or a pattern matching one.

    Args:
      path: a file, a directory that holds `name`, or a glob pattern; of several matches the newest.
      name: the file looked for in directories.

    Raises:
      CheckpointError: there is no such file.
    """
    matches = [Path(path)] if Path(path).exists() else [Path(p) for p in glob.glob(str(path))]
    files = [m / name if m.is_dir() else m for m in matches]
    files = sorted((f for f in files if f.is_file()), key=lambda f: f.stat().st_mtime)
    if not files:
        raise CheckpointError(
            f"no weights at {str(path)!r}: give a .npz file, or a finished run directory that "
            f"holds {name!r}"
        )
    return files[-1]


def read_kind(path: Path, kind: str) -> tuple[Any, dict[str, Any]]:
    """(arrays, record) of a weights file that must hold a "detector" or a "codec".

    Raises:
      CheckpointError: it is missing, truncated or holds something else.
    """
    tree, meta = weights_file.load_npz(path)
    if meta.get("kind") != kind:
        raise CheckpointError(
            f"{str(path)!r} holds {meta.get('kind') or 'something else'!r}, a {kind} is needed"
        )
    return tree, meta


@contextlib.contextmanager
def complete(path: Path, kind: str) -> Iterator[None]:
    """Words what goes wrong while a model is built from a file's record."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, BitstreamError) as error:
        raise CheckpointError(f"{str(path)!r} is not a complete {kind} ({error!r})") from error
