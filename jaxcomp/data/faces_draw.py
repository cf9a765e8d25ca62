"""One procedural face: an oval with hair, eyes, nose and mouth, seen from some angle.

Coordinates are in half heights of the face oval, y down, its middle at the origin.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

REACH = 1.7  # what the drawing covers, from the middle to each side
WIDTH = 0.76  # half width of the oval
_SKINS = np.array(
    [(250, 218, 192), (235, 190, 155), (214, 160, 120), (172, 118, 80), (120, 78, 52), (78, 50, 36)]
)
_HAIRS = np.array([(28, 22, 20), (70, 46, 30), (128, 84, 44), (205, 170, 105), (150, 150, 150)])
Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Face:
    """What one face looks like.

    Attributes:
      skin, hair, shirt: colours.
      yaw: of the head to its side, -1 to 1 for about 45 degrees.
      roll: radians, clockwise.
      smile: 0 to 1.
      style: cut of the hair, 0 to 2.
      beard, glasses, mask: worn or not; a mask hides mouth and nose.
      light: -1 to 1, the side that the light comes from.
    """

    skin: Colour
    hair: Colour
    shirt: Colour
    yaw: float
    roll: float
    smile: float
    style: int
    beard: bool
    glasses: bool
    mask: bool
    light: float


def draw_face_kind(rng: np.random.Generator) -> Face:
    """A face at random."""

    def colour(low: int, high: int) -> Colour:
        return tuple(int(v) for v in rng.integers(low, high, 3))  # type: ignore[return-value]

    place = rng.uniform(0, len(_SKINS) - 1)
    low = min(int(place), len(_SKINS) - 2)
    skin = _SKINS[low] + (place - low) * (_SKINS[low + 1] - _SKINS[low]) + rng.normal(0, 5, 3)
    return Face(
        skin=tuple(int(v) for v in np.clip(skin, 20, 255)),  # type: ignore[arg-type]
        hair=tuple(int(v) for v in _HAIRS[rng.integers(len(_HAIRS))]),  # type: ignore[arg-type]
        shirt=colour(20, 235),
        yaw=float(np.clip(rng.normal(0, 0.4), -0.9, 0.9)),
        roll=float(rng.normal(0, 0.15)),
        smile=float(rng.random()),
        style=int(rng.integers(3)),
        beard=bool(rng.random() < 0.2),
        glasses=bool(rng.random() < 0.2),
        mask=bool(rng.random() < 0.06),
        light=float(rng.uniform(-1, 1)),
    )


def landmarks(face: Face) -> np.ndarray:
    """[5, 2] eyes, nose, corners of the mouth before the roll; the viewer's left comes first."""
    turn, near = 0.34 * face.yaw, 1 - 0.3 * abs(face.yaw)
    eye, mouth = 0.31 * near, 0.24 * near
    return np.array(
        [(turn - eye, -0.12), (turn + eye, -0.12), (1.35 * turn, 0.22), (turn - mouth, 0.52),
         (turn + mouth, 0.52)]
    )  # fmt: skip


def rotation(face: Face) -> np.ndarray:
    """[2, 2], to be multiplied from the right with rows of points."""
    cos, sin = math.cos(face.roll), math.sin(face.roll)
    return np.array([(cos, sin), (-sin, cos)])


def half_box(face: Face) -> np.ndarray:
    """Half width and half height of the box around the rolled oval, forehead to chin."""
    turned = rotation(face) * np.array([[WIDTH], [1.0]])
    return np.sqrt((turned**2).sum(0))


