"""Compiler settings that make a difference, asked for by the jitted functions that need them."""

from __future__ import annotations

import functools
from typing import Any

import jax

# XLA's CPU backend hands convolutions to a library that takes half again as long for many small
# maps (the regions of a detector) as its own kernels; reductions stay with the library, whose sums
# are more accurate.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


@functools.cache
def inference_options() -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit` for forward passes on this backend; None for the defaults.

    The names are XLA's own and may change with it, so one that is not known is left out.
    """
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
    except Exception:  # what XLA raises for unknown names is not documented
        return None
    return _CPU
