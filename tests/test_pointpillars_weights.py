"""PyTorch weights of PointPillars: names, axes, there and back, strict errors, the peer network."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxcomp.errors import CheckpointError, NonFiniteError, ShapeError
from jaxcomp.interop import pointpillars_weights as weights
from jaxcomp.interop.torch_weights import write_torch
from jaxcomp.models.pointpillars import PointPillars, PointPillarsConfig

CFG = PointPillarsConfig()
SMALL = PointPillarsConfig(
    encoder_features=4, block_features=(4, 6, 8), block_convs=(1, 1, 2), neck_features=(5, 5, 5)
)


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(0)
    return {e.name: rng.normal(0, 1, e.shape).astype(np.float32)
            for e in weights.tensor_table(SMALL)}  # fmt: skip


def test_names_shapes_and_order_are_the_originals(shared):
    manifest = json.loads((shared / "oracles" / "pointpillars.json").read_text())["manifest"]
    counted = [e for e in manifest if not e["name"].endswith("num_batches_tracked")]
    ours = [(e.name, list(e.shape)) for e in weights.tensor_table(CFG)]
    assert ours == [(e["name"], e["shape"]) for e in counted]


def test_there_and_back_through_a_file(tmp_path, state):
    path = tmp_path / "epoch_160.pth"
    back = weights.pointpillars_to_torch(weights.pointpillars_from_torch(state, SMALL), SMALL)
    write_torch(path, back)
    found = weights.pointpillars_to_torch(weights.load_pointpillars(path, SMALL), SMALL)
    assert list(found) == list(back) and found.keys() > state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)
    assert found["pillar_encoder.bn.num_batches_tracked"].dtype == np.int64


def test_the_variables_are_those_of_the_network(state):
    variables = weights.pointpillars_from_torch(state, SMALL)
    wanted = weights.abstract_variables(SMALL)
    flat = {"/".join(k.key for k in path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}  # fmt: skip
    assert {k: v.shape for k, v in flat.items()} == {k: v.shape for k, v in wanted.items()}
    assert all(v.dtype == np.float32 and v.flags.c_contiguous for v in flat.values())


def test_broken_state_dictionaries_are_refused_by_name(state):
    name = "backbone.multi_blocks.1.3.weight"
    without = {k: v for k, v in state.items() if k != name}
    with pytest.raises(CheckpointError, match=f"1 names are missing \\({name}\\)"):
        weights.pointpillars_from_torch(without, SMALL)
    with pytest.raises(CheckpointError, match=r"1 are left over \(extra\)"):
        weights.pointpillars_from_torch({**state, "extra": np.zeros(1)}, SMALL)
    with pytest.raises(CheckpointError, match=r"weight is \[2, 2\], needed \[6, 6, 3, 3\]"):
        weights.pointpillars_from_torch({**state, name: np.zeros((2, 2))}, SMALL)
    with pytest.raises(CheckpointError, match="other sizes than the network"):
        wide = PointPillarsConfig(block_features=(4, 6, 8), block_convs=(1, 1, 2))
        weights.pointpillars_from_torch(state, wide)
    bad = state[name].copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="is not finite"):
        weights.pointpillars_from_torch({**state, name: bad}, SMALL)


def test_variables_of_another_network_are_not_exported(state):
    variables = weights.pointpillars_from_torch(state, SMALL)
    with pytest.raises(ShapeError, match="not of this network"):
        weights.pointpillars_to_torch(variables, PointPillarsConfig(block_convs=(1, 1, 1)))
    with pytest.raises(ShapeError, match="needs"):
        weights.pointpillars_to_torch(variables, PointPillarsConfig(block_convs=(1, 1, 2)))


def test_a_block_and_an_upsampling_agree_with_pytorch(state):
    torch = pytest.importorskip("torch")
    variables = weights.pointpillars_from_torch(
        {k: np.abs(v) + 0.1 if k.endswith("running_var") else v for k, v in state.items()}, SMALL
    )
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (2, 16, 24, 4)).astype(np.float32)

    def run(model, x):
        blocks = model.backbone(x, False)
        return blocks, model.neck(blocks, False)

    run = jax.jit(functools.partial(PointPillars(SMALL).apply, method=run))
    blocks, neck = run(variables, x)
    t = {k: torch.tensor(np.abs(v) + 0.1 if k.endswith("running_var") else v)
         for k, v in state.items()}  # fmt: skip

    def norm(y, prefix):
        stats = [t[f"{prefix}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        return torch.relu(torch.nn.functional.batch_norm(y, *stats, eps=1e-3))

    y, joined = torch.tensor(x).permute(0, 3, 1, 2), []
    for b, convs in enumerate(SMALL.block_convs):
        for i in range(1 + convs):
            prefix = f"backbone.multi_blocks.{b}"
            y = torch.nn.functional.conv2d(
                y, t[f"{prefix}.{3 * i}.weight"], stride=2 if i == 0 else 1, padding=1
            )
            y = norm(y, f"{prefix}.{3 * i + 1}")
        theirs = y.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(blocks[b], theirs, atol=2e-5 * np.abs(theirs).max())
        prefix = f"neck.decoder_blocks.{b}"
        up = torch.nn.functional.conv_transpose2d(y, t[f"{prefix}.0.weight"], stride=2**b)
        joined.append(norm(up, f"{prefix}.1"))
    theirs = torch.cat(joined, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(neck, theirs, atol=2e-5 * np.abs(theirs).max())
