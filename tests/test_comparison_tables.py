"""Numbers of a comparison that can be checked by hand, and tables that read back."""

import csv
import io

import numpy as np
import pytest

from jaxcomp.jobs import rate_accuracy_results as results_of
from jaxcomp.report import bars, comparison_tables, curves, raster

RATES = (100.0, 200.0, 400.0, 800.0)
QUALITY = (0.2, 0.4, 0.6, 0.8)


def points(system, kind, rates=RATES, quality=QUALITY, whole=True):
    return [
        {
            "name": f"{system}-{i}", "system": system, "kind": kind, "whole": whole,
            "setting": i, "setting_name": "QP", "bytes_per_frame": rate, "bpp_image": rate / 1e3,
            "accuracy": {"map50": q, "map75": q / 2, "f1_50": q},
            "intervals": {m: [q - 0.1, q + 0.1] for m in results_of.MEASURES},
            "difference": {m: [q - 1, q - 1.1, q - 0.9] for m in results_of.MEASURES},
            "encode_ms": 1.0, "decode_ms": 2.0,
        }
        for i, (rate, q) in enumerate(zip(rates, quality, strict=True))
    ]  # fmt: skip


def row(rows, test, anchor, measure="map50", method="pchip"):
    wanted = (test, anchor, measure, method)
    (found,) = [
        r for r in rows if (r["test"], r["anchor"], r["measure"], r["method"]) == wanted
    ]  # fmt: skip
    return found


def test_half_the_bytes_at_the_same_accuracy_is_minus_fifty_per_cent():
    half = points("ours", "learned", [r / 2 for r in RATES])
    rows = results_of.deltas([*half, *points("avif", "image")])
    for method in ("pchip", "akima"):
        found = row(rows, "ours", "avif", method=method)
        assert found["bd_rate"] == pytest.approx(-50)
        assert found["bd_rate_overlap"] == pytest.approx(1)
        assert found["bd_rate_leave_one_out"] == pytest.approx([-50, -50])
        # 0.2 of mAP a doubling, and we are one doubling ahead; 100 to 400 of 50 to 800 is common.
        assert found["bd_quality"] == pytest.approx(0.2)
        assert found["bd_quality_overlap"] == pytest.approx(0.5)
    assert row(rows, "ours", "avif", "map75")["bd_quality"] == pytest.approx(0.1)


def test_the_table_says_why_there_is_no_number():
    low = points("ours", "learned", RATES, (0.01, 0.02, 0.03, 0.04))
    alone = points("one", "learned", RATES[:1], QUALITY[:1])
    twice = points("twice", "feature", (100.0, 100.0), (0.2, 0.3))
    rows = results_of.deltas([*low, *alone, *twice, *points("avif", "image")])
    assert row(rows, "ours", "avif")["bd_rate"] is None
    assert "no range in common" in row(rows, "ours", "avif")["reason"]
    assert "needs 2 points" in row(rows, "one", "avif")["reason"]
    assert "rate 100" in row(rows, "ours", "twice")["reason"]
    text = comparison_tables.markdown(
        comparison_tables.bd_pairs(rows), comparison_tables.BD_COLUMNS, 3
    )
    assert "no range in common" in text


def test_the_interval_takes_the_same_sets_for_both_curves():
    rng = np.random.default_rng(0)
    hard = 1 + 0.3 * rng.random(41)  # sets of frames differ, for both systems alike
    half = points("ours", "learned", [r / 2 for r in RATES])
    both = [*half, *points("avif", "image")]
    samples = {
        p["name"]: {"rate": p["bytes_per_frame"] * hard}
        | {m: p["accuracy"][m] / hard for m in results_of.MEASURES}
        for p in both
    }
    found = row(results_of.deltas(both, samples), "ours", "avif")
    assert found["bd_rate_interval"] == pytest.approx([-50, -50])
    mixed = {n: {k: rng.permutation(x) for k, x in s.items()} for n, s in samples.items()}
    low, high = row(results_of.deltas(both, mixed), "ours", "avif")["bd_rate_interval"]
    assert low < -51 and high > -49
    text = comparison_tables.markdown(
        comparison_tables.bd_pairs([found]), comparison_tables.BD_COLUMNS, 3
    )
    assert "-50 to -50" in text


