"""Feature codecs: learned transforms and priors, integer tables, an entropy coder and a container.

`CODECS` maps the name in a config (`config.model.name`) to the linen module. Names are imported on
first use, so that reading a container or a table does not load jax.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "FactorisedCodec": "factorised",
    "parameter_count": "factorised",
    "refresh_quantiles": "factorised",
    "with_statistics": "factorised",
    "CdfTables": "tables",
    "build_tables": "tables",
    "compress": "coding",
    "compress_batch": "coding",
    "decompress": "coding",
    "decompress_batch": "coding",
    "decompress_partial": "coding",
    "tables_from_pmfs": "tables",
}

__all__ = ["CODECS", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name == "CODECS":
        from jaxcomp.codecs.factorised import FactorisedCodec

        return {"factorised": FactorisedCodec}
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
