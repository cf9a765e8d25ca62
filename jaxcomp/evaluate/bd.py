"""Bjontegaard deltas: how much rate, or how much accuracy, lies between two curves on average.

Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001. The curves
are interpolated over the base-10 logarithm of the rate by

  pchip: Fritsch and Butland, "A method for constructing local monotone piecewise cubic
    interpolants", 1984: keeps monotone data monotone, what the video groups report;
  akima: Akima, "A new method of interpolation and smooth curve fitting", 1970: recommended by
    Herglotz et al., "The Bjontegaard bible", 2023; may swing a little between points;
  cubic: one polynomial of third degree by least squares, the original of 2001; for old papers.

Nothing is extrapolated: the mean is taken over the range that both curves cover, and a result says
how much that is. Accuracy of a network does not always rise with the rate, so there is a rule: of a
measured curve the points are kept that are better than every cheaper one (its Pareto front), and a
result says how many were left out. A running maximum of noisy points is a little too good, by at
most the noise, for every curve alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jaxcomp.errors import JaxcompError

LEAST_POINTS = {"pchip": 2, "akima": 3, "cubic": 4}
METHODS = tuple(LEAST_POINTS)


class CurveError(JaxcompError, ValueError):
    """A rate-quality curve holds NaN, a rate that is not positive, or two points of one rate."""


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """The Pareto front of measured points; made by `curve`.

    Attributes:
      rate: [N] rising, positive (bytes a frame, bits a pixel: only ratios matter).
      quality: [N] rising.
      dropped: measured points that are no better than a cheaper one.
    """

    rate: np.ndarray
    quality: np.ndarray
    dropped: int = 0


@dataclasses.dataclass(frozen=True)
class Delta:
    """What one curve differs from another by.

    Attributes:
      value: for "rate" percent, negative where the tested curve needs less; for "quality" in the
        unit of the quality, positive where it is better; None where there is no answer.
      measure: "rate" or "quality".
      method: of the interpolation.
      low: where the common range begins, NaN if there is none: a quality for "rate", a rate for
        "quality".
      high: where it ends.
      overlap: length of the common range over that of both together (0 to 1); on a logarithmic
        axis for rates. Below a half, the number speaks of a small part of the curves.
      points: (anchor, test) points that the interpolation goes through.
      dropped: (anchor, test) points left out because a cheaper one is as good.
      reason: why there is no value, else None.
    """

    value: float | None
    measure: str
    method: str
    low: float
    high: float
    overlap: float
    points: tuple[int, int]
    dropped: tuple[int, int]
    reason: str | None = None

    def __str__(self) -> str:
        """One line with everything that a reader needs to judge the value."""
        counts = f"{self.points[0]} and {self.points[1]} points"
        if any(self.dropped):
            counts += f", {self.dropped[0]} and {self.dropped[1]} no better than a cheaper one"
        if self.value is None:
            return f"none: {self.reason} ({counts})"
        value = f"{self.value:+.1f} %" if self.measure == "rate" else f"{self.value:+.4g}"
        axis = {"rate": "quality", "quality": "rate"}[self.measure]
        where = f"{axis} {self.low:.4g} to {self.high:.4g}, overlap {self.overlap:.0%}"
        return f"{value} ({self.method}, {where}, {counts})"


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far a delta moves when its data are taken in parts.

    Attributes:
      low: smallest value, or the lower end of the interval; NaN where nothing could be computed.
      high: the largest, or the upper end.
      computed: parts that gave a value.
      failed: parts that gave none (no overlap, too few points).
    """

    low: float
    high: float
    computed: int
    failed: int

    def __str__(self) -> str:
        """The range, and how many parts are behind it."""
        failed = f", {self.failed} without a value" if self.failed else ""
        return f"{self.low:+.4g} to {self.high:+.4g} ({self.computed} subsets{failed})"


def curve(rate: Sequence[float], quality: Sequence[float], name: str = "curve") -> Curve:
    """Checks measured points, sorts them by rate and keeps those better than every cheaper one.

    Args:
      rate: [N] in any unit, positive.
      quality: [N], higher is better (mAP, PSNR).
      name: for messages.

    Raises:
      CurveError: lengths differ, a value is NaN or infinite, a rate is not positive, or two points
        have the same rate.
    """
    rates, qualities = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
    if rates.ndim != 1 or rates.shape != qualities.shape:
        raise CurveError(f"{name}: rates {rates.shape} and qualities {qualities.shape} differ")
    if not (np.isfinite(rates).all() and np.isfinite(qualities).all()):
        raise CurveError(f"{name}: a rate or quality is not finite; leave that point out")
    if (rates <= 0).any():
        raise CurveError(f"{name}: rate {rates.min():g}; rates must be positive")
    order = np.argsort(rates)
    rates, qualities = rates[order], qualities[order]
    same = np.flatnonzero(np.diff(rates) == 0)
    if len(same):
        raise CurveError(f"{name}: two points have rate {rates[same[0]]:g}; keep one of them")
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(qualities)])[:-1]
    kept = qualities > best_before
    return Curve(rates[kept], qualities[kept], int((~kept).sum()))


