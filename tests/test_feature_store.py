"""Features kept on disk: what comes back, what is refused, what an interrupt leaves."""

import fcntl
import os
import time

import numpy as np
import pytest

from jaxcomp.data.feature_store import (
    check_space,
    open_store,
    store_bytes,
    store_key,
    write_store,
)
from jaxcomp.data.levels import cached_levels
from jaxcomp.errors import DataError, NonFiniteError

ORIGIN = {"detector": "abc", "sizes": [5, 2]}


def batches(frames, seed):
    rng = np.random.default_rng(seed)
    whole = {
        "p2": rng.normal(0, 3, (frames, 4, 6, 3)).astype("f4"),
        "regions_p2": rng.uniform(0, 400, (frames, 2, 4)).astype("f4"),
        "p3": rng.normal(0, 3, (frames, 2, 3, 3)).astype("f4"),
    }
    return whole, [{k: x[i : i + 2] for k, x in whole.items()} for i in range(0, frames, 2)]


@pytest.fixture
def store(tmp_path):
    train, parts = batches(5, 0)
    held_out, others = batches(2, 1)
    return train, held_out, write_store(tmp_path, ORIGIN, {"train": parts, "validation": others})


def test_rows_come_back_in_half_precision_and_in_any_order(store):
    train, held_out, found = store
    for want, got in zip((train, held_out), found, strict=True):
        assert list(want) == list(got)
        for key, x in want.items():
            assert got[key].shape == x.shape and got[key].nbytes == x.nbytes
            np.testing.assert_array_equal(got[key][:], x.astype("f2").astype("f4"))
    np.testing.assert_array_equal(found[0]["p3"].take([4, 0, 4]), found[0]["p3"][:][[4, 0, 4]])


def test_batches_of_stored_and_of_cached_features_are_equal(store):
    _, _, (train, held_out) = store
    in_memory = [{k: x[:] for k, x in part.items()} for part in (train, held_out)]
    for draw in (False, True):
        pair = [
            cached_levels(*parts, 2, 7, levels=("p2", "p3"), draw=draw).train()
            for parts in ((train, held_out), in_memory)
        ]
        for _ in range(4):
            one, other = next(pair[0]), next(pair[1])
            assert sorted(one) == sorted(other)
            assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_store_is_found_by_what_it_was_made_from(store, tmp_path):
    assert open_store(tmp_path, ORIGIN) is not None
    assert open_store(tmp_path, {**ORIGIN, "detector": "other"}) is None


def test_training_rows_may_be_smaller_than_held_out_ones(tmp_path):
    crops = {"p3": np.arange(24, dtype="f4").reshape(3, 2, 2, 2)}
    whole = {"p3": np.arange(64, dtype="f4").reshape(2, 4, 4, 2)}
    parts = {"train": [crops], "validation": [whole]}
    train, held_out = write_store(tmp_path, {"a": 1}, parts)
    np.testing.assert_array_equal(np.take(train["p3"], [2, 0], axis=0), crops["p3"][[2, 0]])
    np.testing.assert_array_equal(held_out["p3"][:2], whole["p3"])


def test_an_interrupt_leaves_nothing(tmp_path):
    def broken():
        yield batches(2, 0)[1][0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, ORIGIN, {"train": broken(), "validation": []})
    assert list(tmp_path.iterdir()) == [] and open_store(tmp_path, ORIGIN) is None


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_values_that_half_precision_cannot_hold_are_refused(tmp_path, value):
    part = {"p2": np.full((1, 2, 2, 1), value, "f4")}
    with pytest.raises(NonFiniteError, match="feature_store=''"):
        write_store(tmp_path, ORIGIN, {"train": [part], "validation": [part]})


def test_damage_is_told(store, tmp_path):
    _, _, (train, _) = store
    folder = train["p2"].path.parent
    blob = train["p2"].path.read_bytes()
    train["p2"].path.write_bytes(blob[: len(blob) // 2])
    with pytest.raises(DataError, match="delete the folder"):
        train["p2"].take([4])
    (folder / "store.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        open_store(tmp_path, ORIGIN)


def test_the_size_is_known_before_anything_is_written(tmp_path):
    shapes = {"p2": (4, 6, 3), "p3": (2, 3, 3)}
    assert store_bytes(5, shapes) == 2 * 5 * (72 + 18)
    with pytest.raises(DataError, match="GB are free"):
        check_space(tmp_path, 10**18)


def both():
    return {"train": batches(5, 0)[1], "validation": batches(2, 1)[1]}


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_the_slower_of_two_writers_opens_what_the_faster_one_wrote(tmp_path):
    def meanwhile():
        write_store(tmp_path, ORIGIN, both())
        yield from batches(5, 7)[1]

    train, _ = write_store(tmp_path, ORIGIN, {**both(), "train": meanwhile()})
    want = batches(5, 0)[0]["p2"].astype("f2").astype("f4")
    np.testing.assert_array_equal(train["p2"][:], want)
    assert names(tmp_path) == [store_key(ORIGIN)]


def test_a_writer_that_comes_between_the_look_and_the_renaming_wins(tmp_path, monkeypatch):
    replace, final = os.replace, tmp_path / store_key(ORIGIN)

    def later(source, target):
        if target == final:
            monkeypatch.setattr(os, "replace", replace)
            monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # as where there are no locks
            write_store(tmp_path, ORIGIN, both())
        replace(source, target)

    monkeypatch.setattr(os, "replace", later)
    train, _ = write_store(tmp_path, ORIGIN, {**both(), "train": batches(5, 7)[1]})
    want = batches(5, 0)[0]["p2"].astype("f2").astype("f4")
    np.testing.assert_array_equal(train["p2"][:], want)
    assert names(tmp_path) == [final.name]


def test_a_folder_that_is_no_store_is_replaced(tmp_path):
    final = tmp_path / store_key(ORIGIN)
    final.mkdir()
    (final / "train.arrayrecord").write_bytes(b"half")
    train, _ = write_store(tmp_path, ORIGIN, both())
    assert len(train["p2"][:]) == 5 and names(tmp_path) == [final.name]


def test_a_file_in_its_place_is_told(tmp_path):
    (tmp_path / store_key(ORIGIN)).write_text("no folder")
    with pytest.raises(DataError, match="cannot be stored"):
        write_store(tmp_path, ORIGIN, both())


def test_parts_of_killed_writers_are_removed_and_those_in_use_stay(tmp_path):
    killed, writing, new, old = (tmp_path / f".{store_key(ORIGIN)}-{c * 8}" for c in "0123")
    for part in (killed, writing, new, old):
        part.mkdir()
        (part / "train.arrayrecord").write_bytes(b"half")
    for part in (killed, writing):
        (part / "lock").touch()
    two_days_ago = time.time() - 2 * 86400
    for path in (old / "train.arrayrecord", old):
        os.utime(path, (two_days_ago, two_days_ago))
    with (writing / "lock").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_store(tmp_path, ORIGIN, both())
    assert names(tmp_path) == sorted([writing.name, new.name, store_key(ORIGIN)])
    assert (writing / "train.arrayrecord").exists()
    assert not list((tmp_path / store_key(ORIGIN)).glob("lock*"))
