"""Folders of KITTI's text files: evaluate results against labels, write results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcomp.data.kitti_files import read_text
from jaxcomp.data.kitti_format import KittiObject, format_labels, parse_labels
from jaxcomp.errors import ConfigError, DataError
from jaxcomp.evaluate.kitti import KittiFrame, evaluate
from jaxcomp.workdir import atomic_write


def evaluate_folders(
    labels: str | os.PathLike[str],
    results: str | os.PathLike[str],
    frames: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What `evaluate` returns for a folder of labels and one of results, `<frame>.txt` in each.

    Args:
      labels: label_2 of the object data.
      results: the same with a 16th column, the score; an empty file where nothing was detected.
      frames: a text file with the frames to evaluate, one a line; default: all of both folders.
      **options: of `evaluate`.

    Raises:
      DataError: a folder or file is missing, or a file is not in KITTI's format.
      ConfigError: an option is out of range.
    """
    truth_files, found_files = _files(Path(labels)), _files(Path(results))
    names = sorted({*truth_files, *found_files})
    if frames is not None:
        names = list(dict.fromkeys(read_text(Path(frames)).split()))
    for folder, files in ((labels, truth_files), (results, found_files)):
        missing = [name for name in names if name not in files]
        if missing:
            raise DataError(
                f"{str(folder)!r} lacks {missing[0]}.txt ({len(missing)} of {len(names)} frames); "
                "write an empty file where nothing was detected, or list the frames (--frames FILE)"
            )
    return evaluate(_read(truth_files, names), _read(found_files, names), **options)


def _files(folder: Path) -> dict[str, Path]:
    files = {path.stem: path for path in folder.glob("*.txt")}
    if not files:
        raise DataError(f"{str(folder)!r} has no .txt files; give the folder that holds them")
    return files


def _read(files: dict[str, Path], names: Sequence[str]) -> list[KittiFrame]:
    return [
        KittiFrame.from_objects(parse_labels(read_text(files[name]), str(files[name])), name)
        for name in names
    ]


def write_results(folder: str | os.PathLike[str], frames: Sequence[KittiFrame]) -> list[Path]:
    """Writes `<name>.txt` for each frame in the format of the benchmark's server.

    Boxes and angles get two decimals and scores six, so scores that are closer become ties.

    Raises:
      DataError: a frame has no name, or two have the same.
    """
    names = [frame.name for frame in frames]
    if not all(names) or len(set(names)) < len(names):
        raise DataError("frames need different names to be written; name them, as '000042'")
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{name}.txt" for name in names]
    for path, frame in zip(paths, frames, strict=True):
        atomic_write(path, format_labels([KittiObject(**row) for row in frame.rows()]))
    return paths


def parse_overlaps(text: str | None) -> dict[str, float] | None:
    """Reads "Car=0.5,Pedestrian=0.25".

    Raises:
      ConfigError: it is not of this form.
    """
    if not text:
        return None
    try:
        pairs = [item.split("=") for item in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(f"overlaps {text!r} are not of the form Car=0.5,Cyclist=0.25") from None
