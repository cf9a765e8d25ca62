"""A folder of photos without labels: fixed crops to train on, whole photos held out.

A photo's part follows from its name alone, so that it stays where it is when others are added:

    SHA-256(name) below val_share ──► held out, whole, shrunk where it exceeds the canvas
    all others ─────────────────────► `crops` crops each, drawn from (seed, row) once and for all,
                                      and `around` crops that show each object that was found there

What a photo does not fill has the colour that a face detector sees as zeros. Whoever measures on
such photos brings the ground truth; here there is none.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcomp.data import pipeline
from jaxcomp.data.images import SUFFIXES, image_files, read_image, relit
from jaxcomp.errors import DataError
from jaxcomp.types import DataSplits

_LOG = logging.getLogger(__name__)
FILL = (123, 117, 104)  # RGB; the mean that light face detectors take away
STRIDE = 32  # of the coarsest level of a face detector
SCALES = (0.4, 1.3)  # of a photo before it is cropped
JITTER = 0.2  # largest change of brightness and contrast


def held_out(name: str, share: float) -> bool:
    """Whether a photo of this name is held out, with a probability of `share`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


def photo_files(folder: str) -> list[Path]:
    """The photos at and below a folder, in the order of their names.

    Raises:
      DataError: it is no folder, or holds none.
    """
    root = Path(folder)
    if not folder or not root.is_dir():
        raise DataError(
            f"config.data.dir={folder!r} is no folder; give one with photos ({', '.join(SUFFIXES)})"
        )
    files = image_files(root)
    if not files:
        raise DataError(f"{folder!r} holds no photo ({', '.join(SUFFIXES)})")
    return files


