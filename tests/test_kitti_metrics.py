"""KITTI's evaluation against stored reference numbers, a plain second form, and known answers."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.cli import main as cli
from jaxcomp.data.kitti_format import parse_labels
from jaxcomp.errors import ConfigError, DataError
from jaxcomp.evaluate.kitti import CLASSES, METRICS, KittiFrame, evaluate, text_table
from jaxcomp.evaluate.kitti_match import COUNTS, IGNORED, OTHER
from jaxcomp.evaluate.kitti_rules import DIFFICULTIES
from jaxcomp.evaluate.kitti_scores import draw_weights
from jaxcomp.jobs import kitti_eval


@pytest.fixture(scope="module")
def oracle(shared):
    path = shared / "oracles" / "metrics_kitti_voc_coco.npz"
    arrays = dict(np.load(path, allow_pickle=False))
    sides = [
        [
            KittiFrame.from_objects(parse_labels(str(t)), f"{i:06}")
            for i, t in enumerate(arrays[key])
        ]
        for key in ("gt_text", "det_text")
    ]
    return *sides, arrays


def street(seed, frames=12, cars=5, score=True):
    """Cars in a row, all easy, with angles and 3-D boxes: (truth, the same as detections)."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for i in range(frames):
        left = 200.0 * np.arange(cars) + rng.uniform(0, 20, cars)
        columns = {
            "type": ["Car"] * cars,
            "box": np.stack([left, 0 * left + 100, left + 120, 0 * left + 180], 1),
            "alpha": rng.uniform(-3, 3, cars),
            "dimensions": np.tile([1.5, 1.6, 3.9], (cars, 1)),
            "location": np.stack([left / 20, 0 * left + 1.6, rng.uniform(10, 40, cars)], 1),
            "rotation_y": rng.uniform(-3, 3, cars),
            "name": f"{i:06}",
        }
        truth.append(KittiFrame(truncated=np.zeros(cars), occluded=np.zeros(cars), **columns))
        found.append(KittiFrame(score=rng.permutation(cars) + rng.random(cars), **columns))
    return truth, found


def scores(result, name="Car", measure="2d", key="r40"):
    return list(result["scores"][name][measure][key].values())


def replaced(frame, **changes):
    columns = {f: getattr(frame, f) for f in ("type", *kitti_fields(frame))} | changes
    return KittiFrame(name=frame.name, **columns)


def kitti_fields(frame):
    names = ("box", "alpha", "dimensions", "location", "rotation_y", "truncated", "occluded")
    return (*names, "score") if frame.scored else names


def reordered(frame, order):
    changes = {f: getattr(frame, f)[order] for f in kitti_fields(frame)}
    return replaced(frame, type=[frame.type[i] for i in order], **changes)


def test_reference_numbers(oracle):
    truth, found, arrays = oracle
    result = evaluate(truth, found)
    for key in ("r40", "r11"):
        got = [[scores(result, c, m, key) for m in METRICS] for c in CLASSES]
        np.testing.assert_allclose(got, arrays[f"ap_{key}"], atol=1e-6, rtol=0)
        got = [scores(result, c, "aos", key) for c in CLASSES]
        np.testing.assert_allclose(got, arrays[f"aos_{key}"], atol=1e-6, rtol=0)
    mean = [scores(result, "mean", m) for m in METRICS]
    np.testing.assert_allclose(mean, arrays["ap_mean_r40"], atol=1e-6, rtol=0)
    assert [list(result["objects"][c].values()) for c in CLASSES] == arrays["n_gt"].tolist()
    lines = [
        [[result["curves"][c][m][d]["precision"] for d in DIFFICULTIES] for m in METRICS]
        for c in CLASSES
    ]
    np.testing.assert_allclose(lines, arrays["precision41"], atol=1e-9, rtol=0)
    json.dumps(result, allow_nan=False)


