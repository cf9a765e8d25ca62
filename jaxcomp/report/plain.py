"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"  # noqa: RUF001 (an en dash is what a table shows for "none")


def number(value: Any, form: str = ",.0f", unit: str = "") -> str:
    """A number in a format, with its unit; a dash for what is absent or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING
    return f"{value:{form}}{unit}"


def percent(value: Any, digits: int = 1) -> str:
    """A share as per cent."""
    return number(value, f".{digits}%").replace("%", " %")


def significant(value: Any) -> str:
    """About four significant digits, without an exponent where it reads well."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e7):
        return f"{value:.3e}"
    digits = 0 if size >= 1000 else max(0, 3 - math.floor(math.log10(size))) if size else 0
    return f"{value:,.{digits}f}"