def on_canvas(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A photo at the upper left of a canvas, shrunk (aspect kept) where it is larger.

    Args:
      image: uint8 [H, W, 3] RGB.
      height: rows of the canvas.
      width: columns.

    Returns:
      (uint8 [height, width, 3], (rows, columns) of the photo in it).
    """
    scale = min(1.0, height / image.shape[0], width / image.shape[1])
    if scale < 1:
        image = _resized(image, scale)
    rows, columns = image.shape[:2]
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = FILL
    canvas[:rows, :columns] = image
    return canvas, (rows, columns)


def at_own_size(batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The photos of a batch one by one, each on the smallest canvas of whole strides.

    What a photo does not fill of a larger canvas would be coded with it. Rows with the mask 0 are
    left out.
    """
    for row in np.flatnonzero(batch["mask"]):
        one = {name: np.asarray(value)[row : row + 1] for name, value in batch.items()}
        rows, columns = (math.ceil(n / STRIDE) * STRIDE for n in one["image_size"][0])
        yield {**one, "image": one["image"][:, :rows, :columns]}


def crop_of(
    image: np.ndarray, size: int, rng: np.random.Generator, box: Sequence[float] | None = None
) -> np.ndarray:
    """A random square of a photo, uint8 [size, size, 3]: other scale, place, side and light.

    Args:
      image: uint8 [H, W, 3].
      size: of the square, pixels.
      rng: generator.
      box: x0, y0, x1, y1 in pixels of the photo, which the square should hold.
    """
    scale = rng.uniform(*SCALES)
    image = _resized(image, scale)
    spare = [max(n - size, 0) for n in image.shape[:2]]
    places = [(0, n) for n in spare]
    if box is not None:
        low, high = np.multiply(box[1::-1], scale), np.multiply(box[:1:-1], scale)
        places = [_holding(*v, size, n) for *v, n in zip(low, high, spare, strict=True)]
    top, left = (int(rng.integers(first, last + 1)) for first, last in places)
    image = image[top : top + size, left : left + size]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    gain, shift = rng.uniform(-JITTER, JITTER, 2)
    return on_canvas(relit(image, gain, shift), size, size)[0]


def _holding(low: float, high: float, size: int, spare: int) -> tuple[int, int]:
    """First and last start of a window of `size` that holds low to high, or else its middle."""
    first, last = math.ceil(high - size), math.floor(low)
    if first > last:  # larger than the window
        first = last = round((low + high - size) / 2)
    return min(max(first, 0), spare), min(max(last, 0), spare)


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    rows, columns = (max(1, round(n * scale)) for n in image.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Rows of one split.

    Attributes:
      make: number of a row to (image, (rows, columns) of the real part).
      count: of the rows.
      fatal: stop at a file that cannot be read, instead of giving its rows the mask 0.
      empty: of an image that cannot be read.
    """

    make: Callable[[int], tuple[np.ndarray, tuple[int, int]]]
    count: int
    fatal: bool
    empty: tuple[int, int]

    def _row(self, row: int) -> tuple[np.ndarray, tuple[int, int], float]:
        try:
            return *self.make(row), 1.0
        except DataError as error:
            if self.fatal:
                raise
            _LOG.warning("%s; it is left out", error)
            return np.zeros((*self.empty, 3), np.uint8), self.empty, 0.0

    def gather(self, rows: np.ndarray, rng: Any) -> dict[str, np.ndarray]:
        """A batch; crops are those of their row, so that no generator is needed."""
        del rng
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            images, sizes, masks = zip(*pool.map(self._row, map(int, rows)), strict=True)
        return {
            "image": np.stack(images),
            "image_size": np.asarray(sizes, np.int32),
            "image_id": np.asarray(rows, np.int32),
            "mask": np.asarray(masks, np.float32),
        }


def photo_splits(config: Any, batch_size: int) -> DataSplits:
    """Batches {"image", "image_size" [B, 2], "image_id", "mask"} of the folder `data.dir`.

    Training images are [B, crop, crop, 3], held-out ones [B, height, width, 3], uint8 RGB.
    `data.train_size` and `data.val_size` limit the photos of each part, 0 takes all. `data.found`,
    if it is there, has (number of the training photo, x0, y0, x1, y1 in its pixels) of the objects
    that `data.around` crops each should show.

    Raises:
      DataError: the folder is missing, or a part is empty.
    """
    section = config.data
    kept, held = photo_parts(section)
    found = section.get("found", ())
    size, fatal = (section.height, section.width), section.on_junk == "fatal"
    train = _Reader(
        functools.partial(_crop_row, kept, found, section),
        len(kept) * section.crops + len(found) * section.get("around", 0), fatal,
        (section.crop, section.crop),
    )  # fmt: skip
    whole = _Reader(functools.partial(_whole_row, held, size), len(held), fatal, size)
    splits = pipeline.make_data_splits(
        (train.gather, train.count), (whole.gather, whole.count), batch_size, config.seed,
        section.num_threads,
    )  # fmt: skip
    return dataclasses.replace(splits, fingerprint=_fingerprint([kept, held], section))


def photo_parts(section: Any) -> tuple[list[Path], list[Path]]:
    """(Photos to train on, held-out ones) of a config's `data` section.

    Raises:
      DataError: the folder is missing or holds none.
    """
    files = photo_files(section.dir)
    held = [p for p in files if held_out(p.name, section.val_share)]
    kept = [p for p in files if not held_out(p.name, section.val_share)]
    return kept[: section.train_size or None], held[: section.val_size or None]


def _crop_row(
    files: Sequence[Path], found: Sequence[Sequence[float]], section: Any, row: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """A crop of any place of a photo, or behind all of these one around an object."""
    size, crops = section.crop, section.crops
    rng = np.random.default_rng([section.seed, row])
    number, box, extra = row // crops, None, row - len(files) * crops
    if extra >= 0:
        first, *box = found[extra // section.around]
        number = int(first)
    return crop_of(read_image(files[number]), size, rng, box), (size, size)


def _whole_row(
    files: Sequence[Path], size: tuple[int, int], row: int
) -> tuple[np.ndarray, tuple[int, int]]:
    return on_canvas(read_image(files[row]), *size)


def _fingerprint(parts: Sequence[Sequence[Path]], section: Any) -> str:
    """Of names and sizes of the files of both parts, and of what decides on their rows."""
    names = [[(p.name, p.stat().st_size) for p in part] for part in parts]
    rows: list[Any] = [section[k] for k in ("crop", "crops", "seed", "height", "width")]
    if section.get("found", ()):
        rows += [section.around, section.found]
    return hashlib.sha256(repr((names, rows)).encode()).hexdigest()
