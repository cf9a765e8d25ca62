"""Reads every label and every image's header once: sizes, objects, and what is broken.

Pixels are not decoded. A PNG's size stands in its first bytes and its end mark in its last ones, so
the 7,481 frames of the object data take about a second, and files cut short are seen at once.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from jaxcomp.data import images, kitti_format
from jaxcomp.data.kitti_files import KittiFrame, read_text
from jaxcomp.data.kitti_format import KittiObject
from jaxcomp.errors import DataError

MAX_SIDE = 4096  # pixels; the largest image decides the size of every batch
_THREADS = 8  # they wait for the disk, not for the processor
_PNG = b"\x89PNG\r\n\x1a\n"
Problems = list[tuple[str, str]]  # (kind, message), see `kitti_junk.Junk`
Placed = list[tuple[str, KittiObject]]  # objects with file and line


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A frame with its ground truth, in native pixels.

    Attributes:
      frame: the files.
      height, width: of the image, pixels.
      objects: every object of the label file that could be read, DontCare included, boxes as in the
        file.
      plain: the image has three channels of 8 bits (others are converted when read).
    """

    frame: KittiFrame
    height: int
    width: int
    objects: tuple[KittiObject, ...]
    plain: bool = True

    @property
    def name(self) -> str:
        """The frame's name, which is that of its result file."""
        return self.frame.name


Scanned = tuple[Annotation | None, Problems]


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first bytes of an image tell: pixels, and whether it is 8-bit RGB."""

    height: int
    width: int
    plain: bool


def read_header(path: Path) -> Header:
    """Size of an image file, without decoding a sound PNG.

    Raises:
      DataError: the file is missing, damaged or no image, or larger than `MAX_SIDE`.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(33)
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64))
            whole = b"IEND" in file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    if start.startswith(_PNG) and start[12:16] == b"IHDR" and len(start) == 33 and whole:
        width, height, depth, colour = struct.unpack(">IIBB", start[16:26])
        header = Header(height, width, (depth, colour) == (8, 2))
    else:
        header = _decoded_header(path)
    if not (0 < header.height <= MAX_SIDE and 0 < header.width <= MAX_SIDE):
        raise DataError(
            f"{path}: {header.height} x {header.width} pixels; sides of 1 to {MAX_SIDE} are meant"
        )
    return header


def _decoded_header(path: Path) -> Header:
    """Size of what is not plainly a whole PNG: JPEGs by their header, others by decoding."""
    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                return Header(image.height, image.width, image.mode == "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass  # `read_image` words the error
    height, width, _ = images.read_image(path).shape
    return Header(height, width, False)


def read_object_labels(path: Path) -> tuple[Placed, Problems]:
    """Objects of a label file with their place, and the lines that are none."""
    return _parse(path, lambda words, where: (where, kitti_format.parse_line(words, where)))


def read_tracking_labels(path: Path) -> tuple[dict[int, Placed], Problems]:
    """The same by frame number, for the label file of a tracking sequence."""

    def parse(words: list[str], where: str) -> tuple[int, str, KittiObject]:
        number, _, item = kitti_format.parse_tracking_line(words, where)
        return number, where, item

    found, problems = _parse(path, parse)
    objects: dict[int, Placed] = {}
    for number, where, item in found:
        objects.setdefault(number, []).append((where, item))
    return objects, problems


def _parse(path: Path, parse: Callable) -> tuple[list, Problems]:
    found, problems = [], []
    for row, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            try:
                found.append(parse(line.split(), f"{path}:{row}"))
            except DataError as error:
                problems.append(("object", str(error)))
    return found, problems


def inside(objects: Placed, height: int, width: int) -> tuple[tuple[KittiObject, ...], Problems]:
    """Leaves out boxes without a pixel inside the image, and says so."""
    kept, problems = [], []
    for where, item in objects:
        left, top, right, bottom = item.box
        if min(right, width) > max(left, 0) and min(bottom, height) > max(top, 0):
            kept.append(item)
        else:
            box = ", ".join(f"{value:g}" for value in item.box)
            problem = f"{where}: {item.type} at ({box}) has no pixel inside the image"
            problems.append(
                ("object", f"{problem} of {height} x {width}; correct or delete the line")
            )
    return tuple(kept), problems


def scan_object(frames: Sequence[KittiFrame]) -> list[Scanned]:
    """Annotations of object frames with images, in order; None where the frame is unusable."""
    return _in_threads(_scan_object_frame, frames)


def _scan_object_frame(frame: KittiFrame) -> Scanned:
    if frame.label is None:
        message = f"{frame.image}: no label file {frame.name}.txt in label_2; an empty one means"
        return None, [("frame", f"{message} a frame without objects")]
    try:
        objects, problems = read_object_labels(frame.label)
    except DataError as error:
        return None, [("frame", str(error))]
    return _annotate(frame, objects, problems)


def _annotate(frame: KittiFrame, objects: Placed, problems: Problems) -> Scanned:
    if frame.sequence and frame.number < 0:
        message = f"{frame.image}: the name is no frame number; tracking labels are by number"
        return None, [*problems, ("frame", message)]
    if frame.image is None:
        return None, [*problems, ("frame", f"{frame.label}: frame {frame.name} has no image")]
    try:
        header = read_header(frame.image)
    except DataError as error:
        return None, [*problems, ("frame", str(error))]
    kept, outside = inside(objects, header.height, header.width)
    annotation = Annotation(frame, header.height, header.width, kept, header.plain)
    return annotation, problems + outside


def labelled_sequences(frames: Sequence[KittiFrame]) -> tuple[list[KittiFrame], Problems]:
    """Leaves out tracking sequences without a label file, before sequences are chosen."""
    missing = collections.Counter(frame.sequence for frame in frames if frame.label is None)
    problems = [
        ("sequence", f"label_02/{name}.txt: missing; the sequence has {count} frames")
        for name, count in missing.items()
    ]
    return [frame for frame in frames if frame.label is not None], problems


def scan_tracking(frames: Sequence[KittiFrame]) -> list[Scanned]:
    """The same for labelled tracking frames; the label file of a sequence is read once."""
    found: list[Scanned] = []
    sequences: dict[str, list[KittiFrame]] = {}
    for frame in frames:
        sequences.setdefault(frame.sequence, []).append(frame)
    for members in sequences.values():
        label = members[0].label
        assert label is not None  # `labelled_sequences` has seen to it
        try:
            objects, problems = read_tracking_labels(label)
        except DataError as error:
            found.append((None, [("sequence", str(error))]))
            continue
        found.append((None, problems + _without_image(label, objects, members)))
        found += _in_threads(
            lambda frame, objects=objects: _annotate(frame, objects.get(frame.number, []), []),
            members,
        )
    return found


def _without_image(label: Path, objects: dict, members: Sequence[KittiFrame]) -> Problems:
    """Labelled frame numbers of a sequence that no image has."""
    missing = sorted(objects.keys() - {frame.number for frame in members})
    return [("frame", f"{label}: frame {number} has labels but no image") for number in missing]


def _in_threads(function: Callable, frames: Sequence[KittiFrame]) -> list:
    # A list: a generator that is dropped half-way would wait for its threads wherever the garbage
    # is collected, which may be inside the start of another thread, for ever.
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, frames))