def bd_rate(anchor: Curve, test: Curve, method: str = "pchip") -> Delta:
    """Mean rate of `test` over that of `anchor` at equal quality, minus 1, in percent.

    Args:
      anchor: what is compared with.
      test: what is judged; -20 says that it needs 20 % less.
      method: one of `METHODS`.
    """
    axes = [(c.quality, np.log10(c.rate)) for c in (anchor, test)]
    mean, low, high, overlap, reason = _mean_difference(axes, method)
    value = None if reason else 100.0 * (10.0**mean - 1.0)
    return _delta(value, "rate", method, low, high, overlap, reason, anchor, test)


def bd_quality(anchor: Curve, test: Curve, method: str = "pchip") -> Delta:
    """Mean quality of `test` minus that of `anchor` at equal rate, in the unit of the quality."""
    axes = [(np.log10(c.rate), c.quality) for c in (anchor, test)]
    mean, low, high, overlap, reason = _mean_difference(axes, method)
    value = None if reason else mean
    low, high = 10.0**low, 10.0**high
    return _delta(value, "quality", method, low, high, overlap, reason, anchor, test)


def _delta(value, measure, method, low, high, overlap, reason, anchor, test) -> Delta:
    points = (len(anchor.rate), len(test.rate))
    dropped = (anchor.dropped, test.dropped)
    return Delta(
        None if value is None else float(value),
        *(measure, method, float(low), float(high), overlap, points, dropped, reason),
    )


def _mean_difference(
    curves: Sequence[tuple[np.ndarray, np.ndarray]], method: str
) -> tuple[float, float, float, float, str | None]:
    """(mean of the second minus the first, low, high, overlap, reason) of two (x, y)."""
    if method not in METHODS:
        raise ValueError(f"method {method!r}; there are {', '.join(METHODS)}")
    short = [len(x) for x, _ in curves if len(x) < LEAST_POINTS[method]]
    if short:
        reason = f"{method} needs {LEAST_POINTS[method]} points, a curve has {min(short)}"
        return np.nan, np.nan, np.nan, 0.0, reason
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if not low < high:
        return np.nan, np.nan, np.nan, 0.0, "the curves have no range in common"
    union = max(x[-1] for x, _ in curves) - min(x[0] for x, _ in curves)
    first, second = (_integral(x, y, low, high, method) for x, y in curves)
    mean, overlap = (second - first) / (high - low), float((high - low) / union)
    heights = np.concatenate([y for _, y in curves])
    if abs(mean) > 1.01 * (heights.max() - heights.min()):
        # No pair of points differs by as much: two of one curve lie next to each other, and a
        # method that is not monotone shoots far beyond them.
        reason = f"{method} leaves the range of the points, two of which are too close"
        return np.nan, low, high, overlap, reason
    return mean, low, high, overlap, None


def _integral(x: np.ndarray, y: np.ndarray, low: float, high: float, method: str) -> float:
    """Integral of the interpolation of (x, y) from `low` to `high`, inside the range of x."""
    if method == "cubic":
        primitive = np.polynomial.Polynomial.fit(x, y, 3).integ()
        return float(primitive(high) - primitive(low))
    slopes = {"pchip": pchip_slopes, "akima": akima_slopes}[method](x, y)
    step = np.diff(x)
    begin, end = (np.clip((edge - x[:-1]) / step, 0.0, 1.0) for edge in (low, high))
    y0, y1, d0, d1 = y[:-1], y[1:], step * slopes[:-1], step * slopes[1:]

    def primitive_of(t: np.ndarray) -> np.ndarray:
        """Integral of the cubic Hermite polynomial of each segment over (0, t)."""
        t2, t3, t4 = t**2, t**3, t**4
        return (
            y0 * (t - t3 + t4 / 2)
            + y1 * (t3 - t4 / 2)
            + d0 * (t2 / 2 - 2 * t3 / 3 + t4 / 4)
            + d1 * (t4 / 4 - t3 / 3)
        )

    return float((step * (primitive_of(end) - primitive_of(begin))).sum())