def render(face: Face, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The face in a square.

    Args:
      face: what to draw.
      side: pixels of the square, which covers `REACH` to each side of the middle.

    Returns:
      (uint8 [side, side, 3], opacity float32 [side, side]).
    """
    fine = max(side * 3, 96)  # drawn larger and averaged
    unit = fine / (2 * REACH)
    picture = Image.new("RGBA", (fine, fine), (*face.skin, 0))
    _Pen(ImageDraw.Draw(picture), unit, fine / 2).face(face)
    angle = -math.degrees(face.roll)
    picture = picture.rotate(angle, Image.Resampling.BILINEAR)
    array = np.asarray(picture.resize((side, side), Image.Resampling.BOX), np.float32)
    opacity = array[..., 3] / 255
    across = np.linspace(-1, 1, side, dtype=np.float32)
    shade = 0.86 + 0.26 * face.light * across[None, :, None] - 0.1 * across[:, None, None]
    colour = np.clip(array[..., :3] * shade, 0, 255)
    return colour.astype(np.uint8), opacity


class _Pen:
    """Draws in the coordinates of the face."""

    def __init__(self, draw: ImageDraw.ImageDraw, unit: float, middle: float):
        self.draw, self.unit, self.middle = draw, unit, middle

    def oval(self, x: float, y: float, half_width: float, half_height: float, colour) -> None:
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        self.draw.ellipse([v * self.unit + self.middle for v in box], fill=colour)

    def polygon(self, points, colour) -> None:
        flat = [tuple(v * self.unit + self.middle for v in p) for p in points]
        self.draw.polygon(flat, fill=colour)

    def line(self, points, colour, width: float) -> None:
        flat = [tuple(v * self.unit + self.middle for v in p) for p in points]
        self.draw.line(flat, fill=colour, width=max(int(width * self.unit), 1), joint="curve")

    def face(self, face: Face) -> None:
        """Everything, from the back to the front."""
        dark = _times(face.skin, 0.72)
        marks = landmarks(face)
        turn = 0.34 * face.yaw
        if face.style == 2:  # long hair
            self.oval(-0.3 * turn, 0.1, 1.0, 1.3, face.hair)
        self.polygon([(-0.3, 0.7), (0.3, 0.7), (0.36, 1.3), (-0.36, 1.3)], dark)
        self.oval(0, 1.75, 1.5, 0.62, face.shirt)
        if face.style < 2:
            self.oval(-0.4 * turn, -0.2, 0.86, 1.02, face.hair)
        for side in (-1, 1):
            if side * face.yaw < 0.3:  # the ear that is turned away is hidden
                self.oval(side * WIDTH - 0.2 * turn, 0.05, 0.12, 0.22, dark)
        self.oval(0, 0, WIDTH, 1.0, face.skin)
        if face.style > 0:
            fringe = [(-0.72, -0.32), (-0.6, -0.8), (0, -1.02), (0.6, -0.8), (0.72, -0.32)]
            self.polygon([*fringe, (turn + 0.2, -0.55), (turn - 0.35, -0.5)], face.hair)
        if face.beard:
            self.oval(turn * 0.8, 0.66, 0.5, 0.36, face.hair)
        self._eyes(face, marks)
        nose = tuple(marks[2])
        self.polygon([(turn, -0.05), (nose[0] - 0.13, 0.3), (nose[0] + 0.13, 0.3)], dark)
        self.oval(nose[0], nose[1] + 0.02, 0.07, 0.06, _times(face.skin, 1.08))
        self._mouth(face, marks)
        if face.mask:
            self.polygon([(-0.66, 0.1), (nose[0], 0.02), (0.66, 0.1), (0.5, 0.85), (0, 1.0),
                          (-0.5, 0.85)], (150, 190, 215))  # fmt: skip

    def _eyes(self, face: Face, marks: np.ndarray) -> None:
        near = 1 - 0.3 * abs(face.yaw)
        for x, y in marks[:2]:
            self.oval(x, y, 0.15 * near, 0.08, (240, 240, 236))
            self.oval(x + 0.04 * face.yaw, y, 0.07, 0.075, _times(face.hair, 0.8))
            self.line([(x - 0.17, y - 0.17), (x, y - 0.22), (x + 0.17, y - 0.17)], face.hair, 0.06)
            if face.glasses:
                ring = [(x + 0.22 * math.cos(a), y + 0.19 * math.sin(a))
                        for a in np.linspace(0, 2 * math.pi, 17)]  # fmt: skip
                self.line(ring, (20, 20, 24), 0.04)
        if face.glasses:
            self.line([marks[0] + (0.2, 0), marks[1] - (0.2, 0)], (20, 20, 24), 0.04)

    def _mouth(self, face: Face, marks: np.ndarray) -> None:
        left, right = (tuple(p) for p in marks[3:])
        middle = (marks[3] + marks[4]) / 2
        low = (middle[0], middle[1] + 0.06 + 0.16 * face.smile)
        red = (int(0.7 * face.skin[0] + 40) % 256, int(face.skin[1] * 0.5), int(face.skin[2] * 0.5))
        if face.smile > 0.6:
            self.polygon([left, (middle[0], middle[1] + 0.03), right, low], (240, 235, 230))
        self.line([left, low, right], red, 0.07)


def _times(colour: Colour, factor: float) -> Colour:
    return tuple(min(int(v * factor), 255) for v in colour)  # type: ignore[return-value]
