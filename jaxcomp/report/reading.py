"""What is in a run directory, as far as it can be read."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.errors import CheckpointError


def read_summary(run: Path) -> dict[str, Any]:
    """The content of `summary.json`.

    Raises:
      CheckpointError: the directory has none (the run is not finished) or it is damaged.
    """
    path = run / "summary.json"
    if not path.exists():
        raise CheckpointError(f"{str(path)!r} is not there; let the run finish, or name another.")
    content = read_json(path)
    if not content:
        raise CheckpointError(
            f"{str(path)!r} is damaged; write it again with python -m jaxcomp.main --mode=eval."
        )
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none to read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_records(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; what cannot be read is left out."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except (OSError, ValueError):
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run
        if isinstance(record, dict):
            records.append(record)
    return records


def read_arrays(run: Path) -> dict[str, np.ndarray]:
    """The arrays of `evaluation.npz`; empty where there is no readable file."""
    try:
        # numpy closes a file of ours only: one that it opens stays open if it is damaged.
        with open(run / "evaluation.npz", "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}
