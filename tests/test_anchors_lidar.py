"""Other ways to send a sweep: what comes back, and their bytes on real sweeps."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxcomp.errors import BitstreamError
from jaxcomp.evaluate import anchors_lidar as al

FOUND, MISSING = al.lidar_anchors()
ANCHORS = {a.name: a for a in FOUND}


def cloud(seed=0, count=500):
    rng = np.random.default_rng(seed)
    points = rng.uniform((0, -40, -3, 0), (70, 40, 1, 1), (count, 4)).astype(np.float32)
    return points


def test_what_needs_no_package_is_always_there():
    assert {"points-lzma-1cm", "points-lzma-2cm", "bev-8bit"} <= set(ANCHORS)
    assert not set(MISSING) & {name.rpartition("-")[0] for name in ANCHORS}


@pytest.mark.parametrize("name", [n for n in ANCHORS if n.startswith("points")])
def test_points_come_back_within_half_a_step(name):
    points, anchor = cloud(), ANCHORS[name]
    back = anchor.decode(anchor.encode(points))
    step = float(name.rpartition("-")[2].removesuffix("cm")) / 100
    assert back.shape == points.shape and back.dtype == np.float32
    if "draco" in name:  # another order, no intensity
        distance = np.abs(points[:, None, :3] - back[None, :, :3]).max(-1).min(1)
        assert distance.max() <= step * 0.5 + 1e-4
        return
    assert np.abs(back[:, :3] - points[:, :3]).max() <= step / 2 + 1e-5
    assert np.abs(back[:, 3] - points[:, 3]).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("name", ["points-lzma-1cm", "points-lzma-2cm"])
def test_no_point_and_points_that_are_not_finite(name):
    anchor = ANCHORS[name]
    assert anchor.decode(anchor.encode(np.zeros((0, 4), np.float32))).shape == (0, 4)
    points = cloud(count=5)
    points[2, 1] = np.nan
    assert len(anchor.decode(anchor.encode(points))) == 4


def test_a_canvas_comes_back_within_half_a_step_of_its_channel():
    canvas = np.random.default_rng(0).normal(size=(6, 9, 3)).astype(np.float32) * (1, 10, 0)
    anchor = ANCHORS["bev-8bit"]
    back = anchor.decode(anchor.encode(canvas.astype(np.float32)))
    reach = np.ptp(canvas, axis=(0, 1))
    assert (np.abs(back - canvas).max((0, 1)) <= reach / 255 / 2 + 1e-5).all()


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_damage_is_a_typed_error(data):
    name = data.draw(st.sampled_from(["points-lzma-1cm", "bev-8bit"]))
    anchor = ANCHORS[name]
    content = cloud(count=30) if name != "bev-8bit" else np.ones((3, 4, 2), np.float32)
    blob = bytearray(anchor.encode(content))
    del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    blob += data.draw(st.binary(max_size=6))
    try:
        anchor.decode(bytes(blob))
    except BitstreamError:
        pass


def test_real_sweeps_cost_what_was_measured_before(shared):
    """27 kB to 44 kB a sweep at 2 cm and 1 cm, intensity included."""
    files = sorted((shared / "data/kitti/training/velodyne_reduced").glob("*.bin"))[::25]
    sweeps = [np.fromfile(path, "<f4").reshape(-1, 4) for path in files]
    size = {s: np.mean([len(al.encode_planes(p, s)) for p in sweeps]) for s in al.STEPS}
    assert 25_000 < size[0.02] < size[0.01] < 46_000