def test_command_and_files(oracle, tmp_path, capsys):
    truth, found, arrays = oracle
    for name, key in (("labels", "gt_text"), ("results", "det_text")):
        (tmp_path / name).mkdir()
        for frame, text in zip(truth, arrays[key], strict=True):
            (tmp_path / name / f"{frame.name}.txt").write_text(str(text))
    args = ["kitti-eval", "--labels", str(tmp_path / "labels"), "--results"]
    out = tmp_path / "out.json"
    assert cli([*args, str(tmp_path / "results"), "--json", str(out), "--bootstrap", "10"]) == 0
    table = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert f"{arrays['ap_r40'][0, 2, 1]:.2f}" in table and "95% intervals" in table
    np.testing.assert_allclose(scores(result, "Car", "3d"), arrays["ap_r40"][0, 2], atol=1e-6)
    # The same detections, written by us and read again.
    kitti_eval.write_results(tmp_path / "again", found)
    assert cli([*args, str(tmp_path / "again"), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["scores"] == result["scores"]
    # A part of the frames.
    (tmp_path / "val.txt").write_text("000003\n000005\n")
    part = [*args, str(tmp_path / "results"), "--frames", str(tmp_path / "val.txt")]
    assert cli([*part, "--classes", "Car", "--overlaps", "Car=0.5", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["frames"] == 2 and result["overlaps"]["Car"]["3d"] == 0.5


def test_command_refuses_bad_folders_in_one_line(tmp_path, capsys):
    truth, found = street(0, frames=3)
    kitti_eval.write_results(tmp_path / "labels", truth)
    kitti_eval.write_results(tmp_path / "results", found[:2])
    args = ["kitti-eval", "--labels", str(tmp_path / "labels")]
    results = ["--results", str(tmp_path / "results")]

    def error(*more):
        assert cli([*args, *more]) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "lacks 000002.txt (1 of 3 frames)" in error(*results)
    assert "no .txt files" in error("--results", str(tmp_path / "nowhere"))
    assert "Car=0.5" in error(*results, "--overlaps", "Car:0.5")
    kitti_eval.write_results(tmp_path / "full", found)
    full = ["--results", str(tmp_path / "full")]
    assert "class 'Cra' is unknown" in error(*full, "--classes", "Cra")
    assert "bootstrap is -5" in error(*full, "--bootstrap", "-5")
    (tmp_path / "results" / "000002.txt").write_text("Car 0 0 nan\n")
    assert "000002.txt:1: 4 columns" in error(*results)
    assert "no scores" in error("--results", str(tmp_path / "labels"))


# A second form of the rules: plain Python, one pass for each threshold, no events, no weights.


def plain_pass(truth, found, overlap, limit, covered, score, threshold=None):
    """(scores of right detections, wrong ones) of one frame; None: the pass without threshold."""
    taken, right = set(), []
    for g, state in enumerate(truth):
        if state == OTHER:
            continue
        free = [
            d
            for d in range(len(found))
            if found[d] != OTHER and d not in taken and overlap[g][d] > limit
            if threshold is None or score[d] >= threshold
        ]
        if threshold is None:
            best = max(free, key=lambda d: score[d], default=None)
        else:
            full = [d for d in free if found[d] == COUNTS]
            best = max(full, key=lambda d, g=g: overlap[g][d], default=free[0] if free else None)
        if best is not None:
            taken.add(best)
            if state == COUNTS and found[best] == COUNTS:
                right.append(score[best])
    wrong = [
        d
        for d in range(len(found))
        if found[d] == COUNTS and d not in taken and not covered[d]
        if threshold is None or score[d] >= threshold
    ]
    return right, len(wrong)


def plain_precision(frames, limit):
    """41 envelope precisions of frames (truth, found, overlap, covered, score)."""
    passes = [plain_pass(t, f, o, limit, c, s) for t, f, o, c, s in frames]
    hits = sorted((s for right, _ in passes for s in right), reverse=True)
    count = sum(state == COUNTS for frame in frames for state in frame[0])
    thresholds, wanted = [], 0.0
    for i, score in enumerate(hits):
        left, right = (i + 1) / count, (i + 2) / count
        if i == len(hits) - 1 or right - wanted >= wanted - left:
            thresholds.append(score)
            wanted += 1 / 40
    precision = np.zeros(41)
    for k, threshold in enumerate(thresholds):
        passes = [plain_pass(t, f, o, limit, c, s, threshold) for t, f, o, c, s in frames]
        right, wrong = sum(len(r) for r, _ in passes), sum(w for _, w in passes)
        precision[k] = right / (right + wrong) if right + wrong else 0.0
    return np.maximum.accumulate(precision[::-1])[::-1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_crowded_frames_agree_with_the_plain_form(seed, ties):
    rng = np.random.default_rng(seed)
    truth, found, plain = [], [], []
    kinds = ["Car", "Car", "Car", "Van", "Truck", "Misc"]
    for _ in range(6):
        n, m, r = rng.integers(0, 8), rng.integers(0, 14), rng.integers(0, 3)

        def boxes(count):
            corner = rng.uniform(0, 60, (count, 2))
            return np.hstack([corner, corner + rng.uniform([40, 15], [80, 60], (count, 2))])

        a, b, regions = boxes(n), boxes(m), boxes(r)
        ta, tb = rng.choice(kinds, n), rng.choice(kinds[2:], m)
        tb = np.where(rng.random(m) < 0.7, "Car", tb)
        score = rng.integers(0, 6, m) / 4 if ties else rng.random(m)
        occluded = rng.integers(0, 4, n)
        truth.append(
            KittiFrame(
                type=[*ta, *["DontCare"] * r],
                box=np.vstack([a, regions]),
                occluded=[*occluded, *[-1] * r],
                truncated=np.zeros(n + r),
            )
        )
        found.append(KittiFrame(type=tb, box=b, score=score))
        size = [x[:, 2:] - x[:, :2] for x in (a, b)]
        size_in = [
            np.maximum(
                np.minimum(x[:, None, 2:], b[None, :, 2:])
                - np.maximum(x[:, None, :2], b[None, :, :2]),
                0,
            ).prod(-1)
            for x in (a, regions)
        ]
        union = size[0].prod(1)[:, None] + size[1].prod(1)[None] - size_in[0]
        covered = (size_in[1] / size[1].prod(1)).max(0, initial=0) > 0.4
        counts = (occluded <= 1) & (size[0][:, 1] > 25)
        states = np.where(
            ta == "Car", np.where(counts, COUNTS, IGNORED), np.where(ta == "Van", IGNORED, OTHER)
        )
        low = size[1][:, 1] < 25
        other = np.where(tb == "Car", COUNTS, OTHER)
        plain.append((states, np.where(low, IGNORED, other), size_in[0] / union, covered, score))
    result = evaluate(truth, found, ["Car"], ["2d"], {"Car": 0.4})
    assert result["scores"]["Car"]["aos"] is None
    if not result["objects"]["Car"]["moderate"]:
        assert scores(result)[1] is None
        return
    got = result["curves"]["Car"]["2d"]["moderate"]["precision"]
    np.testing.assert_allclose(got, plain_precision(plain, 0.4), atol=1e-12)


def test_perfect_detections_give_100():
    truth, found = street(1)
    result = evaluate(truth, found, ["Car"])
    for measure in (*METRICS, "aos"):
        for key in ("r40", "r11"):
            np.testing.assert_allclose(scores(result, "Car", measure, key), 100.0, atol=1e-9)
    assert not result["notes"]


@pytest.mark.parametrize("count", [1, 10, 40, 41, 57, 81, 200])
def test_few_objects_cannot_reach_100_and_it_is_said(count):
    truth, found = street(1, frames=count, cars=1)
    result = evaluate(truth, found, ["Car"], ["2d"])
    np.testing.assert_allclose(scores(result), 100 * (min(count, 41) - 1) / 40)
    assert ("fewer than 41" in text_table(result)) == (count < 41)


def test_no_detections_give_0_and_no_objects_give_none():
    truth, found = street(2)
    none = [KittiFrame(type=[], box=[], score=[], name=f.name) for f in truth]
    result = evaluate(truth, none, ["Car", "Cyclist"])
    for measure in (*METRICS, "aos"):
        assert scores(result, "Car", measure) == [0.0, 0.0, 0.0]
        assert scores(result, "Cyclist", measure) == [None, None, None]
        assert scores(result, "mean", measure) == [0.0, 0.0, 0.0]
    assert "Cyclist easy 0" in text_table(result)
    result = evaluate(none, found, ["Car"])
    assert scores(result) == [None, None, None]


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_of_frames_and_detections_does_not_matter(oracle, random):
    truth, found, arrays = oracle
    frames = list(range(len(truth)))
    random.shuffle(frames)
    shuffled = []
    for i in frames:
        order = list(range(len(found[i])))
        random.shuffle(order)
        shuffled.append(reordered(found[i], order) if order else found[i])
    result = evaluate([truth[i] for i in frames], shuffled)
    got = [[scores(result, c, m) for m in METRICS] for c in CLASSES]
    np.testing.assert_allclose(got, arrays["ap_r40"], atol=1e-9, rtol=0)


def test_tied_scores_share_a_threshold():
    truth, found = street(3, frames=41, cars=1)
    wrong = [
        KittiFrame(
            type=["Car", "Car"],
            box=np.vstack([f.box, [[900, 100, 990, 190]]]),
            score=[0.5, 0.5],
            alpha=np.zeros(2),
        )
        for f in found
    ]
    # One threshold for all 82: whichever stands first, precision is a half at every recall.
    for order in ([0, 1], [1, 0]):
        result = evaluate(truth, [reordered(f, order) for f in wrong], ["Car"], ["2d"])
        assert scores(result) == [50.0, 50.0, 50.0]


def test_of_tied_scores_the_first_in_the_file_gives_the_thresholds():
    truth = [KittiFrame(type=["Car"] * 2, box=[[0, 0, 100, 100], [60, 0, 160, 100]])]
    both, one = [30, 0, 130, 100], [-20, 0, 80, 100]  # on both cars, on the first alone
    reached = []
    for boxes in ([both, one], [one, both]):
        found = [KittiFrame(type=["Car"] * 2, box=boxes, score=[0.5, 0.5])]
        result = evaluate(truth, found, ["Car"], ["2d"], {"Car": 0.3})
        thresholds = result["curves"]["Car"]["2d"]["hard"]["threshold"]
        reached.append(sum(t is not None for t in thresholds))
    assert reached == [1, 2]


def test_orientation_counts_the_angle():
    truth, found = street(4)
    turned = [replaced(f, alpha=f.alpha + np.pi / 2) for f in found]
    result = evaluate(truth, turned, ["Car"])
    np.testing.assert_allclose(scores(result, measure="2d"), 100)
    np.testing.assert_allclose(scores(result, measure="aos"), 50)
    unknown = [*found[:-1], replaced(found[-1], alpha=np.r_[found[-1].alpha[:-1], -10.0])]
    result = evaluate(truth, unknown, ["Car"])
    assert result["scores"]["Car"]["aos"] is None
    assert "orientation" not in result["curves"]["Car"]["2d"]["easy"]
    assert "without an observation angle" in text_table(result)


def test_boxes_in_the_image_alone():
    truth, found = street(5)
    flat = [KittiFrame(type=f.type, box=f.box, score=f.score) for f in found]
    result = evaluate(truth, flat, ["Car", "Cyclist"])
    np.testing.assert_allclose(scores(result), 100.0)
    for name in ("Car", "Cyclist", "mean"):
        assert result["scores"][name]["bev"] is None and result["scores"][name]["3d"] is None
    assert "the detections have no 3-D boxes" in text_table(result)
    only = [KittiFrame(type=f.type, box=f.box) for f in truth]
    result = evaluate(only, found, ["Car"])
    assert result["scores"]["Car"]["3d"] is None
    assert "the ground truth has no 3-D boxes" in text_table(result)


def test_height_and_elevation_count_in_3d_alone():
    truth, found = street(6)
    lifted = [replaced(f, location=f.location - [0, 0.5, 0]) for f in found]  # IoU 1 / 2
    result = evaluate(truth, lifted, ["Car"])
    np.testing.assert_allclose(scores(result, measure="bev"), 100)
    assert scores(result, measure="3d") == [0, 0, 0]
    result = evaluate(truth, lifted, ["Car"], overlaps={"Car": {"3d": 0.49}})
    np.testing.assert_allclose(scores(result, measure="3d"), 100)
    assert result["overlaps"]["Car"] == {"2d": 0.7, "bev": 0.7, "3d": 0.49}


def add(frame, kind, box, **columns):
    """The frame with one more object."""
    fill = {f: getattr(frame, f) for f in kitti_fields(frame)}
    extra = {
        "box": [box], "alpha": [0.0], "dimensions": [[1.5, 1.6, 3.9]],
        "location": [[-30.0, 1.6, 70.0]], "rotation_y": [0.0], "truncated": [0.0],
        "occluded": [0.0], "score": [9.0],
    } | columns  # fmt: skip
    merged = {f: np.concatenate([fill[f], extra[f]]) for f in fill}
    return replaced(frame, type=[*frame.type, kind], **merged)


@pytest.mark.parametrize(
    ("kind", "box", "occluded", "easy", "hard"),
    [
        (None, (0, 200, 120, 280), 0, False, False),  # nothing there: wrong
        ("Van", (0, 200, 120, 280), 0, True, True),  # the neighbour: neither
        ("Van", (0, 200, 120, 340), 0, False, False),  # the overlap is too small
        ("Truck", (0, 200, 120, 280), 0, False, False),  # another type is not seen
        ("Car", (0, 200, 120, 280), 1, True, True),  # too hard, then counted
        ("Car", (0, 200, 120, 280), 3, True, True),  # always too hard
        ("DontCare", (0, 150, 300, 300), -1, True, True),  # inside a region
    ],
)
def test_what_is_neither_right_nor_wrong(kind, box, occluded, easy, hard):
    truth, found = street(7)
    found = [add(f, "Car", (0, 200, 120, 280)) for f in found]
    if kind:
        truth = [add(f, kind, box, occluded=[occluded]) for f in truth]
    got = scores(evaluate(truth, found, ["Car"], ["2d"]))
    assert (got[0] == 100, got[2] == 100) == (easy, hard)


def test_regions_do_not_help_from_above():
    truth, found = street(7)
    far = {"location": [[60.0, 1.6, 60.0]]}
    found = [add(f, "Car", (0, 200, 120, 280), **far) for f in found]
    nothing = {"dimensions": [[-1.0] * 3], "location": [[-1000.0] * 3]}
    truth = [add(f, "DontCare", (0, 150, 300, 300), **nothing) for f in truth]
    result = evaluate(truth, found, ["Car"])
    np.testing.assert_allclose(scores(result, measure="2d"), 100)
    assert scores(result, measure="bev")[0] < 90 and scores(result, measure="3d")[0] < 90


def test_objects_count_above_the_minimum_height_and_detections_from_it_on():
    truth, found = street(8)
    low = [0, 300, 60, 340]  # 40 pixels high
    more = [add(f, "Car", low) for f in truth]
    assert evaluate(more, found, ["Car"], ["2d"])["objects"]["Car"]["easy"] == 60
    found = [add(f, "Car", low) for f in found]
    assert scores(evaluate(truth, found, ["Car"], ["2d"]))[0] < 90


def test_low_boxes_are_ignored():
    truth, found = street(8)
    found = [add(f, "Car", (0, 300, 60, 330)) for f in found]  # 30 pixels high, on nothing
    result = evaluate(truth, found, ["Car"], ["2d"])
    assert scores(result)[0] == 100 and scores(result)[1] < 90
    half = evaluate(truth, found, ["Car"], ["2d"], min_heights=(20, 12.5, 12.5))
    assert scores(half)[0] < 90


def test_intervals_are_those_of_sets_evaluated_one_by_one(oracle):
    truth, found, _ = oracle
    groups = [i // 3 for i in range(len(truth))]
    for keys in (None, groups):
        result = evaluate(truth, found, bootstrap=12, seed=5, groups=keys)
        weights, units = draw_weights(len(truth), 12, 5, keys)
        assert (weights[0] == 1).all() and units == (20 if keys else 60)
        drawn = []
        for row in weights[1:]:
            index = np.repeat(np.arange(len(truth)), row)
            drawn.append(
                evaluate(
                    [replaced(truth[i]) for i in index],
                    [replaced(found[i]) for i in index],
                )
            )
        for name, measure in (("Car", "2d"), ("Cyclist", "3d"), ("Car", "aos"), ("mean", "bev")):
            values = np.array([scores(r, name, measure) for r in drawn], float)
            got = scores({"scores": result["intervals"]["scores"]}, name, measure)
            np.testing.assert_allclose(got, np.percentile(values, [2.5, 97.5], 0).T, atol=1e-9)
    assert evaluate(truth, found, bootstrap=12, seed=5) != evaluate(truth, found, bootstrap=12)
    assert evaluate(truth, found, bootstrap=12) == evaluate(truth, found, bootstrap=12)


def test_rows_come_back_as_they_were():
    truth, found = street(9, frames=1)
    for frame in (truth[0], found[0]):
        again = KittiFrame.from_objects([kitti_eval.KittiObject(**row) for row in frame.rows()])
        assert again.type == frame.type and again.scored == frame.scored
        for field in kitti_fields(frame):
            np.testing.assert_array_equal(getattr(again, field), getattr(frame, field))


BOX = [[0.0, 0.0, 50.0, 50.0]]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"box": BOX, "score": [np.nan]}, ("'7'", "object 0 (Car)", "score is nan")),
        ({"box": [[0, 0, np.inf, 1]]}, ("box", "inf", "finite")),
        ({"box": BOX * 2}, ("box has shape (2, 4)", "(1, 4)")),
        ({"box": BOX, "dimensions": [[1, 2]]}, ("dimensions has shape (1, 2)",)),
        ({"box": [[50, 0, 0, 50]]}, ("ends before it starts",)),
        ({"box": BOX, "score": ["high"]}, ("score", "numbers")),
        ({"box": [[0, 0, 1]]}, ("box has shape (1, 3)",)),
    ],
)
def test_broken_frames_are_refused(columns, words):
    with pytest.raises(DataError) as caught:
        KittiFrame(type=["Car"], name="7", **columns)
    assert all(word in str(caught.value) for word in words)


def test_frames_that_do_not_fit_are_refused():
    truth, found = street(10, frames=3)
    cases = [
        ((truth, found[:2]), "3 frames of ground truth but 2"),
        (([], []), "no frames"),
        ((truth, found[::-1]), "frame 0 is '000000' in the ground truth and '000002'"),
        ((truth, truth), "detections of frame 000000 have no scores"),
        ((truth, [*found[:2], replaced(found[2], type=["Cra"] * 5)]), "000002.*'Cra' is unknown"),
        ((truth, found, ["Cars"]), "class 'Cars' is unknown"),
    ]
    for args, words in cases:
        with pytest.raises(DataError, match=words):
            evaluate(*args)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["4d"]}, "4d"),
        ({"metrics": []}, "metrics"),
        ({"classes": ["Car", "car"]}, "different names"),
        ({"classes": ["DontCare"]}, "DontCare"),
        ({"overlaps": {"Bus": 0.5}}, "bus"),
        ({"overlaps": {"Car": {"2D": 0.5}}}, "2D"),
        ({"overlaps": {"Car": 1.5}}, "1.5"),
        ({"min_heights": (40, 25)}, "three"),
        ({"bootstrap": 3}, "at least 10"),
        ({"bootstrap": -1}, "at least 10"),
        ({"bootstrap": 10, "groups": [1]}, "1 groups for 3 frames"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    truth, found = street(11, frames=3)
    with pytest.raises(ConfigError, match=words):
        evaluate(truth, found, **options)


def test_some_scores_missing_is_an_error():
    line = "Car 0 0 1 0 0 50 50 1 1 1 1 1 9 1"
    with pytest.raises(DataError, match=r"'x', object 1 has no score"):
        KittiFrame.from_objects(parse_labels(f"{line} 0.5\n{line}"), "x")
