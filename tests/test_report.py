"""The report of a fabricated run: complete, self-contained, valid, and safe with any content."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from jaxcomp import report
from jaxcomp.errors import CheckpointError
from jaxcomp.report import __main__ as command
from jaxcomp.report import index, page, pictures, plots, tables

HOSTILE = "<script>alert('x')</script>\"&|"
VOID = {"meta", "img", "br", "link", "hr", "input", "image", "use", "rect", "line", "circle"}
SECTIONS = [
    "Training",
    "Where the bits go",
    "Features before and after",
    "Detections",
    "Accuracy",
    "Provenance",
]


def make_summary(level=2, **changes):
    accuracy = {"map50": 0.5, "ap50_Car": 0.6, "ap50_Pedestrian": 0.4, "f1_50": 0.7}
    accuracy |= {"coco_ap": 0.3, "coco_ap_small": -1.0}
    return {
        "task": "feature_codec",
        "profile": "embedded",
        "config": {"task": "feature_codec", "level": level, "note": HOSTILE},
        "level": level,
        "rate_weight": 0.02,
        "params": 123_456,
        "params_digest": "ab" * 32,
        "frames": 10,
        "estimated_bits": 79_600.0,
        "actual_bits": 80_000,
        "overhead": 80_000 / 79_600 - 1,
        "file_bits": 83_200,
        "container_bytes_per_frame": 40.0,
        "bytes_per_frame": 1040.0,
        "raw_bytes_per_frame": 26_624.0,
        "compression_ratio": 25.6,
        "bits_per_value": 1.25,
        "mse": 0.02,
        "relative_mse": 0.0456,
        "psnr": 31.4,
        "map50_uncompressed": 0.6,
        "map50": 0.57,
        "map50_kept": 0.95,
        "map50_without_level": 0.25,
        "accuracy_uncompressed": accuracy,
        "accuracy": accuracy | {"map50": 0.57},
        "encode_ms": 1.5,
        "decode_ms": 2.5,
        "train_step_ms": 50.0,
        "seconds": 200.0,
        "data": "synthetic scenes",
        "hardware": {"cpu": HOSTILE, "cores": 2},
        "versions": {"jax": "0.10"},
        "commit": "c0ffee",
        "command": f"python -m jaxcomp.main --config=a.py --config.x={HOSTILE}",
        "feature_shape": [4, 13, 128],
        **changes,
    }


def make_arrays(frames=2):
    rng = np.random.default_rng(0)
    boxes = np.tile(np.array([[2, 3, 20, 12], [30, 1, 39, 15]], np.float32), (frames, 1, 1))
    labels = np.tile(np.array([1, 9], np.int32), (frames, 1))  # the second is no known class
    arrays = {
        "image": rng.integers(0, 255, (frames, 16, 40, 3), np.uint8),
        "image_id": np.arange(frames) + 700,
        "original": rng.normal(size=(frames, 2, 5, 6)).astype(np.float32),
        "truth_boxes": boxes,
        "truth_labels": labels,
        "truth_valid": np.ones((frames, 2), bool),
        "channel_bits": np.array([0.0, 5.0, 1.0]),
        "frame_bytes": np.array([100.0, 120.0, 90.0]),
        "frame_estimated_bits": np.array([800.0, 960.0, 720.0]),
        "frame_relative_mse": np.array([0.1, 0.2, 0.15]),
    }
    arrays["restored"] = arrays["original"] + 0.1
    for when in ("before", "after"):
        arrays |= {
            f"{when}_boxes": boxes,
            f"{when}_labels": labels,
            f"{when}_scores": np.tile(np.array([0.9, 0.1], np.float32), (frames, 1)),
            f"{when}_valid": np.ones((frames, 2), bool),
        }
    return arrays


def make_records(epochs=3):
    records = [{"kind": "batch", "step": 1, "epoch": 1, "lr": 1e-3, "loss": 3.0}]
    for epoch in range(1, epochs + 1):
        values = {"loss": 2.0 / epoch, "mse": 0.5, "distortion": 1.0 / epoch, "bpp": 9.0 / epoch}
        train = values | {"grad_norm": 0.5}
        if epoch == 2:
            train["bpp"] = None  # as the log writes a NaN
        records.append(
            {"kind": "epoch", "step": epoch * 5, "epoch": epoch, "lr": 1e-3, "val": values}
            | {"train": train, "alerts": [f"RATE DOMINATES {HOSTILE}"]}
        )
    return records


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "group" / "run 1")


def write_run(path, summary=None, arrays=None, records=None):
    path.mkdir(parents=True)
    summary = make_summary() if summary is None else summary
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "config.json").write_text(json.dumps(summary.get("config", {})))
    lines = [json.dumps(r) for r in (make_records() if records is None else records)]
    (path / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "ep']))
    np.savez(path / "evaluation.npz", **(make_arrays() if arrays is None else arrays))
    return path


class Outline(HTMLParser):
    """Checks nesting and collects what a page holds."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.headings = [], [], [], []
        self.ids = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID or (tag in ("rect", "circle")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag and (tag not in VOID or tag in ("rect", "circle")):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def outline(path):
    return Outline(path.read_text())


def test_page_has_all_sections_and_is_valid(run):
    found = outline(report.build_page(run))
    assert found.headings == SECTIONS
    assert found.tags.count("h1") == 1 and found.tags.count("main") == 1
    assert len(found.ids) == len(set(found.ids)) == 2
    assert not list(run.glob(".*tmp"))


def test_page_loads_and_runs_nothing(run):
    found = outline(report.build_page(run))
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(found.tags)
    for tag, name, value in found.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value.startswith(("data:image/", "#frame")), (tag, name, value[:50])
        assert not name.startswith("on")
    text = report.build_page(run).read_text()
    assert not re.search(r"url\(|@import|https?://", text)


def test_every_picture_has_words(run):
    found = outline(report.build_page(run))
    words = [value for tag, name, value in found.attributes if (tag, name) == ("img", "alt")]
    assert len(words) == found.tags.count("img") > 0 and all(words)
    charts = [
        value for tag, name, value in found.attributes if (tag, name) == ("svg", "aria-label")
    ]
    assert len(charts) == found.tags.count("svg") and all(charts)


def test_hostile_text_stays_text(run):
    text = report.build_page(run).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    hostile = make_summary(
        task=HOSTILE,
        profile=HOSTILE,
        data=HOSTILE,
        accuracy={f"ap50_{HOSTILE}": 0.5},
        commit=HOSTILE,
    )
    assert "<script" not in page.run_page(hostile, {}, make_records(), make_arrays())
    assert "<script" not in index.index_page([(HOSTILE, hostile)])


def test_page_names_measurement_data_and_command(run):
    text = report.build_page(run).read_text()
    for words in (
        "1,040.0",
        "25.6×",  # noqa: RUF001
        "0.6000 → 0.5700",
        "95.0 % kept",
        "synthetic",
        "overhead 0.50 %",
        "40.0 bytes",
        "1.5 / 2.5 ms",
        "python -m jaxcomp.main --config=a.py",
        "c0ffee",
        "frame 700",
        "RATE DOMINATES",
        "AP@0.5 Pedestrian",
    ):
        assert words in text, words


def test_weak_and_unknown_detections(run):
    text = report.build_page(run).read_text()
    assert "Car 0.90" in text and "0.10</text>" not in text
    assert "class 9" in text  # in the ground truth: a label without a name


def test_damaged_and_missing_files_leave_sections_out(run):
    (run / "evaluation.npz").write_bytes((run / "evaluation.npz").read_bytes()[:300])
    assert outline(report.build_page(run)).headings == ["Training", "Accuracy", "Provenance"]
    (run / "evaluation.npz").unlink()
    (run / "metrics.jsonl").unlink()
    assert outline(report.build_page(run)).headings == ["Accuracy", "Provenance"]
    (run / "summary.json").unlink()
    assert "not finished" in report.build_page(run).read_text()
    (run / "config.json").unlink()
    assert outline(report.build_page(run)).headings == []


def test_page_of_a_detector(tmp_path):
    arrays = {
        k: v for k, v in make_arrays().items() if k.split("_")[0] in ("image", "truth", "after")
    }
    keep = ("profile", "config", "params", "frames", "map50", "accuracy", "data", "command")
    summary = {k: v for k, v in make_summary().items() if k in keep} | {"task": "detect"}
    run = write_run(tmp_path / "run", summary, arrays)
    text = report.build_page(run).read_text()
    assert outline(run / "index.html").headings == [
        "Training",
        "Detections",
        "Accuracy",
        "Provenance",
    ]
    assert "decoded" not in text and "<h1>Detector, embedded profile</h1>" in text
    assert report.text_table(summary).startswith("Detector, embedded profile\n")


@pytest.mark.parametrize("epochs", [0, 1])
def test_curves_before_the_second_epoch(epochs):
    records = [*make_records(epochs), {"kind": "batch", "step": 2, "lr": 1e-3, "loss": 2.0}]
    assert "loss by step: train from 3 to 2" in page.run_page({}, {}, records, {})


def test_odd_arrays_do_not_stop_the_page():
    arrays = make_arrays(1)
    arrays["original"] = np.full((1, 1, 1, 2), np.nan, np.float32)
    arrays["restored"] = np.zeros((1, 1, 1, 2), np.float32)
    arrays["channel_bits"] = np.zeros(3)
    arrays["frame_bytes"] = np.array([7.0, np.nan])
    arrays["truth_valid"][:] = False
    arrays["before_boxes"][:] = np.inf
    Outline(page.run_page(make_summary(), {}, [], arrays))


def test_no_page_outside_a_directory(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        report.build_page(tmp_path / "nowhere")


def test_text_table_is_plain_and_aligned():
    text = report.text_table(make_summary())
    assert text.isascii() and text.endswith("\n")
    lines = text.splitlines()
    assert lines[0] == "Feature codec for level 2 (P4), rate weight 0.02"
    line = next(line for line in lines if line.startswith("mAP@0.5"))
    assert "0.6000 -> 0.5700" in line and "95.0 % kept" in line
    assert max(map(len, lines)) <= 100


def test_text_table_of_almost_nothing():
    assert report.text_table({}).startswith("Run\n")
    assert "Parameters" not in report.text_table({})
    assert "-" in report.text_table({"task": "feature_codec", "bytes_per_frame": float("nan")})


def test_markdown_table_by_level():
    text = report.markdown_table([make_summary(level) for level in (3, 0)])
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    assert rows[0] == [
        *("level", "feature shape", "raw bytes", "bytes/frame", "ratio", "bits/value"),
        *("relative MSE", "mAP without", "mAP before", "mAP after", "kept %"),
        "encode/decode ms",
    ]
    assert len({len(row) for row in rows}) == 1
    assert rows[2] == [
        *("0 (P2)", "4 × 13 × 128", "26,624", "1,040", "25.6×", "1.2500", "0.04560"),  # noqa: RUF001
        *("0.250", "0.600", "0.570", "95.0", "1.5 / 2.5"),
    ]
    assert rows[3][0] == "3 (P5)"


def test_markdown_table_shows_the_rate_weight_where_it_differs():
    text = report.markdown_table([make_summary(rate_weight=w) for w in (0.1, 0.02)])
    rows = text.splitlines()
    assert "rate weight" in rows[0] and "| 0.02 |" in rows[2] and "| 0.1 |" in rows[3]


def test_a_detector_has_neither_level_nor_rate_weight(tmp_path):
    # Its summary holds both, as every config does.
    detector = {"task": "detect", "level": 2, "rate_weight": 0.5, "frames": 10, "map50": 0.6}
    rows = report.markdown_table([make_summary(3), detector]).splitlines()
    assert "rate weight" not in rows[0]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| –", "| 3 (P5)"]  # noqa: RUF001
    runs = [write_run(tmp_path / "a", detector), write_run(tmp_path / "b", make_summary(3))]
    text = report.build_index(runs, tmp_path / "levels.html").read_text()
    assert "P4" not in text and "<h2>" not in text  # one codec is no comparison


@pytest.mark.parametrize("task", ["feature_codec", "detect"])
def test_lead_tells_how_the_state_was_chosen(task):
    chosen = "chosen by its loss on the same held-out frames"
    summary = make_summary(task=task, best_validation_loss=0.5)
    if task == "detect":
        summary.pop("bytes_per_frame")
    assert chosen in tables.lead(summary)
    assert chosen not in tables.lead(make_summary())  # nothing is on record


def test_index_links_to_the_runs(tmp_path):
    runs = [write_run(tmp_path / f"run {i} #", make_summary(i)) for i in (1, 0)]
    pages = [report.build_page(run) for run in runs]
    out = report.build_index(runs, tmp_path / "all" / "levels.html")
    found = outline(out)
    links = [value for tag, name, value in found.attributes if (tag, name) == ("a", "href")]
    targets = [(out.parent / unquote(link)).resolve() for link in links]
    assert targets == [p.resolve() for p in reversed(pages)]
    assert found.headings == ["Rate and accuracy"]


def test_index_refuses_unfinished_runs(tmp_path, run):
    (run / "summary.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        report.build_index([run], tmp_path / "x.html")
    (run / "summary.json").unlink()
    with pytest.raises(CheckpointError, match=r"summary\.json"):
        report.build_index([run], tmp_path / "x.html")


def test_command_takes_runs_and_folders_of_runs(run, tmp_path, capsys):
    other = write_run(tmp_path / "other", make_summary(0))
    out = tmp_path / "levels.html"
    assert command.main([str(run.parent), str(other), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("0 (P2)") < printed.index("2 (P4)") and printed.isascii()
    assert out.exists() and (run / "index.html").exists()
    assert command.main([str(run)]) == 0
    assert capsys.readouterr().out.startswith("Feature codec for level 2 (P4)")
    assert command.main([str(run), "--markdown"]) == 0
    assert capsys.readouterr().out == report.markdown_table([make_summary()])


def test_command_words_its_errors(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_help_needs_no_heavy_library():
    code = (
        "import sys\nfrom jaxcomp.report import __main__ as m\nm.parser().format_help()\n"
        "print([n for n in ('jax', 'matplotlib', 'PIL', 'tensorflow') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1, 20, [5, 10, 15, 20]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, expected):
    assert plots.ticks(low, high) == pytest.approx(expected)


def test_line_chart_leaves_out_what_is_no_number():
    chart = plots.line_chart(
        [("a", [1, 2, 3], [1.0, float("nan"), 3.0]), ("b", [1], [None])],
        x_label="x",
        y_label="y",
        alt="words",
    )
    assert chart.count("<circle") == 2 and chart.count("<polyline") == 1
    assert plots.line_chart([], x_label="x", y_label="y", alt="") == ""


def test_lines_of_a_chart_end_where_a_span_does():
    chart = plots.line_chart(
        [("a", [1, 2, 3, 4, 5], [1.0, 2.0, 3.0, 4.0, 5.0])],
        x_label="x",
        y_label="y",
        alt="words",
        spans=[(0.5, "first <"), (2.5, ""), (4.5, "last")],
    )
    lines = re.findall(r'<polyline[^>]*points="([^"]*)"', chart)
    assert [len(line.split()) for line in lines] == [2, 2, 1]
    assert re.findall(r'font-size:8px"[^>]*>([^<]*)<', chart) == ["first &lt;", "last"]


def test_bars_of_zeros_have_no_height():
    chart = plots.sorted_bars([0.0, 0.0], x_label="x", y_label="y", alt="words")
    assert set(re.findall(r'class="bar"[^>]* height="([^"]*)"', chart)) == {"0.00"}


def test_strongest_channels_vary_most():
    x = np.zeros((4, 4, 3))
    x[..., 2] = 9.0
    x[0, 0, 1], x[0, 0, 0] = 2.0, 1.0
    assert list(pictures.strongest_channels(x, 2)) == [1, 0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0456, "0.04560"),
        (12.3456, "12.35"),
        (123456.0, "123,456"),
        (3e-7, "3.000e-07"),
    ],
)
def test_significant_digits(value, text):
    assert tables.significant(value) == text
