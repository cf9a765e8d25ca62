"""Voxelisation: reference numbers, a plain form, host and jit alike, padding, bad input."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.errors import ConfigError, DataError, ShapeError
from jaxcomp.ops import voxelise as host
from jaxcomp.ops import voxelise_jax
from jaxcomp.ops.voxelise import Dropped, PillarGrid, Pillars

KITTI = PillarGrid((0.0, -39.68, -3.0), (69.12, 39.68, 1.0), (0.16, 0.16, 4.0))
SMALL = PillarGrid((0.0, -1.0, -1.0), (2.0, 1.0, 1.0), (0.5, 0.25, 2.0))


@pytest.fixture(scope="module")
def oracle(shared):
    return np.load(shared / "oracles" / "pointpillars.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def sweep(shared):
    path = shared / "oracles" / "inputs" / "000134.bin"
    return np.fromfile(path, np.float32).reshape(-1, 4)


def columns_rows(pillars):
    return np.stack([pillars.cells % 432, pillars.cells // 432], 1)


def test_reference_sweep(oracle, sweep):
    found, dropped = host.voxelise(sweep, KITTI, max_points=32, max_pillars=40000)
    assert len(found.cells) == oracle["n_pillars"]
    raw, in_range = oracle["n_points_raw_filtered"]
    assert len(sweep) == raw and dropped.outside == raw - in_range
    np.testing.assert_array_equal(columns_rows(found)[:50], oracle["pillar_coords_first50"][:, :2])
    np.testing.assert_array_equal(columns_rows(found)[-50:], oracle["pillar_coords_last50"][:, :2])
    np.testing.assert_array_equal(found.counts[:50], oracle["pillar_counts_first50"])
    np.testing.assert_array_equal(found.counts[-50:], oracle["pillar_counts_last50"])
    x, y = columns_rows(found).T.astype(np.int64)
    i, counts = np.arange(len(x)), found.counts.astype(np.int64)
    sums = [
        x.sum(), y.sum(), (i * (x * 496 + y)).sum() % (10**9 + 7), counts.sum(),
        (counts == 32).sum(), (i * counts).sum(),
    ]  # fmt: skip
    np.testing.assert_array_equal(sums, oracle["pillar_coords_checksum"])
    np.testing.assert_array_equal(host.dense(found, 32)[:20], oracle["pillars_first20"])


def test_reference_sweep_with_a_cap(oracle, sweep):
    found, dropped = host.voxelise(sweep, KITTI, max_points=32, max_pillars=3000)
    assert len(found.cells) == 3000 and dropped.pillars == oracle["n_pillars"] - 3000
    assert found.counts.sum() == oracle["cap3000_sum_counts"]
    ends = np.concatenate([found.counts[:50], found.counts[-50:]])
    np.testing.assert_array_equal(ends, oracle["cap3000_counts_first50_last50"])
    np.testing.assert_array_equal(columns_rows(found)[-50:], oracle["cap3000_coords_last50"][:, :2])


@pytest.mark.parametrize("cap", [40000, 3000])
def test_jit_gives_the_same_pillars_of_the_reference_sweep(sweep, cap):
    padded = np.zeros((2**15, 4), np.float32)
    padded[: len(sweep)] = sweep
    ours, dropped = voxelise_jax.voxelise(
        padded, len(sweep), grid=KITTI, max_points=32, max_pillars=cap
    )
    wanted, wanted_dropped = host.voxelise(sweep, KITTI, max_points=32, max_pillars=cap)
    for mine, its in zip(ours, host.pad(wanted, KITTI, 2**15, cap), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert tuple(int(n) for n in dropped) == wanted_dropped


def plain(points, grid, max_points, max_pillars):
    """One point after the other, as the papers say it."""
    pillars, refused, counts = {}, set(), dict.fromkeys(Dropped._fields, 0)
    low, high, size = (np.array(v, np.float32) for v in (grid.low, grid.high, grid.size))
    for point in points:
        place = point[:3]
        if not np.isfinite(point).all():
            counts["bad"] += 1
        elif not ((place > low) & (place < high)).all():
            counts["outside"] += 1
        else:
            column, row, _ = np.floor((place - low) / size).astype(int)
            cell = row * grid.shape[1] + column
            if cell not in pillars and len(pillars) == max_pillars:
                counts["overflow"] += 1
                refused.add(cell)
            elif len(pillars.setdefault(cell, [])) == max_points:
                counts["crowded"] += 1
            else:
                pillars[cell].append(point)
    return pillars, Dropped(**{**counts, "pillars": len(refused)})


coordinate = st.sampled_from([-1.0, -0.999, -0.75, -0.1, 0.0, 0.1, 0.5, 0.6, 1.0, 1.3, 1.99, 2.0])
number = st.one_of(coordinate, st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(number, number, number, number), max_size=40), st.integers(1, 9))
def test_host_and_jit_agree_with_a_plain_form(rows, cap):
    points = np.array(rows, np.float32).reshape(-1, 4)
    wanted, wanted_dropped = plain(points, SMALL, 3, cap)
    found, dropped = host.voxelise(points, SMALL, max_points=3, max_pillars=cap)
    assert list(found.cells) == list(wanted) and dropped == wanted_dropped
    for number_of, (kept, count) in enumerate(zip(wanted.values(), found.counts, strict=True)):
        own = found.points[found.pillar == number_of]
        assert count == len(kept)
        np.testing.assert_array_equal(own, kept)
    padded = np.zeros((64, 4), np.float32)
    padded[: len(points)] = points
    traced, count = voxelise_jax.voxelise(
        padded, len(points), grid=SMALL, max_points=3, max_pillars=9
    )
    if cap == 9:
        assert tuple(int(n) for n in count) == wanted_dropped
        for mine, its in zip(traced, host.pad(found, SMALL, 64, 9), strict=True):
            np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize(
    ("points", "field"),
    [
        (np.zeros((0, 4)), None),
        (np.full((7, 4), np.nan), "bad"),
        (np.full((7, 4), np.inf), "bad"),
        (np.full((7, 4), 500.0), "outside"),
        (np.full((7, 4), -1e30), "outside"),
    ],
)
def test_sweeps_without_a_usable_point_give_no_pillar(points, field):
    found, dropped = host.voxelise(points, SMALL, max_points=3, max_pillars=5)
    assert [len(column) for column in found] == [0, 0, 0, 0]
    assert dropped._asdict() == {f: 7 if f == field else 0 for f in Dropped._fields}
    batch, _ = host.voxelise_batch([points], SMALL, max_points=3, max_pillars=5)
    assert not batch.counts.any() and (batch.cells == SMALL.cells).all()


def test_an_intensity_that_is_not_finite_drops_the_point():
    points = np.array([[1, 0, 0, np.nan], [1, 0, 0, 0.5]])
    found, dropped = host.voxelise(points, SMALL, max_points=3, max_pillars=5)
    assert dropped.bad == 1 and found.counts.tolist() == [1]


def test_two_hundred_thousand_points():
    rng = np.random.default_rng(0)
    points = rng.uniform((0, -40, -3, 0), (70, 40, 1, 1), (200_000, 4)).astype(np.float32)
    found, dropped = host.voxelise(points, KITTI, max_points=32, max_pillars=16000)
    assert len(found.cells) == 16000 and dropped.pillars > 0
    assert found.counts.sum() + sum(dropped[:4]) == len(points)


def test_read_only_and_transposed_input_is_taken():
    points = np.ones((4, 9), np.float64).T * 0.5
    points.setflags(write=False)
    found, _ = host.voxelise(points, SMALL, max_points=3, max_pillars=5)
    assert found.counts.tolist() == [3]


@pytest.mark.parametrize("shape", [(5, 3), (4,), (2, 5, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match=r"give \[N, 4\]"):
        host.voxelise(np.zeros(shape), SMALL, max_points=3, max_pillars=5)


def some_sweeps():
    rng = np.random.default_rng(1)
    return [rng.uniform((0, -1, -1, 0), (2, 1, 1, 1), (n, 4)) for n in (30, 0, 12)]


def test_a_batch_has_one_shape_and_says_what_is_missing():
    batch = host.pillar_batch(some_sweeps(), SMALL, max_points=3, max_pillars=5)
    pillars = host.pillars_of(batch)
    assert pillars.points.shape == (3, 1024, 4) and pillars.cells.shape == (3, 1024)
    assert batch["overflow"][0] > 0 and batch["overflow"][1] == 0
    assert pillars.counts[1].sum() == 0
    again, _ = host.voxelise(some_sweeps()[2], SMALL, max_points=3, max_pillars=5)
    np.testing.assert_array_equal(pillars.points[2][: len(again.points)], again.points)


def test_whole_pillars_are_cut_where_the_points_do_not_fit():
    whole, before = host.voxelise_batch(
        some_sweeps(), SMALL, max_points=3, max_pillars=32, pad_points=64
    )
    cut, after = host.voxelise_batch(
        some_sweeps(), SMALL, max_points=3, max_pillars=32, pad_points=10, pad_pillars=32
    )
    assert cut.points.shape == (3, 10, 4)
    kept = int((cut.counts[0] > 0).sum())
    np.testing.assert_array_equal(cut.counts[0, :kept], whole.counts[0, :kept])
    assert cut.counts[0].sum() <= 10 < cut.counts[0].sum() + whole.counts[0, kept]
    lost = whole.counts[0].sum() - cut.counts[0].sum()
    assert after[0].overflow - before[0].overflow == lost
    assert after[0].pillars - before[0].pillars == (whole.counts[0] > 0).sum() - kept


def test_padding_that_is_too_small_is_refused():
    found, _ = host.voxelise(some_sweeps()[0], SMALL, max_points=3, max_pillars=5)
    with pytest.raises(DataError, match="raise the padded sizes"):
        host.pad(found, SMALL, 4, 5)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"high": (0.0, 1.0, 1.0)}, "x goes"), ({"size": (0.5, 0.0, 2.0)}, "y goes"),
     ({"size": (0.5, 0.5, 0.5)}, "4 layers")],
)  # fmt: skip
def test_impossible_grids_are_refused(change, word):
    values = {"low": SMALL.low, "high": SMALL.high, "size": SMALL.size, **change}
    with pytest.raises(ConfigError, match=word):
        PillarGrid(**values)


def test_pillars_are_a_tree_of_four_arrays():
    leaves = jax.tree.leaves(Pillars(*(np.zeros(3) for _ in range(4))))
    assert len(leaves) == 4
