"""How large an image becomes before the network sees it; the resizing itself runs on the device.

Only sizes are computed here, in the arithmetic of torchvision, so that a frame gets the same number
of rows and columns in every implementation.
"""

from __future__ import annotations

import dataclasses
import math

from jaxcomp.errors import ConfigError, DataError

RULES = ("none", "stretch", "shortest")


@dataclasses.dataclass(frozen=True)
class ResizeRule:
    """The size of an image inside the network's canvas.

    Attributes:
      name: "none" (images have the size of the canvas), "stretch" (to the canvas, whatever the
        aspect), or "shortest" (aspect kept: the shorter side becomes `min_side` unless the longer
        one would exceed `max_side`; what is left of the canvas is padding).
      height, width: the canvas, pixels.
      min_side, max_side: for "shortest", pixels; 800 and 1333 in torchvision's detectors.
    """

    name: str
    height: int
    width: int
    min_side: int = 800
    max_side: int = 1333

    def __post_init__(self) -> None:
        """Refuses unknown names.

        Raises:
          ConfigError: the name is not one of `RULES`.
        """
        if self.name not in RULES:
            raise ConfigError(f"data.resize={self.name!r}; use one of: {', '.join(RULES)}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the network's image for one of `height` x `width` pixels.

        Raises:
          DataError: the image is empty or does not fit the canvas.
        """
        if height < 1 or width < 1:
            raise DataError(f"an image of {height} x {width} pixels is empty")
        if self.name == "stretch":
            return self.height, self.width
        rows, columns = height, width
        if self.name == "shortest":
            rows, columns = shortest_size(height, width, self.min_side, self.max_side)
        fits = (rows, columns) == (self.height, self.width)
        if self.name == "shortest":
            fits = rows <= self.height and columns <= self.width
        if not fits:
            raise DataError(
                f"an image of {height} x {width} pixels becomes {rows} x {columns}, but the canvas "
                f"is {self.height} x {self.width}; change data.height and data.width, or "
                "data.resize='stretch'"
            )
        return rows, columns


def shortest_size(height: int, width: int, min_side: int, max_side: int) -> tuple[int, int]:
    """Size after torchvision's `GeneralizedRCNNTransform`.

    The product is rounded down, which decides the last pixel: 1224 * (1333 / 1224) is a little less
    than 1333 in double precision, so 370 x 1224 becomes 402 x 1332.
    """
    scale = min(min_side / min(height, width), max_side / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def canvas_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """The smallest multiples of `multiple` that hold `height` x `width` pixels."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple
