"""Sweeps: what `launch/sweep.py` runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxcomp.rules.workload import Workload, named

_MEMBER = ("config", "rate_weights", "levels", "overrides", "epochs", "chained_epochs", "after")


def _contradictions(leaves: Mapping[str, Any]) -> Iterable[str]:
    members, unknown = named(leaves, "sweep.members", _MEMBER)
    yield from unknown
    if not members:
        yield "config.sweep.members is empty; name at least one curve."
    for name in sorted(members):
        prefix = f"sweep.members.{name}."
        weights = leaves.get(f"{prefix}rate_weights", ())
        if not weights or len(set(weights)) != len(weights) or min(weights) < 0:
            yield (
                f"config.{prefix}rate_weights={weights!r}; give one or more different numbers, "
                "not negative."
            )
        levels, epochs = (leaves.get(f"{prefix}{k}", ()) for k in ("levels", "epochs"))
        if len(epochs) not in (0, max(1, len(levels))):
            yield f"config.{prefix}epochs={epochs!r}; give a number for each of levels={levels!r}."
        share = leaves.get(f"{prefix}chained_epochs", 0.0)
        if not 0 <= share <= 1:
            yield f"config.{prefix}chained_epochs={share!r} is a share of the epochs, from 0 to 1."
        yield from _starts(leaves, members, name)


def _starts(leaves: Mapping[str, Any], members: set[str], name: str) -> Iterable[str]:
    """What is wrong with the member that another one starts from."""
    prefix, after = f"sweep.members.{name}.", leaves.get(f"sweep.members.{name}.after", "")
    if not after:
        return
    if after not in members - {name} or leaves.get(f"sweep.members.{after}.after"):
        others = ", ".join(m for m in sorted(members) if not leaves.get(f"sweep.members.{m}.after"))
        yield f"config.{prefix}after={after!r}; give a member that starts from scratch: {others}."
        return
    for key, what in (("rate_weights", "rate weights"), ("levels", "levels")):
        mine, other = (len(leaves.get(f"sweep.members.{m}.{key}", ())) for m in (name, after))
        if mine != other:
            yield f"config.{prefix}after={after!r} has {other} {what}, {name} {mine}."


SWEEP = Workload(contradictions=_contradictions)
