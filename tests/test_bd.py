"""Bjontegaard deltas against the reference numbers, SciPy and cases with known answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.evaluate import bd
from jaxcomp.evaluate.bd import CurveError, bd_quality, bd_rate, curve

COLUMNS = {"pchip": 2, "akima": 4, "cubic": 6}


@pytest.fixture(scope="module")
def reference(shared):
    arrays = np.load(shared / "oracles" / "metrics_bdrate.npz", allow_pickle=False)
    names = ("anchor_rate", "anchor_quality", "test_rate", "test_quality")
    pairs = []
    for rows in zip(*(arrays[n] for n in names), strict=True):
        a_rate, a_quality, t_rate, t_quality = (row[~np.isnan(row)] for row in rows)
        pairs.append((curve(a_rate, a_quality), curve(t_rate, t_quality)))
    return pairs, arrays["bd"]


@pytest.mark.parametrize("method", bd.METHODS)
def test_all_pairs_match_the_reference(reference, method):
    pairs, expected = reference
    assert len(pairs) == 10
    got = np.array([[bd_rate(*p, method).value, bd_quality(*p, method).value] for p in pairs])
    column = COLUMNS[method]
    np.testing.assert_allclose(got, expected[:, column : column + 2], rtol=0, atol=1e-6)


def test_pchip_is_the_independent_form_too(reference):
    pairs, expected = reference
    got = np.array([[bd_rate(*p).value, bd_quality(*p).value] for p in pairs])
    np.testing.assert_allclose(got, expected[:, :2], rtol=0, atol=1e-6)


RATE = np.array([1000.0, 2000, 4000, 9000, 15000])
QUALITY = np.array([0.2, 0.31, 0.4, 0.47, 0.5])


@pytest.mark.parametrize("method", bd.METHODS)
def test_half_the_rate_is_minus_fifty_percent(method):
    delta = bd_rate(curve(RATE, QUALITY), curve(RATE / 2, QUALITY), method)
    assert delta.value == pytest.approx(-50.0, abs=1e-9)
    assert (delta.low, delta.high, delta.overlap) == (0.2, 0.5, 1.0)
    assert delta.points == (5, 5) and delta.dropped == (0, 0) and delta.reason is None


@pytest.mark.parametrize("method", bd.METHODS)
def test_a_shift_in_quality_is_returned_as_it_is(method):
    delta = bd_quality(curve(RATE, QUALITY), curve(RATE, QUALITY + 0.03), method)
    assert delta.value == pytest.approx(0.03, abs=1e-12)
    assert (delta.low, delta.high) == pytest.approx((1000.0, 15000.0))


increments = st.lists(st.floats(0.01, 10.0), min_size=2, max_size=9)
steps = st.lists(st.floats(0.01, 10.0) | st.floats(-10.0, -0.01), min_size=2, max_size=9)


@given(increments, steps)
@settings(max_examples=100, deadline=None)
def test_slopes_and_integrals_equal_scipy(dx, dy):
    interpolate = pytest.importorskip("scipy.interpolate")
    n = min(len(dx), len(dy)) + 1
    x, y = np.cumsum([0.0, *dx])[:n], np.cumsum([1.0, *dy])[:n]
    low, high = x[0] + 0.1 * (x[-1] - x[0]), x[0] + 0.7 * (x[-1] - x[0])
    for method, slopes, form in (
        ("pchip", bd.pchip_slopes, interpolate.PchipInterpolator),
        ("akima", bd.akima_slopes, interpolate.Akima1DInterpolator),
    ):
        ours = interpolate.CubicHermiteSpline(x, y, slopes(x, y))
        theirs = form(x, y)
        at = np.linspace(x[0], x[-1], 40)
        np.testing.assert_allclose(ours(at), theirs(at), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            bd._integral(x, y, low, high, method), theirs.integrate(low, high), rtol=1e-9
        )


@given(increments)
@settings(max_examples=60, deadline=None)
def test_pchip_stays_between_its_points(dy):
    interpolate = pytest.importorskip("scipy.interpolate")
    y = np.cumsum([0.0, *dy])
    x = np.arange(len(y), dtype=float)
    fine = interpolate.CubicHermiteSpline(x, y, bd.pchip_slopes(x, y))(np.linspace(0, x[-1], 500))
    assert (np.diff(fine) >= -1e-9).all()


@given(st.floats(0.05, 20.0))
@settings(max_examples=30, deadline=None)
def test_swapping_the_curves_inverts_the_ratio(factor):
    a, b = curve(RATE, QUALITY), curve(RATE * factor, QUALITY + 0.01)
    one, other = bd_rate(a, b).value, bd_rate(b, a).value
    assert (1 + one / 100) * (1 + other / 100) == pytest.approx(1.0)
    assert bd_quality(a, a).value == pytest.approx(0.0, abs=1e-12)


def test_points_are_sorted_and_those_worse_than_a_cheaper_one_left_out():
    dipping = curve([4, 1, 2, 3, 5], [0.4, 0.1, 0.3, 0.2, 0.4])
    assert dipping.rate.tolist() == [1, 2, 4] and dipping.quality.tolist() == [0.1, 0.3, 0.4]
    assert dipping.dropped == 2
    delta = bd_rate(curve([1, 2, 4], [0.1, 0.3, 0.4]), dipping)
    assert delta.value == pytest.approx(0.0, abs=1e-12) and delta.dropped == (0, 2)
    assert "0 and 2 no better than a cheaper one" in str(delta)


def test_only_the_common_range_counts():
    # The tested curve is half as dear where both are, and anything elsewhere.
    anchor = curve([1, 10, 100], [0.0, 0.1, 0.2])
    test = curve([5, 50, 500], [0.1, 0.2, 0.3])
    delta = bd_rate(anchor, test)
    assert (delta.low, delta.high) == (0.1, 0.2)
    assert delta.overlap == pytest.approx(1 / 3)
    assert delta.value == pytest.approx(-50.0)
    assert str(delta) == "-50.0 % (pchip, quality 0.1 to 0.2, overlap 33%, 3 and 3 points)"


def test_without_common_range_there_is_a_reason():
    low, high = curve([1, 2, 3], [0.1, 0.2, 0.3]), curve([10, 20, 30], [0.3, 0.5, 0.6])
    for delta in (bd_rate(low, high), bd_quality(low, high)):
        assert delta.value is None and delta.overlap == 0.0
        assert delta.reason == "the curves have no range in common"
        assert str(delta).startswith("none: ")


@pytest.mark.parametrize(("method", "least"), bd.LEAST_POINTS.items())
def test_too_few_points_are_a_reason_not_a_number(method, least):
    full, short = curve(RATE, QUALITY), curve(RATE[: least - 1], QUALITY[: least - 1])
    delta = bd_rate(full, short, method)
    assert delta.value is None and f"needs {least} points" in delta.reason
    assert bd_rate(full, curve(RATE[:least], QUALITY[:least]), method).value is not None


@pytest.mark.parametrize(
    ("rate", "quality", "message"),
    [
        ([1, 2, np.nan], [1, 2, 3], "not finite"),
        ([1, 2, 3], [1, np.inf, 3], "not finite"),
        ([0, 1, 2], [1, 2, 3], "rate 0; rates must be positive"),
        ([-1, 1, 2], [1, 2, 3], "must be positive"),
        ([1, 2, 2], [1, 2, 3], "two points have rate 2"),
        ([1, 2], [1, 2, 3], "differ"),
    ],
)
def test_bad_curves_are_typed_errors(rate, quality, message):
    with pytest.raises(CurveError, match=message):
        curve(rate, quality, "ours")


def test_unknown_method_is_an_error():
    with pytest.raises(ValueError, match="'spline'"):
        bd_rate(curve(RATE, QUALITY), curve(RATE, QUALITY), "spline")


def test_leaving_points_out_moves_a_bent_curve_only():
    straight = curve(10.0 ** np.arange(1, 6), np.arange(5) / 10)
    spread = bd.leave_one_out(straight, curve(straight.rate / 2, straight.quality))
    assert (spread.low, spread.high) == pytest.approx((-50, -50))
    assert (spread.computed, spread.failed) == (10, 0)
    bent = curve(RATE, QUALITY - [0, 0.02, 0, 0, 0])
    wide = bd.leave_one_out(curve(RATE, QUALITY), bent)
    assert wide.low < bd_rate(curve(RATE, QUALITY), bent).value < wide.high
    two = curve(RATE[:2], QUALITY[:2])
    none = bd.leave_one_out(two, two)
    assert none.failed == 4 and np.isnan(none.low)
    assert "4 without a value" in str(none)


def test_subset_error_is_the_interval_over_drawn_sets():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.05, (400, 1))  # of a set: moves both curves
    rates = np.tile(RATE, (400, 1))
    factors = np.linspace(0.5, 0.7, 400)
    spread = bd.subset_error(rates, QUALITY + hard, rates * factors[:, None], QUALITY + hard)
    assert (spread.low, spread.high) == pytest.approx((-49.5, -30.5), abs=1e-6)
    assert spread.computed == 400
    hard[7] = np.nan  # a set in which nothing could be measured
    partly = bd.subset_error(rates, QUALITY + hard, rates * factors[:, None], QUALITY + hard)
    assert (partly.computed, partly.failed) == (399, 1)
    hard[7] = 0
    apart = bd.subset_error(rates[:5], QUALITY + hard[:5], rates[:5], QUALITY + 1 + hard[:5])
    assert apart.failed == 5 and np.isnan(apart.high)
    with pytest.raises(CurveError, match="same sets"):
        bd.subset_error(rates, rates, rates[:3], rates[:3])


def test_a_curve_that_shoots_beyond_its_points_is_a_reason_not_a_number():
    """Two accuracies that are all but equal: a slope of that curve has no bound."""
    flat = curve([1121, 2431, 4271], [0.84380, 0.84381, 0.861])
    anchor = curve([7945, 19370, 38519], [0.733, 0.874, 0.888])
    delta = bd_rate(anchor, flat, "akima")
    assert delta.value is None and "akima leaves the range of the points" in delta.reason
    assert -95 < bd_rate(anchor, flat).value < -70
