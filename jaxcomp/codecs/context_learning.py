"""Learns the tables and weights of `context_mixing` from training streams. Numpy, no JAX.

A row of an expert is (counts + a p) / (sum + a): p is what to believe of a context that was hardly
seen, a (chosen for each expert) how strongly. The weights maximise the likelihood of the mixture by
expectation maximisation (Dempster et al., 1977). Everything is judged by leaving the symbol itself
out of its counts, or else the finest contexts would always win.

At first p is the distribution over all contexts. Refined tables take two more turns:

1. p of a row becomes what the other experts say on average where the row occurs, so that a rare
   context falls back on common ones and not on nothing,
2. counts are shared out among the experts by how well each foretold the symbol, as one learns a
   mixture: an expert need not explain what another explains better. Two such turns; more fit the
   training streams alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy import sparse

from jaxcomp.codecs.context_mixing import TOTAL, WEIGHT_BITS, Contexts, Mixture

_SHRINKAGE = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)  # strengths a that are tried
_TURNS = 2  # of shared counts
_EM_STEPS = 30  # of the weights
_LEAST = 1 / 40  # smaller weights are dropped
_MOST = 1 << 20  # symbols that the weights are fitted on
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class _Streams:
    """All training streams, one after the other.

    Attributes:
      rows: [T] int64 for each expert, the row of every symbol.
      sizes: rows of each expert.
      sets: [T], which weights count.
      weight_sets: their number.
      values: [T], the symbols.
      symbols: n, the size of the alphabet.
    """

    rows: list[np.ndarray]
    sizes: tuple[int, ...]
    sets: np.ndarray
    weight_sets: int
    values: np.ndarray
    symbols: int

    def thinned(self, most: int) -> _Streams:
        """At most so many symbols, evenly taken."""
        some = slice(None, None, -(-len(self.values) // most) or 1)
        rows = [row[some] for row in self.rows]
        return dataclasses.replace(self, rows=rows, sets=self.sets[some], values=self.values[some])


def fit(
    streams: Iterable[tuple[np.ndarray, Contexts]],
    symbols: int,
    most: int = _MOST,
    refined: bool = False,
) -> Mixture:
    """Learns tables and weights.

    Args:
      streams: (symbols, contexts) of training streams; all contexts have the same sizes.
      symbols: n.
      most: symbols that the weights are fitted on, evenly taken from all.
      refined: whether rows are refined, which takes three times as long; of no more than `most`
        symbols, from which the tables are learned too then.

    Raises:
      ValueError: there is no stream.
    """
    every = _joined(streams, symbols)
    some = every.thinned(most)
    data = some if refined else every
    ones = np.ones(len(data.values), np.float32)
    whole = np.bincount(data.values, minlength=symbols)
    prior = (whole + 1.0 / symbols) / (whole.sum() + 1.0)
    priors = [np.broadcast_to(prior, (size, symbols)) for size in data.sizes]
    tables, alone = _tables(data, some, priors, [ones] * len(data.sizes))
    weights, shares = _weights(alone, some)
    if refined:
        priors = [_said_by_others(data, tables, shares, j, prior) for j in range(len(tables))]
        tables, alone = _tables(data, some, priors, [ones] * len(data.sizes))
        weights, shares = _weights(alone, some)
        for _ in range(_TURNS):
            tables, alone = _tables(data, some, priors, list(shares.T))
            weights, shares = _weights(alone, some)
    cdf = np.concatenate([integer_rows(table) for table in tables])
    return Mixture(cdf, np.asarray(data.sizes, np.int32), _whole_weights(weights))


def integer_rows(p: np.ndarray) -> np.ndarray:
    """Probabilities [C, n] as uint16 [C, n - 1] inner cumulative frequencies of 2^16."""
    symbols = p.shape[1]
    f = 1 + np.floor(p / p.sum(1, keepdims=True) * (TOTAL - symbols)).astype(np.int64)
    f[np.arange(len(f)), f.argmax(1)] += TOTAL - f.sum(1)
    return np.cumsum(f, 1)[:, :-1].astype(np.uint16)


def _joined(streams: Iterable[tuple[np.ndarray, Contexts]], symbols: int) -> _Streams:
    rows, sets, values, last = [], [], [], None
    for stream, c in streams:
        padded = np.append(np.asarray(stream, np.int64), c.classes.shape[1] - 1)
        at = np.where(c.neighbours < np.arange(len(stream))[:, None], c.neighbours, len(stream))
        seen = padded[at]  # [T, M]
        own = c.base.astype(np.int64)
        for j in range(own.shape[1]):
            own[:, j] += c.classes[j][seen] @ c.stride[j]
        rows.append(own)
        sets.append(c.sets)
        values.append(padded[:-1])
        last = c
    if last is None:
        raise ValueError("no stream is given to learn context tables from")
    joined = np.concatenate(rows)
    each = [np.ascontiguousarray(joined[:, j]) for j in range(joined.shape[1])]
    sizes, number = tuple(last.sizes), last.weight_sets
    return _Streams(each, sizes, np.concatenate(sets), number, np.concatenate(values), symbols)


def _tables(
    data: _Streams, judged: _Streams, priors: list[np.ndarray], shares: list[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows of every expert, and the probability [T, J] of the judged symbols without themselves.

    Args:
      data: what is counted.
      judged: what the strengths are chosen on: `data`, or a part of it where all shares are 1.
      priors: [size, n] for each expert.
      shares: [T] for each expert, how much of each symbol counts.
    """
    tables, alone = [], []
    for row, size, prior, share, at in zip(
        data.rows, data.sizes, priors, shares, judged.rows, strict=True
    ):
        flat = np.bincount(row * data.symbols + data.values, share, size * data.symbols)
        counts = flat.reshape(size, data.symbols)
        own = share[: len(at)]
        found = _left_out(counts, prior, own, at, judged.values)
        best = int(np.argmax([(own * np.log(np.maximum(p, _TINY))).sum() for p in found]))
        a = _SHRINKAGE[best]
        tables.append((counts + a * prior) / (counts.sum(1, keepdims=True) + a))
        alone.append(found[best])
    return tables, np.stack(alone, 1)


