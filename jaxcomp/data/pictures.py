"""Pictures for learning without labels: generated, scikit-learn's digits, folders, or TFDS.

Batches are {"image": uint8 [B, H, W, 3], "label": int32 [B] (-1: none), "hidden", "context": bool
[B, N], "mask": [B]}. Crops, flips and masks of a training batch are a function of (seed, step).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcomp.data import pictures_tfds
from jaxcomp.data.images import SUFFIXES, image_files, read_image, relit
from jaxcomp.data.masks import MaskConfig, MaskSampler
from jaxcomp.data.pipeline import make_data_splits
from jaxcomp.data.textures import CLASSES, texture_set
from jaxcomp.errors import DataError
from jaxcomp.types import DataSplits

NAMES = ("textures", "digits", "pictures", "tfds")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """One split.

    Attributes:
      load: row number to uint8 [h, w, 3], of any size.
      labels: int32 [N], -1 where there is none.
      classes: names of the labels; empty without labels.
      fingerprint: of the content.
    """

    load: Callable[[int], np.ndarray]
    labels: np.ndarray | pictures_tfds.RecordLabels
    classes: tuple[str, ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.labels)


def _of_arrays(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Pictures:
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    return Pictures(images.__getitem__, labels.astype(np.int32), classes, digest)


def _textures(config: Any) -> dict[str, Pictures]:
    data = config.data
    if data.height != data.width or data.height < 16:
        raise DataError(
            f"'textures' are squares of at least 16 pixels, not {data.height} x {data.width}; set "
            "data.height and data.width"
        )
    out, start = {}, 0
    for split, count in (("train", data.train_size), ("validation", data.val_size)):
        made = texture_set(data.seed, start, count, data.height) if count else None
        if made is None:
            raise DataError(
                f"data: 0 {split} pictures; 'textures' are made to order, give a number"
            )
        out[split] = _of_arrays(made["image"], made["label"], CLASSES)
        start += count
    return out


def _digits(config: Any) -> dict[str, Pictures]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "data.name='digits' needs scikit-learn: pip install scikit-learn, or use 'textures'"
        ) from None
    found = load_digits()
    grey = np.clip(np.rint(found.images * (255 / 16)), 0, 255).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, -1)
    return _split(
        len(images),
        config,
        lambda rows: _of_arrays(
            images[rows], found.target[rows], tuple(str(n) for n in found.target_names)
        ),
    )


def _split(count: int, config: Any, make: Callable[[np.ndarray], Pictures]) -> dict[str, Pictures]:
    """Rows in a seeded order, the held-out ones first."""
    data = config.data
    order = np.random.default_rng([data.seed, 13]).permutation(count)
    held = data.val_size or max(1, round(data.val_share * count))
    if held >= count:
        raise DataError(f"{count} pictures leave none to train on beside {held} held-out ones")
    most = data.train_size or count
    return {"train": make(np.sort(order[held:][:most])), "validation": make(np.sort(order[:held]))}


def _folder(config: Any) -> dict[str, Pictures]:
    root = Path(config.data.dir)
    if not config.data.dir or not root.is_dir():
        raise DataError(
            f"data.dir={config.data.dir!r} is no folder; give one with pictures "
            f"({', '.join(SUFFIXES)}), in folders by class if there are labels"
        )
    files = image_files(root)
    if len(files) < 2:
        raise DataError(f"{str(root)!r} holds {len(files)} pictures; two or more are needed")
    homes = [p.relative_to(root).parts[0] if p.parent != root else "" for p in files]
    classes = tuple(sorted(set(homes)))
    if "" in classes or len(classes) < 2:
        classes = ()
    labels = np.array([classes.index(h) if classes else -1 for h in homes], np.int32)

    def make(rows: np.ndarray) -> Pictures:
        own = [files[i] for i in rows]
        sizes = [(str(p.relative_to(root)), p.stat().st_size) for p in own]
        digest = hashlib.sha256(repr(sizes).encode()).hexdigest()
        return Pictures(lambda row: read_image(own[row]), labels[rows], classes, digest)

    return _split(len(files), config, make)


def _tfds(config: Any) -> dict[str, Pictures]:
    """Splits that TFDS prepared; training rows are the first `data.train_size` of a seeded order.

    Where the training split has no labels, as STL-10's `unlabelled`, `data.probe_split` names the
    one that probes learn from; it becomes the set "probe".
    """
    data, folder = config.data, pictures_tfds.open_pictures(config.data.dir)
    classes, out = pictures_tfds.class_names(folder), {}
    wanted = [
        ("train", pictures_tfds.TRAIN, data.train_split, data.train_size),
        ("validation", pictures_tfds.HELD, data.val_split, data.val_size),
    ]
    if data.probe_split:
        wanted.append(("probe", (), data.probe_split, 0))
    for name, known, given, most in wanted:
        split = pictures_tfds.chosen_split(folder, known, given)
        count = folder.size(split)
        order = np.random.default_rng([data.seed, 13]).permutation(count)
        rows = np.sort(order[: most or count])
        if not len(rows):
            raise DataError(f"{folder.folder}: split {split} is empty")
        out[name] = Pictures(
            functools.partial(_record, folder, split, rows),
            pictures_tfds.RecordLabels(folder, split, rows),
            classes,
            pictures_tfds.fingerprint(folder, split, len(rows)),
        )
    return out


def _record(folder: Any, split: str, rows: np.ndarray, row: int) -> np.ndarray:
    return folder.image(split, int(rows[row]))


_SETS = {"textures": _textures, "digits": _digits, "pictures": _folder, "tfds": _tfds}


def load_pictures(config: Any) -> dict[str, Pictures]:
    """{"train", "validation"} of the set that `config.data.name` names, perhaps "probe".

    Raises:
      DataError: the data are missing or too few.
    """
    return _SETS[config.data.name](config)


def fitted(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest centred crop of the right shape, resized (bilinear)."""
    rows, columns = image.shape[:2]
    scale = min(rows / height, columns / width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    return resized(image[top : top + size[0], left : left + size[1]], height, width)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3], bilinear."""
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def augmented(
    image: np.ndarray, height: int, width: int, rng: np.random.Generator, how: Any
) -> np.ndarray:
    """A random crop of 3/4 to 4/3 the shape, resized, maybe mirrored, with other light.

    Args:
      image: uint8 [h, w, 3].
      height: rows of the result.
      width: columns.
      rng: of all draws.
      how: `crop` least share of the area, `flip` probability, `jitter` largest change of
        brightness and contrast.
    """
    rows, columns = image.shape[:2]
    area = rng.uniform(how.crop, 1.0) * rows * columns
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))) if how.crop < 1 else 1.0
    ratio *= width / height
    size = (
        min(rows, max(1, round(math.sqrt(area / ratio)))),
        min(columns, max(1, round(math.sqrt(area * ratio)))),
    )
    top, left = (int(rng.integers(a - b + 1)) for a, b in zip((rows, columns), size, strict=True))
    out = resized(image[top : top + size[0], left : left + size[1]], height, width)
    if rng.random() < how.flip:
        out = out[:, ::-1]
    if how.jitter:
        gain, shift = rng.uniform(-how.jitter, how.jitter, 2)
        out = relit(out, gain, shift)
    return np.ascontiguousarray(out)


def mask_sampler(config: Any) -> MaskSampler:
    """The masks of a config: its `masking` section on the grid of `model.patch`."""
    data, patch = config.data, config.model.patch
    grid = (data.height // patch, data.width // patch)
    return MaskSampler(
        grid, MaskConfig(**dict(config.masking)), 2 ** (config.model.num_hierarchies - 1)
    )


def _as_it_is(image: np.ndarray, height: int, width: int, rng: Any) -> np.ndarray:
    """`fitted` with the arguments of `augmented`."""
    del rng
    return fitted(image, height, width)


def gather(
    pictures: Pictures, config: Any, sampler: MaskSampler, rows: np.ndarray, rng: Any
) -> dict[str, np.ndarray]:
    """A batch; without a generator nothing is augmented and masks belong to rows."""
    data = config.data
    size = (data.height, data.width)
    if rng is None:
        images = [fitted(pictures.load(int(r)), *size) for r in rows]
        masks = sampler.of_rows(data.seed, rows)
    else:  # a generator for each row, so that processes may share a batch
        draws = [np.random.default_rng(int(s)) for s in rng.integers(0, 2**63, len(rows))]
        make = functools.partial(augmented, how=config.augment) if data.augment else _as_it_is
        images = [
            make(pictures.load(int(r)), *size, own) for r, own in zip(rows, draws, strict=True)
        ]
        masks = sampler.each(draws)
    return {"image": np.stack(images), "label": pictures.labels[rows], **masks}


def picture_splits(
    config: Any, batch_size: int, sets: Mapping[str, Pictures] | None = None
) -> DataSplits:
    """Batches of the pictures that a config names, or of `sets` that were loaded before.

    Raises:
      DataError: the data are missing or too few.
    """
    sets, sampler = sets or load_pictures(config), mask_sampler(config)
    train, held = (
        (functools.partial(gather, sets[split], config, sampler), len(sets[split]))
        for split in ("train", "validation")
    )
    splits = make_data_splits(train, held, batch_size, config.seed, config.data.num_threads)
    prints = "-".join(sets[s].fingerprint[:16] for s in sets)
    return dataclasses.replace(splits, fingerprint=prints)
