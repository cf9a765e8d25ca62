"""Which KITTI frames train and which validate: lists, drives, sequences, or (loudly) frames.

Frames of one drive show the same street a tenth of a second apart. A split by frame puts such twins
on both sides, and the validation numbers come out too good; so sequences and drives stay together
wherever the data tell which frames belong to one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxcomp.data.kitti_files import KittiFrame, read_text
from jaxcomp.data.kitti_junk import Junk
from jaxcomp.errors import DataError

_LOG = logging.getLogger(__name__)
Split = dict[str, list[KittiFrame]]  # "train", "validation"


def split_frames(
    layout: str, training: Path, frames: Sequence[KittiFrame], share: float, seed: int, junk: Junk
) -> tuple[Split, str]:
    """Splits frames of the object or tracking layout.

    Args:
      layout: "object" or "tracking".
      training: the `training` folder; lists and the mapping are looked for beside it.
      frames: those with an image.
      share: of the frames that validates, where no list says which do.
      seed: of the choice.
      junk: where frames of a list that do not exist go.

    Returns:
      The frames of "train" and "validation", by name, and in words how they were chosen.

    Raises:
      DataError: a list or mapping is broken, or a side would be empty.
    """
    lists = training.parent / "ImageSets"
    if layout == "object" and (lists / "train.txt").is_file() and (lists / "val.txt").is_file():
        return _by_lists(lists, frames, junk), "ImageSets/train.txt and val.txt"
    if layout == "tracking":
        groups = {frame.name: frame.sequence for frame in frames}
        return _by_groups(frames, groups, share, seed), f"sequences, seed {seed}"
    if (lists / "trainval.txt").is_file():
        frames = _listed(lists / "trainval.txt", frames, junk)
    drives = _drives(training.parent)
    if drives is not None:
        groups = {frame.name: drives.get(frame.name, frame.name) for frame in frames}
        return _by_groups(frames, groups, share, seed), f"drives of the mapping, seed {seed}"
    _LOG.warning(
        "KITTI IS SPLIT BY FRAME: frames of one drive are in training AND validation, so "
        "validation numbers are too good. Put the usual lists (train.txt, val.txt) into %s or the "
        "development kit's mapping folder into %s", lists, training.parent / "mapping",
    )  # fmt: skip
    groups = {frame.name: frame.name for frame in frames}
    return _by_groups(frames, groups, share, seed), f"single frames, seed {seed} (drives leak)"


def _listed(path: Path, frames: Sequence[KittiFrame], junk: Junk) -> list[KittiFrame]:
    """The frames of one ImageSets file, by name."""
    known = {frame.name: frame for frame in frames}
    found: dict[str, KittiFrame] = {}
    for row, line in enumerate(read_text(path).splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        if name not in known:
            message = f"{path}:{row}: frame {name[:40]!r} has no image in image_2"
            junk.add("frame", message, name)
        elif name in found:
            junk.add("frame", f"{path}:{row}: frame {name!r} is listed twice")
        else:
            found[name] = known[name]
    return sorted(found.values(), key=lambda frame: frame.name)


def _by_lists(lists: Path, frames: Sequence[KittiFrame], junk: Junk) -> Split:
    held_out = _listed(lists / "val.txt", frames, junk)
    names = {frame.name for frame in held_out}
    train = []
    for frame in _listed(lists / "train.txt", frames, junk):
        if frame.name in names:
            junk.add("frame", f"{lists / 'train.txt'}: frame {frame.name!r} is in val.txt as well")
        else:
            train.append(frame)
    return {"train": train, "validation": held_out}


def _by_groups(
    frames: Sequence[KittiFrame], groups: Mapping[str, str], share: float, seed: int
) -> Split:
    """Whole groups, in seeded order, until the share is reached; each side gets one at least."""
    names = sorted(set(groups.values()))
    if len(names) < 2:
        raise DataError(
            f"kitti: {len(names)} sequences, drives or frames cannot be split; two are needed, one "
            "to train on and one to validate"
        )
    sizes = dict.fromkeys(names, 0)
    for frame in frames:
        sizes[groups[frame.name]] += 1
    order = np.random.default_rng([seed, 0]).permutation(len(names))
    held_out: set[str] = set()
    count = 0
    for place in order[:-1]:
        # Half a group over the goal is nearer than half a group under it.
        if held_out and count + sizes[names[place]] / 2 > share * len(frames):
            break
        held_out.add(names[place])
        count += sizes[names[place]]
    ordered = sorted(frames, key=lambda frame: frame.name)
    return {
        "train": [frame for frame in ordered if groups[frame.name] not in held_out],
        "validation": [frame for frame in ordered if groups[frame.name] in held_out],
    }


def _drives(root: Path) -> dict[str, str] | None:
    """Frame name to drive by the development kit's mapping; None if it is not there.

    `train_rand.txt` holds, for frame 0, 1, ..., the line (from 1) of `train_mapping.txt` that names
    date, drive and frame of the raw recording.

    Raises:
      DataError: the two files do not fit together.
    """
    for folder in ("mapping", "devkit_object/mapping", "devkit/mapping"):
        rand, mapping = root / folder / "train_rand.txt", root / folder / "train_mapping.txt"
        if rand.is_file() and mapping.is_file():
            break
    else:
        return None
    lines = read_text(mapping).splitlines()
    drives: dict[str, str] = {}
    for index, word in enumerate(read_text(rand).replace(",", " ").split()):
        row = int(word) - 1 if word.isdecimal() else -1
        fields = lines[row].split() if 0 <= row < len(lines) else []
        if len(fields) < 2:
            raise DataError(
                f"{rand}: entry {index + 1} is {word[:20]!r}, but {mapping.name} has no such line "
                "with date, drive and frame; unpack the development kit again"
            )
        drives[f"{index:06d}"] = fields[1]
    return drives


def capped(items: list, limit: int, seed: int) -> list:
    """At most `limit` items (0: all), a seeded choice in the old order; more contain fewer."""
    if limit <= 0 or limit >= len(items):
        return items
    chosen = np.random.default_rng([seed, 1]).permutation(len(items))[:limit]
    return [items[place] for place in np.sort(chosen)]