def test_gains_are_told_at_all_three_accuracies():
    half = points("random, task loss", "learned", [r / 2 for r in RATES])
    whole = points("random, feature loss", "learned")
    joint = points("joint, feature loss", "learned", [r / 4 for r in RATES])
    every = [*joint, *whole, *half, *points("avif", "image")]
    samples = {
        p["name"]: {"rate": np.full(11, p["bytes_per_frame"])}
        | {m: np.full(11, p["accuracy"][m]) for m in results_of.MEASURES}
        for p in every
    }
    rows = results_of.deltas(every, samples)
    learned = [p["system"] for p in (joint[0], whole[0], half[0])]
    pairs = comparison_tables.gain_pairs(rows, learned)
    assert [(p["test"], p["anchor"], p["same"]) for p in pairs] == [
        (learned[2], learned[1], True), (learned[1], learned[0], False),
        (learned[2], learned[0], False),
    ]  # fmt: skip
    (cells, *_) = comparison_tables.cells(pairs, comparison_tables.GAIN_COLUMNS)
    # A doubling is 0.2 of mAP@0.5 and of F1, 0.1 of mAP@0.75; every set of frames says the same.
    gains = [
        "+0.2000 [+0.2000, +0.2000]",
        "+0.1000 [+0.1000, +0.1000]",
        "+0.2000 [+0.2000, +0.2000]",
    ]
    assert cells[2:5] == gains and cells[5:] == ["-50.0 [-50.0, -50.0]"] * 3
    (main, avif) = (row(rows, learned[2], n) for n in (learned[1], "avif"))
    assert main["bd_quality_interval"] == pytest.approx([0.2, 0.2])
    assert avif["bd_rate_interval"] == pytest.approx([-50, -50])


def test_who_is_compared_with_whom():
    many = [
        *points("a", "learned"), *points("b", "learned"), *points("p2", "learned", whole=False),
        *points("hevc", "feature"), *points("boxes", "local", RATES[:1], QUALITY[:1]),
    ]  # fmt: skip
    pairs = {(r["test"], r["anchor"]) for r in results_of.deltas(many)}
    assert pairs == {("a", "hevc"), ("b", "hevc"), ("b", "a")}


def test_the_cheapest_point_that_keeps_enough_stands_for_its_system():
    base = {"accuracy": {"map50": 0.6}}
    systems = {r["system"]: r for r in results_of.systems_of(points("a", "learned"), base)}
    assert (systems["a"]["chosen"], systems["a"]["keeps"]) == ("a-2", True)
    base = {"accuracy": {"map50": 0.9}}
    (weak,) = results_of.systems_of(points("a", "learned"), base)
    assert (weak["chosen"], weak["keeps"]) == ("a-3", False)


def test_tables_read_back():
    rows = points("a|b & 50 %_c", "learned")
    read = list(csv.DictReader(io.StringIO(comparison_tables.comma_separated(rows))))
    assert [float(r["accuracy.map50"]) for r in read] == list(QUALITY)
    assert read[0]["intervals.map50"] == "0.1 0.30000000000000004"
    text = comparison_tables.markdown(rows, comparison_tables.RATE_COLUMNS)
    lines = [line.strip("|").split("|") for line in text.splitlines()]
    assert {len(line) for line in lines} == {len(comparison_tables.RATE_COLUMNS)}
    assert lines[2][7].strip() == "0.200 [0.100, 0.300]"
    tex = comparison_tables.latex(rows, comparison_tables.RATE_COLUMNS)
    assert tex.startswith(r"\begin{tabular}{ll") and r"a|b \& 50 \%\_c" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    columns = len(comparison_tables.RATE_COLUMNS) - 1
    assert all(line.replace(r"\&", "").count("&") == columns for line in body)


def test_curves_leave_out_what_cannot_be_drawn():
    look = curves.Look("learned", 0)
    nan = float("nan")
    drawn = curves.curve_chart(
        [curves.Curve("a<b", look, [curves.Point(1, 2, (1, 3)), curves.Point(0, 1),
                                    curves.Point(3, nan), curves.Point(10, 4, (nan, 5))])],
        x_label="x", y_label="y", alt="a", reference=3.0,
    )  # fmt: skip
    svg = drawn.svg()
    assert svg.count("<circle") == 2 and svg.count('class="er') == 1
    assert "a&lt;b" in svg and "a<b" not in svg and "nan" not in svg
    empty = curves.curve_chart([], x_label="x", y_label="y", alt="a")
    assert not empty.svg()
    assert not bars.stacked_bars([("a", {})], x_label="x", alt="a").svg()


def test_bars_are_as_long_as_their_parts():
    chart = bars.stacked_bars(
        [("a", {"p": 1.0, "q": 3.0}), ("b", {"q": 2.0})], x_label="x", alt="a"
    )
    widths = [
        float(part.split('width="')[1].split('"')[0]) for part in chart.content.split("<rect")[1:]
    ]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.2)


def test_files_stand_alone():
    chart = bars.stacked_bars([("a", {"p": 1.0})], x_label="x", alt="alone")
    text = chart.file()
    assert text.startswith("<svg xmlns=") and "var(" not in text and "<title>alone" in text
    pytest.importorskip("resvg_py")
    assert raster.png_of(text)[:8] == b"\x89PNG\r\n\x1a\n"
