"""Which files a command reads and which it writes: files and folders in, one file or a folder out.

No file is opened here. A file given by name is always taken; of a folder, the files with a known
ending (in any case, hidden ones left out), and with `recursive` those of its subfolders too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxcomp.errors import DataError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FEATURES = (".npy", ".npz")
STREAMS = (".jxc",)


@dataclasses.dataclass(frozen=True)
class Item:
    """One file to make.

    Attributes:
      source: what it is made of.
      out: the file to write.
    """

    source: Path
    out: Path


@dataclasses.dataclass(frozen=True)
class Selection:
    """The inputs of a command.

    Attributes:
      files: (path, path below the folder it was found in), sorted within a folder.
      junk: files of folders with an ending that the command does not read.
      folder: whether a folder was among the inputs.
    """

    files: tuple[tuple[Path, Path], ...]
    junk: tuple[Path, ...]
    folder: bool

    @property
    def single(self) -> bool:
        """Whether this is one file, given by its name."""
        return len(self.files) == 1 and not self.folder


def find_inputs(
    inputs: Sequence[str | os.PathLike[str]],
    endings: Sequence[str],
    *,
    recursive: bool = False,
    leave_out: str | os.PathLike[str] | None = None,
) -> Selection:
    """The files that `inputs` mean; a file that is named twice is taken once.

    Args:
      inputs: files and folders.
      endings: of the files to take from folders, in lower case.
      recursive: whether to descend into subfolders.
      leave_out: a subfolder that is not searched, where the outputs go.

    Raises:
      DataError: an input does not exist, a folder cannot be read, or there is no file to read.
    """
    files: dict[Path, tuple[Path, Path]] = {}
    junk: list[Path] = []
    for given in map(Path, inputs):
        if not given.exists():
            raise DataError(f"{str(given)!r} does not exist; give a file or a folder")
        below = _walk(given, recursive, leave_out) if given.is_dir() else [given]
        for path in below:
            if given.is_dir() and path.suffix.lower() not in endings:
                junk.append(path)
            else:
                relative = path.relative_to(given) if given.is_dir() else Path(path.name)
                files.setdefault(path.resolve(), (path, relative))
    if not files:
        where = ", ".join(repr(str(i)) for i in inputs)
        also = "" if recursive else "; --recursive also looks into subfolders"
        raise DataError(f"no {' '.join(endings)} in {where}{also}")
    folder = any(Path(given).is_dir() for given in inputs)
    return Selection(tuple(files.values()), tuple(junk), folder)


def _walk(folder: Path, recursive: bool, leave_out: str | os.PathLike | None) -> Iterator[Path]:
    """The files of a folder that are not hidden, in order; links to folders are not followed."""
    barred = None if leave_out is None else Path(leave_out).resolve()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename!r} cannot be read: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=refuse):
        inner = (n for n in sorted(folders) if not n.startswith("."))
        folders[:] = [n for n in inner if recursive and (Path(place) / n).resolve() != barred]
        yield from (Path(place) / n for n in sorted(names) if not n.startswith("."))


def place_outputs(
    selection: Selection,
    out: str | os.PathLike[str] | None,
    ending: str,
    protected: Iterable[str | os.PathLike[str]] = (),
) -> list[Item]:
    """Where the output of each input goes.

    Args:
      selection: the inputs.
      out: for one file the file to write; otherwise, or if it is a folder or ends in "/", the
        folder, in which subfolders are kept. None: beside each input.
      ending: of the outputs, in place of that of the input.
      protected: further files that are read and must not be written.

    Raises:
      DataError: a folder without `out`, an output that is an input or protected, or two inputs
        with the same output.
    """
    if selection.folder and out is None:
        raise DataError("a folder needs --out FOLDER, where to write")
    whole = selection.single and out is not None and not is_folder(out)
    items = []
    for path, relative in selection.files:
        if whole:
            items.append(Item(path, Path(str(out))))
        else:
            base = path if out is None else Path(out) / relative
            items.append(Item(path, base.with_suffix(ending)))
    if not whole and out is not None and Path(out).exists() and not Path(out).is_dir():
        raise DataError(f"{str(out)!r} is a file; several inputs need a folder as --out")
    refuse_overwriting([item.out for item in items], [*protected, *_paths(selection)])
    _check_different(items)
    return items


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether an output path means a folder: it is one, or it ends in "/"."""
    return Path(path).is_dir() or os.fspath(path).endswith(os.sep)


def refuse_overwriting(
    outputs: Iterable[Path], inputs: Iterable[str | os.PathLike[str] | None]
) -> None:
    """Raises `DataError` where an output is one of the files that are read."""
    read = {Path(path).resolve() for path in inputs if path}
    for out in outputs:
        if out.resolve() in read:
            raise DataError(f"{str(out)!r} is an input; choose another --out")


def _paths(selection: Selection) -> list[Path]:
    return [path for path, _ in selection.files]


def _check_different(items: Sequence[Item]) -> None:
    seen: dict[Path, Path] = {}
    for item in items:
        other = seen.setdefault(item.out.resolve(), item.source)
        if other != item.source:
            raise DataError(
                f"{str(other)!r} and {str(item.source)!r} would both become {str(item.out)!r}; "
                "rename one, or give them apart"
            )


def is_newer(out: Path, sources: Iterable[Path]) -> bool:
    """Whether a file exists and is not older than any of its sources."""
    try:
        made = out.stat().st_mtime_ns
        return all(made >= source.stat().st_mtime_ns for source in sources)
    except OSError:
        return False
