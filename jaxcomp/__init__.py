"""jaxcomp: split inference and learned feature compression for machines, in JAX.

Importing the package is cheap: the loaders below import JAX only when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "load_codec",
    "load_detector",
    "load_lidar_detector",
    "load_residual_codec",
]

if TYPE_CHECKING:
    from jaxcomp.jobs.rq_codec import load_residual_codec
    from jaxcomp.loaders import load_codec, load_detector
    from jaxcomp.loaders_lidar import load_lidar_detector


def __getattr__(name: str) -> Any:
    """Resolves the public loaders lazily (PEP 562)."""
    if name in ("load_codec", "load_detector"):
        from jaxcomp import loaders

        return getattr(loaders, name)
    if name == "load_lidar_detector":
        from jaxcomp.loaders_lidar import load_lidar_detector

        return load_lidar_detector
    if name == "load_residual_codec":
        from jaxcomp.jobs.rq_codec import load_residual_codec

        return load_residual_codec
    raise AttributeError(f"module 'jaxcomp' has no attribute {name!r}")
