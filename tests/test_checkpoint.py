import gc
import os

import jax.numpy as jnp
import pytest

from jaxcomp import checkpoint, trees
from jaxcomp.errors import CheckpointError

# Orbax 0.12.8 leaves a coroutine of a failed read behind, whose end complains (2025-11).
after_a_failed_read = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


@pytest.fixture(autouse=True)
def collected():
    """Collects garbage inside the test that made it."""
    yield
    gc.collect()


def state(value=0.0):
    tree = {"params": {"a": jnp.full((3, 2), float(value)), "b": [jnp.arange(2)]}, "stats": {}}
    return tree | {"opt": (jnp.int32(value),)}


def truncate(folder):
    """Cuts every file below a folder to half its length."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(root, name)
            os.truncate(path, os.path.getsize(path) // 2)


def save_four(folder, best=1):
    with checkpoint.Checkpointer(folder) as saver:
        for step in range(1, 5):
            saver.save(step, state(step), {"n": step, "best": {"step": best}}, best)


def test_latest_two_and_best_are_kept_and_restored(tmp_path):
    save_four(tmp_path)
    with checkpoint.Checkpointer(tmp_path) as saver:
        assert saver.steps() == [1, 3, 4]
        restored, extra, step = saver.restore_latest(state())
        assert step == extra["n"] == 4
        assert trees.tree_digest(restored) == trees.tree_digest(state(4))


@after_a_failed_read
def test_a_truncated_checkpoint_falls_back_with_a_warning(tmp_path, caplog):
    save_four(tmp_path)
    truncate(tmp_path / "4")
    with checkpoint.Checkpointer(tmp_path) as saver:
        restored, extra, step = saver.restore_latest(state())
        assert step == 3 and extra["n"] == 3 and float(restored["params"]["a"][0, 0]) == 3.0
        assert "4 is damaged" in caplog.text
        saver.save(4, restored, extra, 1)  # the number is free again


@after_a_failed_read
@pytest.mark.parametrize("item", ["state/d", "state/_METADATA", "extra/metadata"])
def test_each_part_may_be_truncated(tmp_path, item):
    save_four(tmp_path)
    path = tmp_path / "4" / item
    truncate(path) if path.is_dir() else os.truncate(path, path.stat().st_size // 2)
    with checkpoint.Checkpointer(tmp_path) as saver:
        assert saver.restore_latest(state())[2] == 3


@after_a_failed_read
def test_all_truncated_is_an_error(tmp_path):
    save_four(tmp_path)
    truncate(tmp_path)
    with checkpoint.Checkpointer(tmp_path) as saver:
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            saver.restore_latest(state())


def test_a_foreign_checkpoint_lists_differences(tmp_path):
    save_four(tmp_path)
    other = {"params": {"a": jnp.zeros((3, 5)), "c": jnp.zeros(1)}, "stats": {}}
    with checkpoint.Checkpointer(tmp_path) as saver:
        with pytest.raises(CheckpointError, match="another model") as caught:
            saver.restore_latest(other)
        assert saver.steps() == [1, 3, 4]  # nothing was removed
    for words in (
        "params/a is float32[3, 2], the model needs float32[3, 5]",
        "params/c is missing",
    ):
        assert words in str(caught.value) or "more" in str(caught.value)


def test_load_frozen_reads_the_best_step_of_a_run(tmp_path):
    save_four(tmp_path / "checkpoints", best=3)
    variables, meta, digest = checkpoint.load_frozen(tmp_path)
    assert meta["step"] == 3 and float(variables["params"]["a"][0, 0]) == 3.0
    wanted = {k: state(3)[k] for k in ("params", "stats")}
    assert digest == trees.tree_digest(wanted)
    assert set(checkpoint.load_params(tmp_path)) == {"a", "b"}
    for bad in (tmp_path / "nowhere", tmp_path / "checkpoints" / "3" / "extra"):
        with pytest.raises(CheckpointError, match=r"does not exist|holds no checkpoint"):
            checkpoint.load_frozen(bad)


def test_a_file_in_the_way_is_a_checkpoint_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="part of the path is a file"):
        checkpoint.Checkpointer(tmp_path / "file" / "checkpoints")
