"""Tables over seeds: what `launch/seeds.py` runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Workload, named

_VARIANT = ("config", "overrides", "after")


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    seeds = leaves.get("seeds.seeds", ())
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        yield f"config.seeds.seeds={seeds!r}; give one or more different numbers, not negative."
    variants, unknown = named(leaves, "seeds.variants", _VARIANT)
    yield from unknown
    if not variants:
        yield "config.seeds.variants is empty; name at least one."
    for name in sorted(variants):
        prefix = f"seeds.variants.{name}."
        after = leaves.get(f"{prefix}after", "")
        if after and (
            after not in variants - {name} or leaves.get(f"seeds.variants.{after}.after")
        ):
            yield f"config.{prefix}after={after!r}; give a variant that needs no other."
        if not after and any("{after}" in word for word in leaves.get(f"{prefix}overrides", ())):
            yield f"config.{prefix}overrides has {{after}}; name the variant in {prefix}after."
    if not any(k.startswith("seeds.rows.") for k in leaves):
        yield "config.seeds.rows is empty; name what the table shows."


SEEDS = Workload(contradictions=_contradictions)