def _left_out(
    counts: np.ndarray, prior: np.ndarray, share: np.ndarray, rows: np.ndarray, values: np.ndarray
) -> list[np.ndarray]:
    """Probability of every symbol, itself not counted, for each strength."""
    own = np.maximum(counts[rows, values] - share, 0)
    total = np.maximum(counts.sum(1)[rows] - share, 0)
    believed = prior[rows, values]
    return [(own + a * believed) / (total + a) for a in _SHRINKAGE]


def _said_by_others(
    data: _Streams, tables: list[np.ndarray], shares: np.ndarray, j: int, prior: np.ndarray
) -> np.ndarray:
    """[size, n]: what the experts but j say on average where a row of j occurs.

    Rows that never occur get the distribution over all contexts.
    """
    weight = shares.mean(0)
    said = np.zeros((data.sizes[j], data.symbols))
    for i, table in enumerate(tables):
        if i != j and weight[i] >= _LEAST:
            together = sparse.csr_matrix(
                (np.ones(len(data.values), np.float32), (data.rows[j], data.rows[i])),
                (data.sizes[j], data.sizes[i]),
            )
            said += weight[i] * (together @ table)
    total = said.sum(1, keepdims=True)
    return np.where(total > 0, said / np.maximum(total, _TINY), prior)


def _weights(p: np.ndarray, data: _Streams) -> tuple[np.ndarray, np.ndarray]:
    """(weights [S, J], the share [T, J] that each expert has in a symbol) from probabilities."""
    weights = np.full((data.weight_sets, p.shape[1]), 1.0 / p.shape[1])
    for _ in range(_EM_STEPS):
        share = _shares(weights, p, data)
        columns = [np.bincount(data.sets, column, data.weight_sets) for column in share.T]
        weights = np.stack(columns, 1) + 1e-3
        weights /= weights.sum(1, keepdims=True)
    return weights, _shares(weights, p, data)


def _shares(weights: np.ndarray, p: np.ndarray, data: _Streams) -> np.ndarray:
    share = weights[data.sets] * p
    return share / np.maximum(share.sum(1, keepdims=True), _TINY)


def _whole_weights(weights: np.ndarray) -> np.ndarray:
    """Integers [S, J] whose rows sum to 2^8. What hardly counts costs time in every symbol."""
    small = (weights < _LEAST) & (weights < weights.max(1, keepdims=True))
    weights = np.where(small, 0, weights)
    weights = weights / weights.sum(1, keepdims=True)
    whole = np.floor(weights * (1 << WEIGHT_BITS)).astype(np.int32)
    whole[np.arange(len(whole)), weights.argmax(1)] += (1 << WEIGHT_BITS) - whole.sum(1)
    return whole
