"""Embedded faces: procedural photos with boxes and five landmarks, and no download.

    background and things that resemble faces ── faces, far ones first ── things in front
    ── light, blur, noise ──► uint8 image and `FaceLabels`

Every image is a function of the settings and its index. `contact_sheet` shows some.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jaxcomp.data import faces_draw
from jaxcomp.data.widerface import MISSING, POINTS, FaceLabels
from jaxcomp.errors import ConfigError

_TRIES = 12


@dataclasses.dataclass(frozen=True)
class FaceSettings:
    """Settings of the images.

    Attributes:
      height, width: pixels.
      smallest, largest: height of the faces, pixels; drawn log-uniformly.
      most: faces of an image that is no crowd.
      crowd: share of images with rows of small faces.
      empty: share of images without a face.
      negatives: things that resemble faces, at most.
      occluders: share of faces with something in front.
      blur: share of images out of focus.
      landmark_size: faces lower than this have no landmarks, as in WIDERFace.
      visible: faces of which less than this share is seen are not labelled.
      seed: of everything.

    Raises:
      ConfigError: a setting is out of range.
    """

    height: int = 320
    width: int = 320
    smallest: float = 8.0
    largest: float = 200.0
    most: int = 6
    crowd: float = 0.15
    empty: float = 0.05
    negatives: int = 4
    occluders: float = 0.25
    blur: float = 0.3
    landmark_size: float = 12.0
    visible: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 32:
            raise ConfigError(f"images of {self.height} x {self.width}: give at least 32 x 32")
        if not 4 <= self.smallest <= self.largest <= 1.5 * min(self.height, self.width):
            raise ConfigError(
                f"smallest={self.smallest}, largest={self.largest}: give 4 <= smallest <= largest "
                "<= 1.5 times the shorter side"
            )
        for name in ("crowd", "empty", "occluders", "blur", "visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is no share, 0 to 1")
        if self.most < 1 or self.negatives < 0:
            raise ConfigError(f"most={self.most}, negatives={self.negatives}: at least 1 and 0")


def face_image(settings: FaceSettings, index: int) -> tuple[np.ndarray, FaceLabels]:
    """(uint8 RGB [H, W, 3], labels) number `index`; boxes lie inside the image."""
    rng = np.random.default_rng([settings.seed, index])
    canvas = _background(settings, rng)
    for _ in range(rng.integers(settings.negatives + 1)):
        _negative(canvas, rng)
    owner = np.full(canvas.shape[:2], -1)
    placed = _place(settings, rng)
    kinds = [faces_draw.draw_face_kind(rng) for _ in placed]
    areas = []
    for i, (face, (x, y, size)) in enumerate(zip(kinds, placed, strict=True)):
        areas.append(_paste(canvas, owner, i, face, x, y, size))
        if rng.random() < settings.occluders:
            _occlude(canvas, owner, rng, x, y, size)
    seen = np.array([(owner == i).sum() for i in range(len(placed))]) / np.maximum(areas, 1)
    labels = _labels(settings, index, kinds, placed, seen.reshape(-1))
    return _develop(settings, rng, canvas), labels


def _place(settings: FaceSettings, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Middle and height of each face, far (small) ones first."""
    kind = rng.random()
    if kind < settings.empty:
        return []
    if kind < settings.empty + settings.crowd:
        return _rows(settings, rng)
    placed: list[tuple[float, float, float]] = []
    low, high = math.log(settings.smallest), math.log(settings.largest)
    for _ in range(rng.integers(1, settings.most + 1)):
        for _ in range(_TRIES):
            size = math.exp(rng.uniform(low, high))
            x = rng.uniform(0.2 * size, settings.width - 0.2 * size)
            y = rng.uniform(0.3 * size, settings.height - 0.3 * size)
            free = all(abs(x - a) > 0.3 * (size + s) or abs(y - b) > 0.45 * (size + s)
                       for a, b, s in placed)  # fmt: skip
            if free:
                placed.append((x, y, size))
                break
    return sorted(placed, key=lambda face: face[2])


