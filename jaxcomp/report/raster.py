"""SVG files as PNG, by the small package resvg-py where it is installed (extra "plots")."""

from __future__ import annotations

import importlib
from types import ModuleType

WANTED = "PNG figures need the package resvg-py: pip install 'jaxcomp[plots]'"


def rasteriser() -> ModuleType | None:
    """The package, or None where it is not installed."""
    try:
        return importlib.import_module("resvg_py")
    except ImportError:
        return None


def png_of(svg: str, zoom: float = 2.0) -> bytes | None:
    """A whole SVG file as PNG, None without the package.

    Args:
      svg: the text of the file; colours must stand in it, not in variables of a page.
      zoom: pixels of the picture to those of the file.
    """
    package = rasteriser()
    if package is None:
        return None
    return bytes(package.svg_to_bytes(svg_string=svg, zoom=zoom))
