"""Generated pictures with labels: a shape filled with a texture of one of two scales, on noise.

A class is a pair (texture, scale). Shape, position, size, turn, contrast, period, phase and noise
are drawn for each picture, so that pixels alone say little about the class while structure does.
All pictures are grey of the same brightness: with a colour of its own, that would be what a network
predicts of a picture's hidden parts.
"""

from __future__ import annotations

import numpy as np

SHAPES = ("disc", "square", "triangle", "ring")
TEXTURES = ("stripes", "checks", "dots", "circles")
SCALES = {"fine": (0.09, 0.13), "coarse": (0.19, 0.26)}  # periods over the side
CLASSES = tuple(f"{scale}_{texture}" for texture in TEXTURES for scale in SCALES)
_STREAM = 7  # of the seed


def _rotated(side: int, centre: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of every pixel in a turned frame, in pixels from a centre."""
    y, x = np.indices((side, side)).astype(np.float32) + 0.5
    dy, dx = y - centre[0], x - centre[1]
    c, s = np.cos(angle), np.sin(angle)
    return c * dy - s * dx, s * dy + c * dx


def _shape(name: str, v: np.ndarray, u: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels, above 0 inside."""
    if name == "disc":
        return radius - np.hypot(u, v)
    if name == "ring":
        return 0.32 * radius - np.abs(np.hypot(u, v) - 0.75 * radius)
    if name == "square":
        return 0.86 * radius - np.maximum(np.abs(u), np.abs(v))
    edges = [np.cos(a) * u + np.sin(a) * v for a in np.arange(3) * 2 * np.pi / 3]
    return 0.62 * radius - np.max(edges, 0)


def _texture(name: str, v: np.ndarray, u: np.ndarray, period: float) -> np.ndarray:
    """A pattern from 0 to 1 with a period in pixels."""
    if name == "circles":
        raw = np.sin(2 * np.pi * np.hypot(u, v) / period)
    else:
        a, b = np.sin(2 * np.pi * u / period), np.sin(2 * np.pi * v / period)
        raw = {"stripes": a, "checks": a * b * 2, "dots": a + b - 0.8}[name]
    return 1 / (1 + np.exp(-6 * raw))


def texture_picture(seed: int, row: int, side: int = 32) -> tuple[np.ndarray, int]:
    """One picture, a pure function of its arguments.

    Args:
      seed: of the set.
      row: number of the picture.
      side: rows and columns, from 16.

    Returns:
      (uint8 [side, side, 3], index into `CLASSES`).
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _STREAM, row])))
    label = int(rng.integers(len(CLASSES)))
    texture, scale = TEXTURES[label // len(SCALES)], tuple(SCALES)[label % len(SCALES)]
    shape = SHAPES[rng.integers(len(SHAPES))]
    radius = side * rng.uniform(0.3, 0.45)
    centre = side / 2 + rng.uniform(-1, 1, 2) * (side / 2 - 0.8 * radius)
    v, u = _rotated(side, centre, rng.uniform(0, 2 * np.pi))
    inside = 1 / (1 + np.exp(-3 * _shape(shape, v, u, radius)))[..., None]
    v, u = _rotated(side, rng.uniform(0, side, 2), rng.uniform(0, 2 * np.pi))
    pattern = _texture(texture, v, u, side * rng.uniform(*SCALES[scale]))
    pattern = (pattern - pattern.mean())[..., None]
    contrast = rng.uniform(0.5, 0.9) * rng.choice([-1, 1])
    noise = rng.normal(0, 0.03, (side, side, 3))
    image = 0.5 + inside * pattern * contrast + noise
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8), label


def texture_set(seed: int, start: int, count: int, side: int) -> dict[str, np.ndarray]:
    """{"image": uint8 [count, side, side, 3], "label": int32 [count]} of rows from `start`."""
    pairs = [texture_picture(seed, row, side) for row in range(start, start + count)]
    images, labels = zip(*pairs, strict=True)
    return {"image": np.stack(images), "label": np.array(labels, np.int32)}