def pchip_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N] derivatives at the points that keep the interpolant monotone (Fritsch and Butland)."""
    step = np.diff(x)
    secant = np.diff(y) / step
    if len(secant) == 1:
        return np.repeat(secant, 2)
    slopes = np.zeros(len(x))
    same = secant[:-1] * secant[1:] > 0
    before, after = secant[:-1][same], secant[1:][same]
    w1, w2 = (2 * step[1:] + step[:-1])[same], (step[1:] + 2 * step[:-1])[same]
    slopes[1:-1][same] = (w1 + w2) / (w1 / before + w2 / after)
    slopes[0] = _end_slope(*step[:2], *secant[:2])
    slopes[-1] = _end_slope(*step[:-3:-1], *secant[:-3:-1])
    return slopes


def _end_slope(h0: float, h1: float, s0: float, s1: float) -> float:
    """Three-point derivative at an end, limited so that the first segment stays monotone."""
    slope = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
    if slope * s0 <= 0:
        return 0.0
    return 3 * s0 if s0 * s1 <= 0 and abs(slope) > 3 * abs(s0) else slope


def akima_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N] derivatives at the points from the five around each (Akima, 1970)."""
    secant = np.diff(y) / np.diff(x)
    if len(secant) == 1:
        return np.repeat(secant, 2)
    first, last = 2 * secant[0] - secant[1], 2 * secant[-1] - secant[-2]
    m = np.concatenate([[2 * first - secant[0], first], secant, [last, 2 * last - secant[-1]]])
    before, after = np.abs(np.diff(m))[:-2], np.abs(np.diff(m))[2:]
    total = before + after
    curved = total > 1e-9 * total.max(initial=0.0)  # else on a line, where the weights are 0 / 0
    weighted = after * m[1:-2] + before * m[2:-1]
    return np.where(curved, weighted / np.where(curved, total, 1.0), (m[1:-2] + m[2:-1]) / 2)


def leave_one_out(
    anchor: Curve,
    test: Curve,
    method: str = "pchip",
    measure: Callable[[Curve, Curve, str], Delta] = bd_rate,
) -> Spread:
    """The range of a delta when each point of either curve in turn is left out.

    Says how much the value hangs on where the points happen to lie; at an end of a curve, the
    common range shrinks with the point.

    Args:
      anchor: see `bd_rate`.
      test: see `bd_rate`.
      method: see `bd_rate`.
      measure: `bd_rate` or `bd_quality`.
    """
    deltas = [measure(_without(anchor, i), test, method) for i in range(len(anchor.rate))]
    deltas += [measure(anchor, _without(test, i), method) for i in range(len(test.rate))]
    values = [d.value for d in deltas if d.value is not None]
    low, high = (min(values), max(values)) if values else (np.nan, np.nan)
    return Spread(low, high, len(values), len(deltas) - len(values))


def _without(c: Curve, index: int) -> Curve:
    return Curve(np.delete(c.rate, index), np.delete(c.quality, index), c.dropped)


def subset_error(
    anchor_rate: np.ndarray,
    anchor_quality: np.ndarray,
    test_rate: np.ndarray,
    test_quality: np.ndarray,
    *,
    method: str = "pchip",
    measure: Callable[[Curve, Curve, str], Delta] = bd_rate,
    level: float = 0.95,
) -> Spread:
    """Percentile interval of a delta over sets of frames drawn from the measured ones.

    Row r of every array belongs to the same drawn set (`bootstrap.frame_weights` with one seed), so
    that what is hard for both curves does not count as a difference between them.

    Args:
      anchor_rate: [R, A] rates of the anchor's points in each set.
      anchor_quality: [R, A].
      test_rate: [R, B].
      test_quality: [R, B].
      method: see `bd_rate`.
      measure: `bd_rate` or `bd_quality`.
      level: share of the sets inside the interval.

    Raises:
      CurveError: the arrays do not fit together, or a row is no curve (see `curve`). Rows with NaN
        (nothing could be measured in that set) count as failed.
    """
    arrays = [np.asarray(a) for a in (anchor_rate, anchor_quality, test_rate, test_quality)]
    if any(a.ndim != 2 or len(a) != len(arrays[0]) for a in arrays):
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise CurveError(f"shapes {shapes}; all need [sets, points] with the same sets")
    values = []
    for a_rate, a_quality, t_rate, t_quality in zip(*arrays, strict=True):
        if np.isnan(np.concatenate([a_rate, a_quality, t_rate, t_quality])).any():
            continue
        anchor, test = curve(a_rate, a_quality, "anchor"), curve(t_rate, t_quality, "test")
        delta = measure(anchor, test, method)
        if delta.value is not None:
            values.append(delta.value)
    low, high = np.nan, np.nan
    if values:
        low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)]).tolist()
    return Spread(low, high, len(values), len(arrays[0]) - len(values))
