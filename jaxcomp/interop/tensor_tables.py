"""A table of (their name, our path, layout): state dictionaries of PyTorch as variables, and back.

    rows of a network ── table ──┬── from_torch: {"a.weight": O I h w} ─► {"params": {... h w I O}}
                                 └── to_torch:   the inverse, in PyTorch's order

Each network lists its rows in its own module and says in its own words what a file does not hold;
what is checked, and how numbers are read and written, is the same for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from jaxcomp.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError
from jaxcomp.interop.torch_weights import COUNTERS, is_counter

_SHOWN = 3
_BATCH_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of a tensor move; the two functions are inverses of each other."""

    to_ours: Callable[[Any], Any]
    to_torch: Callable[[Any], Any]


AS_IS = Layout(lambda x: x, lambda x: x)
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
LINEAR = Layout(lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a table.

    Attributes:
      name: PyTorch's name.
      path: ours, as in "params/body/stem/conv/kernel".
      layout: how the axes move.
      shape: PyTorch's shape.
      our_shape: ours.
    """

    name: str
    path: str
    layout: Layout
    shape: tuple[int, ...]
    our_shape: tuple[int, ...]


Row = tuple[str, str, Layout]  # an entry before its shapes are known
Table = tuple[Entry, ...]


def flat_shapes(variables: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What `jax.eval_shape` gives for variables, by path ("params/body/kernel")."""
    return flax.traverse_util.flatten_dict(variables, sep="/")


def make_table(rows: Iterable[Row], shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Table:
    """The rows with their shapes, in the same order.

    Args:
      rows: (their name, our path, layout) of every tensor, in the order of the state dictionary.
      shapes: of every variable of ours, by path.

    Raises:
      ConfigError: a row has no variable, or a variable has no row.
    """
    wanted = dict(shapes)
    table = []
    for name, path, layout in rows:
        if path not in wanted:
            raise ConfigError(f"the original has {name!r}, but a model of this config does not")
        ours = wanted.pop(path)
        theirs = jax.eval_shape(layout.to_torch, ours)
        table.append(Entry(name, path, layout, theirs.shape, ours.shape))
    if wanted:
        raise ConfigError(f"the original has no counterpart of {some(sorted(wanted))}")
    return tuple(table)


def batch_norm(theirs: str, ours: str) -> Iterator[Row]:
    """Rows of a batch normalisation: scale and bias trained, mean and var measured."""
    for name, (collection, leaf) in _BATCH_NORM.items():
        yield f"{theirs}.{name}", f"{collection}/{ours}/{leaf}", AS_IS


def with_bias(theirs: str, ours: str, layout: Layout) -> Iterator[Row]:
    """Rows of a linear or convolutional layer with a bias; `ours` names its collection too."""
    yield f"{theirs}.weight", f"{ours}/kernel", layout
    yield f"{theirs}.bias", f"{ours}/bias", AS_IS


def without_counters(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dictionary without `num_batches_tracked` and the like, which are no weights."""
    return {k: v for k, v in state_dict.items() if not is_counter(k)}


def variables_from_torch(
    weights: Mapping[str, Any], table: Table, *, source: str, network: str, fix: str
) -> dict[str, Any]:
    """Variables of ours from a state dictionary that holds the tensors of the table, no others.

    Args:
      weights: name to array (numpy, or anything `numpy.asarray` takes).
      table: of the network.
      source: what error messages call the weights, by convention the file's name in quotes.
      network: what they call the network, as in "a PointPillars of this size".
      fix: what they advise, as in "give its own config".

    Returns:
      {"params": ..., ...} of float32 numpy arrays.

    Raises:
      CheckpointError: a tensor is missing, left over, or has another shape.
      NonFiniteError: a tensor holds NaN or infinity, or does not fit float32.
    """
    check_names(weights, [e.name for e in table], source=source, network=network, fix=fix)
    _check_shapes(weights, table, source)
    flat = {entry.path: _read(weights[entry.name], entry, source) for entry in table}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def check_names(
    found: Iterable[str], wanted: Iterable[str], *, source: str, network: str, fix: str
) -> None:
    """Refuses names that are missing or left over; the words as in `variables_from_torch`.

    Raises:
      CheckpointError: how many there are of each, and the first of them.
    """
    found, wanted = dict.fromkeys(found), dict.fromkeys(wanted)  # ordered sets
    missing = [name for name in wanted if name not in found]
    left = [name for name in found if name not in wanted]
    if missing or left:
        words = [f"{len(missing)} names are missing ({some(missing)})"] if missing else []
        words += [f"{len(left)} are left over ({some(left)})"] if left else []
        raise CheckpointError(f"{source} does not hold {network}: {', '.join(words)}; {fix}")


def _check_shapes(weights: Mapping[str, Any], table: Table, source: str) -> None:
    wrong = [
        f"{e.name} is {list(np.shape(weights[e.name]))}, needed {list(e.shape)}"
        for e in table
        if np.shape(weights[e.name]) != e.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} has other sizes than the network: {some(wrong, '; ')}; give its own config"
        )


def _read(value: Any, entry: Entry, source: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.asarray(value).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{source}: {entry.name!r} is not finite in float32; export it again")
    return np.array(entry.layout.to_ours(array), order="C")


def variables_to_torch(variables: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """The inverse of `variables_from_torch`: PyTorch's state dictionary, in its order.

    Args:
      variables: {"params": ..., ...} of the network of the table, any float dtype.
      table: of that network.

    Returns:
      Name to contiguous float32 array; the counters of batch normalisations, which PyTorch's
      strict loading asks for and inference does not use, are int64 zeros.

    Raises:
      ShapeError: the variables are not those of the table.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    unequal = sorted(flat.keys() ^ {entry.path for entry in table})
    if unequal:
        raise ShapeError(f"the variables are not of this network: {some(unequal)} differ")
    out: dict[str, np.ndarray] = {}
    for entry in table:
        out[entry.name] = _write(flat[entry.path], entry)
        if entry.name.endswith(".running_var"):
            out[f"{entry.name.removesuffix('running_var')}{COUNTERS[0]}"] = np.zeros((), np.int64)
    return out


def _write(value: Any, entry: Entry) -> np.ndarray:
    array = np.asarray(value).astype(np.float32, copy=False)
    if array.shape != entry.our_shape:
        raise ShapeError(
            f"{entry.path} has shape {list(array.shape)}, a network of this config needs "
            f"{list(entry.our_shape)}"
        )
    return np.array(entry.layout.to_torch(array), order="C")


def some(words: Sequence[str], between: str = ", ") -> str:
    """The first few of the words and how many more there are."""
    rest = len(words) - _SHOWN
    return between.join(words[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
