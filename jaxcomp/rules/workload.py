"""The rules of one workload, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

# type of the value (of the elements for a tuple), least, most, is the least value itself allowed
Range: TypeAlias = tuple[type, float, float, bool]


def _none(leaves: Mapping[str, Any]) -> Iterable[str]:
    return ()


@dataclasses.dataclass(frozen=True)
class Workload:
    """What `config.task` allows beside the keys that all workloads share.

    Attributes:
      models: values of `model.name`; empty: any.
      stride: `data.height` and `data.width` are multiples of it.
      ranges: dotted key -> `Range`.
      choices: dotted key -> values.
      lengths: dotted key -> number of elements.
      contradictions: all values by dotted key -> a message for whatever does not fit together.
    """

    models: Sequence[str] = ()
    stride: int = 1
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    choices: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    contradictions: Callable[[Mapping[str, Any]], Iterable[str]] = _none


def named(leaves: Mapping[str, Any], root: str, known: Sequence[str]) -> tuple[set[str], list[str]]:
    """The names below a section of named ones, and a message for each unknown field of theirs.

    Args:
      leaves: all values by dotted key.
      root: the section, as "sweep.members".
      known: the fields that each may have.
    """
    paths = [key[len(root) + 1 :].split(".") for key in leaves if key.startswith(f"{root}.")]
    fields = sorted({(p[0], p[1]) for p in paths if len(p) > 1 and p[1] not in known})
    valid = ", ".join(known)
    return (
        {path[0] for path in paths},
        [f"Unknown key config.{root}.{name}.{field}; valid: {valid}." for name, field in fields],
    )
