"""The context coder and the coder of occupancy maps: inverse, near the bound, sound on damage."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import rq_toy

from jaxcomp.codecs import context_learning, occupancy
from jaxcomp.codecs import context_mixing as cm
from jaxcomp.errors import BitstreamError, CorruptStreamError, ShapeError

settings = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


def problem(seed, count, symbols, experts=3, reach=2):
    """Random contexts, tables and symbols."""
    rng = np.random.default_rng(seed)
    number = np.arange(count)[:, None]
    neighbours = np.where(
        rng.random((count, reach)) < 0.3, count, rng.integers(0, np.maximum(number, 1))
    )
    neighbours = np.where(number == 0, count, neighbours).astype(np.int32)
    classes = rng.integers(0, 3, (experts, symbols + 1)).astype(np.int32)
    stride = rng.integers(0, 3, (experts, reach)).astype(np.int32)
    sizes = tuple(int(4 + 2 * s) for s in stride.sum(1))
    base = rng.integers(0, 4, (count, experts)).astype(np.int32)
    sets = rng.integers(0, 2, count).astype(np.int32)
    contexts = cm.Contexts(neighbours, base, stride, classes, sets, sizes, 2)
    p = rng.dirichlet(np.full(symbols, 0.3), sum(sizes)) + 1e-9
    weights = rng.multinomial(256, rng.dirichlet(np.ones(experts)), 2).astype(np.int32)
    mixture = cm.Mixture(context_learning.integer_rows(p), np.asarray(sizes, np.int32), weights)
    return rng.integers(0, symbols, count).astype(np.int32), contexts, mixture


@settings
@hypothesis.given(
    seed=st.integers(0, 2**16), count=st.integers(0, 200), symbols=st.sampled_from([1, 2, 7, 300])
)
def test_any_symbols_come_back_in_as_many_bytes_as_they_are_worth(seed, count, symbols):
    values, contexts, mixture = problem(seed, count, symbols)
    payload = cm.encode(values, contexts, mixture)
    np.testing.assert_array_equal(cm.decode(payload, contexts, mixture), values)
    bits = cm.ideal_bits(values, contexts, mixture)
    assert 8 * len(payload) <= 1.001 * bits + 24


def reference_range(values, t, contexts, mixture):
    """Start and width of a symbol as the module's text defines them."""
    low = high = 0
    base = np.cumsum(mixture.sizes) - mixture.sizes
    for j in range(len(mixture.sizes)):
        row = int(base[j]) + int(contexts.base[t, j])
        for m, at in enumerate(contexts.neighbours[t]):
            seen = mixture.symbols if at >= len(values) else int(values[at])
            row += int(contexts.stride[j, m]) * int(contexts.classes[j, seen])
        weight = int(mixture.weights[contexts.sets[t], j])
        low += weight * int(mixture.full[row, values[t]])
        high += weight * int(mixture.full[row, values[t] + 1])
    return low >> 8, (high >> 8) - (low >> 8)


@settings
@hypothesis.given(seed=st.integers(0, 2**16))
def test_the_loop_computes_what_the_text_says(seed):
    values, contexts, mixture = problem(seed, 30, 6)
    start, width, _, _ = cm._run(False, 0, np.zeros(0, np.uint16), values, contexts, mixture)
    wanted = [reference_range(values, t, contexts, mixture) for t in range(30)]
    np.testing.assert_array_equal(np.stack([start, width], 1), wanted)
    assert width.min() >= 1


@settings
@hypothesis.given(seed=st.integers(0, 2**16), data=st.data())
def test_damage_is_a_typed_error_or_decodes_to_something(seed, data):
    values, contexts, mixture = problem(seed, 80, 5)
    payload = bytearray(cm.encode(values, contexts, mixture))
    how = data.draw(st.sampled_from(["flip", "cut", "add", "random"]))
    at = data.draw(st.integers(0, len(payload) - 1))
    if how == "flip":
        payload[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del payload[at:]
    elif how == "add":
        payload += bytes(data.draw(st.integers(1, 5)))
    else:
        payload = data.draw(st.binary(max_size=60))
    try:
        out = cm.decode(bytes(payload), contexts, mixture)
    except BitstreamError:
        return
    assert out.min() >= 0 and out.max() < 5  # the container's checksum tells the rest


def test_what_does_not_fit_is_refused():
    values, contexts, mixture = problem(0, 20, 5)
    with pytest.raises(ShapeError, match="the tables are for 0 to 4"):
        cm.encode(values + 5, contexts, mixture)
    with pytest.raises(ShapeError, match="tables are for"):
        cm.encode(values, contexts._replace(sizes=(1, 2, 3)), mixture)
    with pytest.raises(CorruptStreamError, match="context tables"):
        cm.Mixture(mixture.cdf[:, ::-1], mixture.sizes, mixture.weights)
    with pytest.raises(CorruptStreamError, match="context tables"):
        cm.Mixture(mixture.cdf, mixture.sizes, mixture.weights // 2)


def test_learned_tables_beat_one_table_where_there_is_something_to_learn():
    rng = np.random.default_rng(0)
    frames = [rq_toy.sweep_map(rng) for _ in range(12)]
    mixture = occupancy.fit(frames[:8])
    size = sum(len(occupancy.encode(m, mixture)) for m in frames[8:])
    p = np.mean(frames[8:])
    order_0 = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * np.size(frames[8:]) / 8
    assert size < 0.8 * order_0


# --- maps -----------------------------------------------------------------------------------------

MAPS = occupancy.fit(rq_toy.sweep_map(np.random.default_rng(i)) for i in range(3))


@settings
@hypothesis.given(
    seed=st.integers(0, 2**16), shape=st.tuples(st.integers(1, 30), st.integers(1, 40)),
    share=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
)  # fmt: skip
def test_any_map_comes_back_and_the_fast_loop_writes_the_same_bytes(seed, shape, share):
    occupied = np.random.default_rng(seed).random(shape) < share
    payload = occupancy.encode(occupied, MAPS)
    np.testing.assert_array_equal(occupancy.decode(payload, shape, MAPS), occupied)
    flat = occupied.reshape(-1).astype(np.int32)
    assert cm.encode(flat, occupancy.map_contexts(shape), MAPS) == payload


def test_a_map_of_another_kind_is_refused():
    with pytest.raises(ShapeError, match="bool"):
        occupancy.encode(np.zeros((4, 4)), MAPS)
    _, _, other = problem(0, 5, 2)
    with pytest.raises(ShapeError, match="those of a map"):
        occupancy.encode(np.zeros((4, 4), bool), other)


def test_real_sweeps_take_half_of_what_their_density_costs(shared):
    from jaxcomp.ops import voxelise

    grid = voxelise.PillarGrid((0.0, -39.68, -3.0), (69.12, 39.68, 1.0), (0.16, 0.16, 4.0))
    files = sorted((shared / "data/kitti/training/velodyne_reduced").glob("*.bin"))
    maps = []
    for path in files[::8]:
        points = np.fromfile(path, "<f4").reshape(-1, 4)
        cells = voxelise.voxelise(points, grid, max_points=32, max_pillars=40000)[0].cells
        occupied = np.zeros(grid.cells, bool)
        occupied[cells] = True
        maps.append(occupied.reshape(grid.shape))
    mixture = occupancy.fit(maps[:9])
    size = np.mean([len(occupancy.encode(m, mixture)) for m in maps[9:]])
    p = np.mean(maps[9:])
    density = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * grid.cells / 8
    assert size < 0.5 * density, (size, density)
