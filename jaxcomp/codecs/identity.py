"""Who codes a stream: network, variables and tables, and the number that names them in files."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.tables import CdfTables, TableSet, table_set
from jaxcomp.errors import TableMismatchError

Variables = Mapping[str, Any]

_MODELS = 16  # of the same tables, whose identities are kept


class Model(NamedTuple):
    """What codes one stream: the network, its variables and the tables made of them."""

    codec: FactorisedCodec
    variables: Variables
    tables: CdfTables


Models = Model | Mapping[str, Model]  # one for every stream, or one for each by its name


def tables_of(models: Models) -> CdfTables | TableSet:
    """The tables of the streams in a file of these models."""
    if isinstance(models, Model):
        return models.tables
    return table_set({name: model.tables for name, model in models.items()})


def identity_of(models: Models) -> int:
    """64-bit name of all that turns a file into features; every file carries it.

    The first 8 bytes of a SHA-256 over the tables' digest and the decoder's arrays (all but those
    of the analysis transform and of the prior, which the tables stand for), or over names and such
    numbers where streams have models of their own. Another network with the same tables would
    decode a file without a word, to something else.
    """
    if isinstance(models, Model):
        return _model_identity(models)
    numbers = {name: _model_identity(model) for name, model in models.items()}
    if len(set(numbers.values())) == 1:
        return next(iter(numbers.values()))
    sha = hashlib.sha256()
    for name, number in numbers.items():
        sha.update(struct.pack("<QI", number, len(name.encode())) + name.encode())
    return int.from_bytes(sha.digest()[:8], "little")


def _model_identity(model: Model) -> int:
    # Kept with the tables and only for these very variables: hashing takes milliseconds.
    known = vars(model.tables).setdefault("_identities", [])
    for variables, number in known:
        if variables is model.variables:
            return number
    sha = hashlib.sha256(struct.pack("<Q", model.tables.digest))
    for path, leaf in jax.tree_util.tree_flatten_with_path(model.variables)[0]:
        names = [str(getattr(key, "key", key)) for key in path]
        if not {"analysis", "prior"} & set(names):
            array = np.ascontiguousarray(np.asarray(leaf, np.float32))
            sha.update("/".join(names).encode() + str(array.shape).encode() + array.tobytes())
    number = int.from_bytes(sha.digest()[:8], "little")
    known.append((model.variables, number))
    del known[:-_MODELS]
    return number


def digests_of(models: Models) -> tuple[int, int]:
    """What files of these models may carry: their identity; before it, the tables' digest."""
    return identity_of(models), tables_of(models).digest


def model_of(models: Models, name: str) -> Model:
    """The model of the stream of this name.

    Raises:
      TableMismatchError: there is none.
    """
    if isinstance(models, Model):
        return models
    if name not in models:
        held = repr(name) if name else "an unnamed level"
        needed = " ".join(map(repr, models))
        raise TableMismatchError(f"the stream holds {held}, this codec is for {needed}")
    return models[name]


def by_tables(models: Models, names: Sequence[str]) -> list[tuple[CdfTables, list[int]]]:
    """(tables, which of the names have them): a group passes through the coder in one call."""
    groups: dict[int, tuple[CdfTables, list[int]]] = {}
    if isinstance(models, Model):
        check_tables(models)
    for i, name in enumerate(names):
        model = model_of(models, name)
        check_tables(model)
        groups.setdefault(model.tables.digest, (model.tables, []))[1].append(i)
    return list(groups.values())


def check_tables(model: Model) -> None:
    """Raises `TableMismatchError` unless the tables have the channels of the network."""
    codec, _, tables = model
    if tables.channels != codec.n_channels:
        raise TableMismatchError(
            f"the tables have {tables.channels} channels, the codec {codec.n_channels}"
        )
