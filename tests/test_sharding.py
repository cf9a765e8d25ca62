"""The mesh: where arrays lie, and that sharing out the state changes no loss."""

import jax
import numpy as np
import pytest
import toy

from jaxcomp import sharding, train
from jaxcomp.checkpoint import load_frozen
from jaxcomp.errors import ConfigError
from jaxcomp.trees import leaves_by_path, tree_digest

LARGE = toy.WideToy.HIDDEN


def fit(folder, fsdp, **changes):
    changes = {
        "training__epochs": 4,
        "mesh__fsdp": fsdp,
        "training__learning_rate": 0.005,
    } | changes
    return train.fit(toy.WideToy(), toy.config(**changes), toy.splits(), folder)


def losses(result):
    return [(r["train"]["loss"], r["train"]["grad_norm"], r["val"]["loss"]) for r in result.history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four devices, each with the whole state: 4 epochs of 5 steps."""
    return fit(tmp_path_factory.mktemp("whole"), 1)


@pytest.mark.parametrize("fsdp", [2, 4])
def test_losses_do_not_depend_on_how_the_state_is_shared_out(whole, tmp_path, fsdp):
    shared_out = fit(tmp_path, fsdp)
    assert shared_out.steps == whole.steps == 20
    np.testing.assert_allclose(losses(shared_out), losses(whole), rtol=1e-5)
    ours, theirs = (leaves_by_path((r.state.params, r.state.stats)) for r in (shared_out, whole))
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], rtol=1e-4, atol=1e-6)


def test_accumulated_gradients_are_shared_out_too(tmp_path):
    changes = {"training__accumulation": 2, "training__epochs": 2}
    expected = fit(tmp_path / "whole", 1, **changes)
    np.testing.assert_allclose(
        losses(fit(tmp_path / "4", 4, **changes)), losses(expected), rtol=1e-5
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_is_large_lies_in_shards_before_and_after_a_step(accumulation):
    from test_train import setup

    mesh = sharding.make_mesh(fsdp=4)
    state, frozen, step, source = setup(toy.WideToy(), mesh=mesh, accumulation=accumulation)
    for _ in range(3):
        found = {}
        for path, leaf in leaves_by_path(state).items():
            shard = leaf.sharding.shard_shape(leaf.shape)
            found[shard == leaf.shape] = {*found.get(shard == leaf.shape, ()), path}
            expected = [n // 4 if n == LARGE else n for n in leaf.shape]
            assert list(shard) == expected, path
        # Parameters, their average and two moments of the two kernels; their sums of gradients.
        assert len(found[False]) == 2 * (4 + (accumulation == 2)), found
        assert any(path.startswith("params/") for path in found[False])
        state, metrics = step(state, frozen, sharding.put_batch(mesh, next(source)), np.uint32(0))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(metrics))
    assert step._cache_size() == 1


def test_the_largest_axis_that_divides_is_split():
    mesh = sharding.make_mesh(fsdp=4)

    def axis(*shape):
        spec = sharding.state_sharding(mesh, shape).spec
        return next((i for i, name in enumerate(spec) if name), None)

    assert axis(3, 3, 64, 128) == 3 and axis(3, 3, 128, 64) == 2
    assert axis(64, 64) == 1 and axis(1030, 8) == 1 and axis(4096) == 0
    assert axis(1030, 9) is None and axis() is None and axis(8, 8) is None and axis(0, 4) is None
    assert sharding.state_sharding(sharding.make_mesh(), (64, 64)).is_fully_replicated


def test_a_batch_is_split_over_both_axes():
    mesh = sharding.make_mesh(fsdp=2)
    batch = sharding.put_batch(mesh, {"x": np.zeros((8, 3)), "n": np.float32(1)})
    assert batch["x"].sharding.shard_shape((8, 3)) == (2, 3)
    assert batch["n"].sharding.is_fully_replicated


@pytest.mark.parametrize("fsdp", [3, 8])
def test_groups_that_the_devices_do_not_make_are_refused(tmp_path, fsdp):
    with pytest.raises(ConfigError, match=f"fsdp={fsdp} does not divide.*4; give one of 1, 2, 4"):
        fit(tmp_path, fsdp)
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_restored_on_other_topologies(whole, tmp_path):
    from test_processes import forget_the_end

    # The plateau schedule does not depend on the number of epochs.
    for epochs, fsdp in ((1, 4), (2, 2), (3, 1), (4, 4)):
        result = fit(tmp_path / "run", fsdp, training__epochs=epochs)
        assert len(result.history) == epochs
        if epochs < 4:
            forget_the_end(tmp_path / "run")
    np.testing.assert_allclose(losses(result), losses(whole), rtol=1e-5)
    params = load_frozen(tmp_path / "run")[0]["params"]
    assert tree_digest(params) == tree_digest(result.state.params)


def test_callbacks_get_the_whole_state(tmp_path):
    seen = []
    config = toy.config(training__epochs=1, mesh__fsdp=4)
    result = train.fit(
        toy.WideToy(), config, toy.splits(), tmp_path,
        callbacks=[lambda summary: seen.append(tree_digest(summary.state))],
    )  # fmt: skip
    assert seen == [tree_digest(result.state)]
