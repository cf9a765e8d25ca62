"""Tables that are learned: near the source's entropy, and refined ones better on new streams."""

import tracemalloc

import numpy as np
import pytest

from jaxcomp.codecs import context_learning, occupancy
from jaxcomp.codecs import context_mixing as cm

SYMBOLS, COARSE, FINE = 12, 4, 600


def contexts(coarse, fine):
    """Two experts: one sees four common contexts, the other six hundred rare ones."""
    count = len(coarse)
    base = np.stack([coarse, fine], 1).astype(np.int32)
    none = np.zeros((2, SYMBOLS + 1), np.int32)
    stride, nothing = np.zeros((2, 1), np.int32), np.full((count, 1), count, np.int32)
    return cm.Contexts(nothing, base, stride, none, np.zeros(count, np.int32), (COARSE, FINE), 1)


def stream(rng, count, sources):
    """(symbols, contexts): the coarse context decides, the fine one is partly in line with it."""
    fine = rng.integers(0, FINE, count)
    coarse = np.where(rng.random(count) < 0.8, fine % COARSE, rng.integers(0, COARSE, count))
    symbols = [rng.choice(SYMBOLS, p=sources[c]) for c in coarse]
    return np.asarray(symbols, np.int32), contexts(coarse, fine)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    sources = rng.dirichlet(np.full(SYMBOLS, 0.3), COARSE)
    return sources, [stream(rng, 1500, sources) for _ in range(6)]


def bits(mixture, streams):
    return np.mean([cm.ideal_bits(s, c, mixture) / len(s) for s, c in streams])


def test_tables_come_near_the_entropy_of_the_source(problem):
    sources, streams = problem
    mixture = context_learning.fit(streams[:4], SYMBOLS)
    entropy = -(sources * np.log2(sources + 1e-30)).sum(1)
    of_the_source = np.mean([entropy[c.base[:, 0]].mean() for _, c in streams[4:]])
    assert of_the_source < bits(mixture, streams[4:]) + 0.05
    assert bits(mixture, streams[4:]) < of_the_source * 1.05 + 0.05


def test_refined_tables_cost_less_on_streams_that_were_not_seen(problem):
    """Without the common contexts a rare one has 10 symbols for 12 probabilities."""
    _, streams = problem
    only_fine = [(s, c._replace(base=np.stack([c.base[:, 1] % COARSE, c.base[:, 1]], 1)))
                 for s, c in streams]  # fmt: skip
    plain, refined = (
        context_learning.fit(only_fine[:4], SYMBOLS, refined=flag) for flag in (False, True)
    )
    assert bits(refined, only_fine[4:]) < bits(plain, only_fine[4:])
    rare = slice(COARSE, None)
    like = np.diff(refined.full[rare], axis=1) / 65536
    common = np.diff(refined.full[:COARSE], axis=1)[np.arange(FINE) % COARSE] / 65536
    other = np.diff(plain.full[rare], axis=1) / 65536
    assert np.abs(like - common).mean() < np.abs(other - common).mean()


@pytest.mark.parametrize("refined", [False, True])
def test_few_symbols_give_valid_tables(problem, refined):
    _, streams = problem
    values, c = streams[0]
    short = c._replace(neighbours=np.full((3, 1), 3, np.int32), base=c.base[:3], sets=c.sets[:3])
    mixture = context_learning.fit([(values[:3], short)], SYMBOLS, refined=refined)
    payload = cm.encode(values[:3], short, mixture)
    np.testing.assert_array_equal(cm.decode(payload, short, mixture), values[:3])
    assert mixture.weights.sum() == 256


@pytest.mark.parametrize("refined", [False, True])
def test_what_is_fitted_may_see_a_part_but_all_symbols_are_counted(problem, refined):
    _, streams = problem
    whole = context_learning.fit(streams[:4], SYMBOLS, refined=refined)
    part = context_learning.fit(streams[:4], SYMBOLS, most=700, refined=refined)
    few = context_learning.fit(
        [(s[:60], c._replace(neighbours=c.neighbours[:60] * 0 + 175, base=c.base[:60],
                              sets=c.sets[:60])) for s, c in streams[:4]],
        SYMBOLS, refined=refined,
    )  # fmt: skip
    cost = {name: bits(m, streams[4:]) for name, m in
            (("whole", whole), ("part", part), ("few", few))}  # fmt: skip
    assert cost["part"] < cost["whole"] * 1.02 < cost["few"]


def test_memory_does_not_grow_with_streams_that_are_only_counted():
    """Maps of thousands of sweeps are counted one by one."""

    def peak(count):
        rng, seen = np.random.default_rng(0), occupancy.map_contexts((64, 64))
        maps = ((rng.random(4096) < 0.05).astype(np.int32) for _ in range(count))
        tracemalloc.start()
        context_learning.fit(((one, seen) for one in maps), 2, most=8192)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(48) < 1.3 * peak(8)


@pytest.mark.parametrize("refined", [False, True])
def test_streams_without_a_symbol_give_tables(problem, refined):
    _, streams = problem
    _, c = streams[0]
    empty = c._replace(neighbours=c.neighbours[:0], base=c.base[:0], sets=c.sets[:0])
    mixture = context_learning.fit([(np.zeros(0, np.int32), empty)], SYMBOLS, refined=refined)
    assert mixture.symbols == SYMBOLS


def test_no_stream_is_refused():
    with pytest.raises(ValueError, match="no stream"):
        context_learning.fit([], 4)
