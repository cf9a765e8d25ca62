"""Batches in memory: permutations, exact resume, padding, sharding, refusals."""

import json

import numpy as np
import pytest

from jaxcomp.data import pipeline
from jaxcomp.errors import DataError


def _splits(train=10, val=7, batch=3, seed=0, **options):
    def arrays(n):
        return {"x": np.arange(n, dtype=np.float32)[:, None], "id": np.arange(n, dtype=np.int32)}

    return pipeline.array_splits(arrays(train), arrays(val), batch, seed, **options)


def _ids(iterator, count):
    return np.stack([next(iterator)["id"] for _ in range(count)])


def test_an_epoch_is_a_permutation_and_every_epoch_another_one():
    splits = _splits(train=12)
    assert splits.steps_per_epoch == 4
    ids = _ids(splits.train(), 8).reshape(2, 12)
    np.testing.assert_array_equal(np.sort(ids, axis=1), [np.arange(12)] * 2)
    assert (ids[0] != ids[1]).any() and (ids[0] != np.arange(12)).any()


def test_the_remainder_is_dropped_and_nothing_repeats_within_an_epoch():
    splits = _splits(train=11)
    assert splits.steps_per_epoch == 3
    for epoch in _ids(splits.train(), 9).reshape(3, 9):
        assert len(set(epoch.tolist())) == 9


def test_seeds_decide_the_order():
    first, again, other = (_ids(_splits(train=50, seed=s).train(), 5) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_state_restores_the_exact_position_mid_epoch():
    splits = _splits(train=11)
    running = splits.train()
    _ids(running, 5)
    state = json.loads(json.dumps(running.get_state()))
    expected = _ids(running, 7)
    restored = splits.train()
    restored.set_state(state)
    np.testing.assert_array_equal(_ids(restored, 7), expected)
    running.set_state(state)  # going back works as well
    np.testing.assert_array_equal(_ids(running, 7), expected)


def test_validation_keeps_the_order_pads_and_masks():
    splits = _splits(val=7)
    for _ in range(2):
        batches = list(splits.validation())
        assert [len(b["id"]) for b in batches] == [3, 3, 3]
        mask = np.concatenate([b["mask"] for b in batches])
        assert mask.dtype == np.float32 and mask.tolist() == [1] * 7 + [0] * 2
        ids = np.concatenate([b["id"] for b in batches])
        np.testing.assert_array_equal(ids[mask > 0], np.arange(7))
        np.testing.assert_array_equal(next(iter(batches))["x"][:, 0], [0, 1, 2])


def test_a_validation_split_smaller_than_a_batch_is_padded():
    (batch,) = _splits(val=2, batch=5).validation()
    assert batch["x"].shape == (5, 1) and batch["mask"].tolist() == [1, 1, 0, 0, 0]


def test_training_batches_are_whole_and_copies():
    splits = _splits()
    batch = next(splits.train())
    assert batch["mask"].tolist() == [1, 1, 1]
    batch["x"][:] = -1
    assert all((b["x"] >= 0).all() for b in splits.validation())
    assert (next(splits.train())["x"] >= 0).all()


def test_shards_share_an_epoch_without_overlap():
    parts = [_splits(train=12, batch=2, shard=(i, 3)) for i in range(3)]
    assert parts[0].steps_per_epoch == 2
    ids = np.concatenate([_ids(p.train(), 2).ravel() for p in parts])
    np.testing.assert_array_equal(np.sort(ids), np.arange(12))


def test_the_generator_given_to_a_gather_depends_on_the_step_alone():
    def gather(rows, rng):
        return {"draw": rng.random(len(rows))}

    splits = pipeline.make_data_splits((gather, 6), (gather, 1), 2, seed=0, threads=3)
    ahead, running = splits.train(), splits.train()
    expected = [next(ahead)["draw"] for _ in range(6)]
    assert len({tuple(e) for e in expected}) == 6
    for _ in range(4):
        next(running)
    np.testing.assert_array_equal(next(running)["draw"], expected[4])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": 0}, "training arrays"),
        ({"val": 0}, "validation arrays"),
        ({"train": 2}, "less than one batch"),
        ({"batch": 0}, "batch size 0"),
    ],
)
def test_data_that_make_no_batch_are_refused(options, words):
    with pytest.raises(DataError, match=words):
        _splits(**options)


def test_arrays_of_different_lengths_are_refused():
    good = {"x": np.zeros(4)}
    with pytest.raises(DataError, match=r"'y': 5"):
        pipeline.array_splits({"x": np.zeros(4), "y": np.zeros(5)}, good, 2, 0)
