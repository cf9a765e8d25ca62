"""What the text files of a run have in common: labels and blocks of lines."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

RULE = "=" * 50
MAX_DECIMALS = 12  # longer names of folders would be worse to read than an exponent


def lambda_label(rate_weight: float) -> str:
    """The rate weight with three decimals where these are exact, otherwise with enough.

    Distinct weights have distinct labels, so that no run writes over another's analysis.

    Args:
      rate_weight: the weight of the rate in the loss, finite.

    Returns:
      "0.001", "0.020", "0.00025"; beyond twelve decimals the shortest exact form, as in "1e-15".
    """
    exact = Decimal(repr(float(rate_weight)))
    exponent = exact.as_tuple().exponent
    decimals = max(3, -exponent if isinstance(exponent, int) else 3)
    return repr(float(rate_weight)) if decimals > MAX_DECIMALS else f"{exact:.{decimals}f}"


def lambda_exponent(rate_weight: float) -> str:
    """The rate weight with an exponent, as short as it is exact: "2.5e-4"; "0" for none.

    Args:
      rate_weight: the weight of the rate in the loss, finite.
    """
    sign, digits, exponent = Decimal(repr(float(rate_weight))).normalize().as_tuple()
    assert isinstance(exponent, int)  # it is finite
    if digits == (0,):
        return "0"
    first, *others = map(str, digits)
    mantissa = f"{first}.{''.join(others)}" if others else first
    return f"{'-' if sign else ''}{mantissa}e{exponent + len(others)}"


def block(title: str, rows: Sequence[tuple[str, Any]]) -> list[str]:
    """A titled block with one indented `name: value` a line, and an empty line before it."""
    return ["", f"{title}:", *(f"  {name}: {value}" for name, value in rows)]


def document(lines: Sequence[str]) -> str:
    """The text of a file."""
    return "\n".join(lines) + "\n"