def _rows(settings: FaceSettings, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """A crowd: rows that come nearer downwards."""
    far = min(rng.uniform(1, 2.5) * settings.smallest, settings.largest)
    placed: list[tuple[float, float, float]] = []
    y, size = rng.uniform(0.2, 0.5) * settings.height, far
    while y < settings.height and len(placed) < 120:
        step = rng.uniform(1.1, 1.8) * size
        for x in np.arange(rng.uniform(0, step), settings.width, step):
            own = min(size * rng.uniform(0.85, 1.15), settings.largest)
            place = (x + rng.normal(0, 0.1 * size), y + rng.normal(0, 0.15 * size))
            placed.append((*place, max(own, settings.smallest)))
        y += 1.5 * size
        size *= 1.25
    return placed


def _background(settings: FaceSettings, rng: np.random.Generator) -> np.ndarray:
    """Clouds of colour, blocks and stripes, float32 [H, W, 3]."""
    size = (settings.width, settings.height)
    total = np.zeros((settings.height, settings.width, 3), np.float32)
    for cells, share in ((3, 0.55), (12, 0.3), (48, 0.15)):
        coarse = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        total += share * np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    gray = rng.uniform(0.4, 0.95)  # photos are less colourful than dice
    total = gray * total.mean(2, keepdims=True) + (1 - gray) * total
    picture = Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(0, 9)):
        x, y = rng.uniform(-0.1, 1) * size[0], rng.uniform(-0.1, 1) * size[1]
        wide, high = rng.uniform(0.03, 0.5) * size[0], rng.uniform(0.03, 0.5) * size[1]
        draw.rectangle((x, y, x + wide, y + high), fill=tuple(rng.integers(0, 256, 3).tolist()))
        for line in np.arange(y, y + high, rng.uniform(4, 30)):
            draw.line((x, line, x + wide, line), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.array(picture, np.float32)


def _negative(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Something like a face that is none: skin without features, clocks, balls, sockets."""
    height, width = canvas.shape[:2]
    size = math.exp(rng.uniform(math.log(10), math.log(0.4 * min(height, width))))
    x, y, fill = rng.uniform(0, width), rng.uniform(0, height), faces_draw.draw_face_kind(rng)
    picture = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    kind = rng.integers(4)
    half = (size * rng.uniform(0.35, 0.55), size * rng.uniform(0.35, 0.55))
    colour = fill.skin if kind < 2 else fill.shirt
    draw.ellipse((x - half[0], y - half[1], x + half[0], y + half[1]), fill=colour)
    if kind == 1:  # a hand
        for angle in np.linspace(-0.8, 0.8, 4):
            end = (x + size * math.sin(angle), y - size * math.cos(angle))
            draw.line((x, y, *end), fill=fill.skin, width=max(int(size / 6), 1))
    elif kind == 2:  # a clock
        for angle in rng.uniform(0, 2 * math.pi, 2):
            end = (x + 0.4 * size * math.sin(angle), y - 0.4 * size * math.cos(angle))
            draw.line((x, y, *end), fill=(10, 10, 10), width=max(int(size / 18), 1))
    elif kind == 3:  # two dots beside each other, and no mouth
        dot = size / 14
        for side in (-1, 1):
            centre = x + side * size / 6
            draw.ellipse((centre - dot, y - dot, centre + dot, y + dot), fill=(10, 10, 10))
    canvas[:] = np.asarray(picture)


def _paste(
    canvas: np.ndarray, owner: np.ndarray, index: int, face: faces_draw.Face,
    x: float, y: float, size: float,
) -> float:  # fmt: skip
    """Puts a face into the image; returns the pixels that its oval has."""
    side = max(round(faces_draw.REACH * size), 4)
    colour, opacity = faces_draw.render(face, side)
    left, top = round(x - side / 2), round(y - side / 2)
    rows, columns = (
        slice(max(start, 0), min(start + side, limit))
        for start, limit in zip((top, left), canvas.shape, strict=False)
    )
    inner = (slice(rows.start - top, rows.stop - top),
             slice(columns.start - left, columns.stop - left))  # fmt: skip
    mix = opacity[inner][..., None]
    canvas[rows, columns] = canvas[rows, columns] * (1 - mix) + colour[inner] * mix
    region = owner[rows, columns]
    region[opacity[inner] > 0.5] = -1
    place = np.stack(np.meshgrid(np.arange(rows.start, rows.stop) + 0.5 - y,
                                 np.arange(columns.start, columns.stop) + 0.5 - x,
                                 indexing="ij")[::-1], -1)  # fmt: skip
    straight = (place @ faces_draw.rotation(face).T) / (size / 2)
    oval = (straight[..., 0] / faces_draw.WIDTH) ** 2 + straight[..., 1] ** 2 < 1
    region[oval] = index
    return math.pi * faces_draw.WIDTH * (size / 2) ** 2


def _occlude(
    canvas: np.ndarray, owner: np.ndarray, rng: np.random.Generator, x: float, y: float, size: float
) -> None:
    """A bar or a disc in front of part of a face."""
    angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.25, 0.6) * size
    centre = (x + reach * math.cos(angle), y + reach * math.sin(angle))
    rows, columns = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    if rng.random() < 0.5:
        hidden = np.hypot(rows - centre[1], columns - centre[0]) < 0.3 * size
    else:
        across = (columns - centre[0]) * math.cos(angle) + (rows - centre[1]) * math.sin(angle)
        along = np.hypot(rows - y, columns - x) < 0.9 * size
        hidden = (np.abs(across) < 0.14 * size) & along
    canvas[hidden] = rng.integers(0, 256, 3)
    owner[hidden] = -1


def _labels(
    settings: FaceSettings, index: int, kinds: list[faces_draw.Face],
    placed: list[tuple[float, float, float]], seen: np.ndarray,
) -> FaceLabels:  # fmt: skip
    boxes, points, there, attributes = [], [], [], []
    for face, (x, y, size), share in zip(kinds, placed, seen, strict=True):
        half = faces_draw.half_box(face) * size / 2
        if share < settings.visible or 2 * half[1] < settings.smallest * 0.75:
            continue
        boxes.append((x - half[0], y - half[1], 2 * half[0], 2 * half[1]))
        marked = size >= settings.landmark_size
        own = faces_draw.landmarks(face) @ faces_draw.rotation(face) * size / 2 + (x, y)
        points.append(own if marked else np.full((POINTS, 2), MISSING))
        there.append(marked)
        attributes.append((0, 0, 0, 0, 0 if share > 0.9 else 1 if share > 0.65 else 2, 0))
    labels = FaceLabels(
        f"faces/{index:06}",
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(points, np.float32).reshape(-1, POINTS, 2),
        np.array(there, bool),
        np.array(attributes, np.int32).reshape(-1, 6),
    )
    return labels.inside(settings.height, settings.width)


def _develop(settings: FaceSettings, rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Exposure, colour of the light, blur and noise."""
    light = rng.uniform(0.55, 1.25) * rng.uniform(0.88, 1.12, 3)
    picture = Image.fromarray(np.clip(canvas * light, 0, 255).astype(np.uint8))
    radius = 0.4
    if rng.random() < settings.blur:
        radius = rng.uniform(0.6, 1.8)
    x = np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float64)
    x = x + rng.normal(0, rng.uniform(0, 8), x.shape)
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def contact_sheet(settings: FaceSettings, rows: int = 3, columns: int = 4) -> Image.Image:
    """Images 0, 1, ... with their boxes, orange, and landmarks, green."""
    sheet = Image.new("RGB", (columns * settings.width, rows * settings.height))
    for i in range(rows * columns):
        image, labels = face_image(settings, i)
        picture = Image.fromarray(image)
        draw = ImageDraw.Draw(picture)
        for (x, y, wide, high), marks in zip(labels.boxes, labels.landmarks, strict=True):
            draw.rectangle((x, y, x + wide, y + high), outline=(255, 150, 0))
            dot = max(wide / 40, 0.5)
            for a, b in marks.tolist() if marks[0, 0] != MISSING else ():
                draw.ellipse((a - dot, b - dot, a + dot, b + dot), fill=(0, 255, 0))
        sheet.paste(picture, (i % columns * settings.width, i // columns * settings.height))
    return sheet
