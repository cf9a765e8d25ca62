"""Tables of tensors: what all importers of PyTorch weights check and convert, on three rows."""

import jax
import numpy as np
import pytest

from jaxcomp.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError
from jaxcomp.interop import tensor_tables
from jaxcomp.interop.tensor_tables import AS_IS, CONV, LINEAR

ROWS = [
    ("c.weight", "params/conv/kernel", CONV),
    ("l.weight", "params/linear/kernel", LINEAR),
    ("n.running_var", "batch_stats/norm/var", AS_IS),
]
SHAPES = {
    "params/conv/kernel": (3, 5, 2, 4),
    "params/linear/kernel": (6, 7),
    "batch_stats/norm/var": (4,),
}
ABSTRACT = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in SHAPES.items()}
WORDS = {"source": "'w.pth'", "network": "a toy", "fix": "give another"}


@pytest.fixture
def table():
    return tensor_tables.make_table(ROWS, ABSTRACT)


@pytest.fixture
def state(table):
    return {e.name: np.random.default_rng(0).normal(0, 1, e.shape) for e in table}


def test_axes_and_counters_there_and_back(table, state):
    assert [e.shape for e in table] == [(4, 2, 3, 5), (7, 6), (4,)]
    counted = state | {"n.num_batches_tracked": np.int64(9), "c.total_ops": 1.0}
    bare = tensor_tables.without_counters(counted)
    assert bare.keys() == state.keys()
    variables = tensor_tables.variables_from_torch(bare, table, **WORDS)
    kernel = variables["params"]["conv"]["kernel"]
    assert kernel.dtype == np.float32 and kernel.flags["C_CONTIGUOUS"]
    assert kernel[2, 1, 0, 3] == np.float32(state["c.weight"][3, 0, 2, 1])
    back = tensor_tables.variables_to_torch(variables, table)
    assert list(back) == [*state, "n.num_batches_tracked"]
    assert back["n.num_batches_tracked"] == 0
    assert all(np.array_equal(back[k], v.astype(np.float32)) for k, v in state.items())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"c.weight": None}, CheckpointError, r"hold a toy: 1 names are missing \(c.weight\); giv"),
        ({"x": 1.0, "y": 1.0}, CheckpointError, r"'w.pth' .*2 are left over \(x, y\); give anoth"),
        ({"l.weight": np.zeros(3)}, CheckpointError, r"l.weight is \[3\], needed \[7, 6\]"),
        ({"n.running_var": np.full(4, 1e300)}, NonFiniteError, r"'w.pth'.*n.running_var"),
        ({"n.running_var": np.full(4, np.nan)}, NonFiniteError, r"'w.pth'.*n.running_var"),
    ],
)
def test_state_dictionaries_of_other_networks_are_refused(table, state, change, error, words):
    wrong = {k: v for k, v in (state | change).items() if v is not None}
    with pytest.raises(error, match=words):
        tensor_tables.variables_from_torch(wrong, table, **WORDS)


def test_variables_of_other_networks_are_refused(table, state):
    variables = tensor_tables.variables_from_torch(state, table, **WORDS)
    with pytest.raises(ShapeError, match="batch_stats/norm/var differ"):
        tensor_tables.variables_to_torch({"params": variables["params"]}, table)
    with pytest.raises(ShapeError, match=r"batch_stats/norm/var has shape \[5\].* needs \[4\]"):
        other = variables | {"batch_stats": {"norm": {"var": np.zeros(5)}}}
        tensor_tables.variables_to_torch(other, table)


def test_a_table_needs_a_row_for_each_variable_and_a_variable_for_each_row():
    with pytest.raises(ConfigError, match=r"no counterpart of batch_stats/norm/var"):
        tensor_tables.make_table(ROWS[:2], ABSTRACT)
    with pytest.raises(ConfigError, match=r"has 'other', but a model of this config does not"):
        tensor_tables.make_table([*ROWS, ("other", "params/other", AS_IS)], ABSTRACT)
