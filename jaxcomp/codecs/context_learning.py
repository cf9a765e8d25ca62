"""Learns the tables and weights of `context_mixing` from training streams. Numpy, no JAX.

A row of an expert is (counts + a p) / (sum + a): p is what to believe of a context that was hardly
seen, a (chosen for each expert) how strongly. The weights maximise the likelihood of the mixture by
expectation maximisation (Dempster et al., 1977). A row is judged by leaving the symbol itself
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
_MOST = 1 << 17  # symbols that the weights are fitted on; four times as many change nothing
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class _Streams:
    """Training streams, one after the other, or every so-manieth of their symbols.

    Attributes:
      rows: int32 [J, T], the row of every symbol in the table of each expert.
      sets: int32 [T], which weights count.
      values: int32 [T], the symbols.
      sizes: [J], rows of each expert.
      weight_sets: their number.
      symbols: n, the size of the alphabet.
    """

    rows: np.ndarray
    sets: np.ndarray
    values: np.ndarray
    sizes: tuple[int, ...]
    weight_sets: int
    symbols: int

    def counted(self, shares: np.ndarray) -> list[np.ndarray]:
        """[size, n] for each expert: how much of every symbol was seen in every row."""
        return [
            _counted(row, self.values, share, size, self.symbols)
            for row, size, share in zip(self.rows, self.sizes, shares, strict=True)
        ]


def fit(
    streams: Iterable[tuple[np.ndarray, Contexts]],
    symbols: int,
    most: int = _MOST,
    refined: bool = False,
) -> Mixture:
    """Learns tables and weights.

    All symbols are counted. What is fitted (the weights, the strengths a) looks at `most` of them.
    Unrefined tables keep no more than these in memory; refined ones keep all, some 12 bytes for
    each expert and symbol, and take four to five times as long.

    Args:
      streams: (symbols, contexts) of training streams; all contexts have the same sizes.
      symbols: n.
      most: symbols that weights and strengths are fitted on, evenly taken from all.
      refined: whether rows are refined.

    Raises:
      ValueError: there is no stream.
    """
    data, counts = _collected(streams, symbols, None if refined else most)
    some = slice(None, None, -(-len(data.values) // most) or 1)
    whole = counts[0].sum(0)
    prior = (whole + 1.0 / symbols) / (whole.sum() + 1.0)
    priors = [np.broadcast_to(prior, (size, symbols)) for size in data.sizes]
    ones = np.ones(data.rows.shape, np.float32)
    tables, weights, shares = _turn(data, counts, priors, ones, some)
    if refined and len(data.values):
        told = [_said_by_others(data, tables, shares, j, prior) for j in range(len(tables))]
        tables, weights, shares = _turn(data, counts, told, ones, some)
        for _ in range(_TURNS):
            tables, weights, shares = _turn(data, data.counted(shares), told, shares, some)
    cdf = np.concatenate([integer_rows(table) for table in tables])
    return Mixture(cdf, np.asarray(data.sizes, np.int32), _whole_weights(weights))


def integer_rows(p: np.ndarray) -> np.ndarray:
    """Probabilities [C, n] as uint16 [C, n - 1] inner cumulative frequencies of 2^16."""
    symbols = p.shape[1]
    f = 1 + np.floor(p / p.sum(1, keepdims=True) * (TOTAL - symbols)).astype(np.int64)
    f[np.arange(len(f)), f.argmax(1)] += TOTAL - f.sum(1)
    return np.cumsum(f, 1)[:, :-1].astype(np.uint16)


def _collected(
    streams: Iterable[tuple[np.ndarray, Contexts]], symbols: int, most: int | None
) -> tuple[_Streams, list[np.ndarray]]:
    """The streams, thinned to at most `most` symbols, and the counts [size, n] of all of them."""
    parts: list[list[np.ndarray]] = []
    counts: list[np.ndarray] = []
    stride, last = 1, None
    for stream, c in streams:
        rows, values = _rows_of(stream, c)
        new = [_counted(r, values, None, n, symbols) for r, n in zip(rows, c.sizes, strict=True)]
        counts = [a + b for a, b in zip(counts, new, strict=True)] if counts else new
        parts.append([x[..., ::stride].copy() for x in (rows, c.sets, values)])
        while most is not None and sum(len(part[2]) for part in parts) > most:
            stride *= 2
            parts = [[x[..., ::2].copy() for x in part] for part in parts]
        last = c
    if last is None:
        raise ValueError("no stream is given to learn context tables from")
    rows, sets, values = (np.concatenate(x, -1) for x in zip(*parts, strict=True))
    return _Streams(rows, sets, values, tuple(last.sizes), last.weight_sets, symbols), counts


def _rows_of(stream: np.ndarray, c: Contexts) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [J, T], the row of every symbol for each expert; int32 [T], the symbols)."""
    padded = np.append(np.asarray(stream, np.int32), c.classes.shape[1] - 1).astype(np.int32)
    at = np.where(c.neighbours < np.arange(len(stream))[:, None], c.neighbours, len(stream))
    seen = padded[at]  # [T, M]
    rows = [
        base + own[seen] @ stride
        for base, own, stride in zip(c.base.T, c.classes, c.stride, strict=True)
    ]
    return np.stack(rows).astype(np.int32), padded[:-1]


def _counted(
    row: np.ndarray, values: np.ndarray, share: np.ndarray | None, size: int, symbols: int
) -> np.ndarray:
    place = row.astype(np.int64) * symbols + values
    return np.bincount(place, share, size * symbols).reshape(size, symbols).astype(np.float64)


def _turn(
    data: _Streams,
    counts: list[np.ndarray],
    priors: list[np.ndarray],
    shares: np.ndarray,
    some: slice,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """(tables, weights [S, J], the share [J, T] that each expert now has in every symbol).

    Args:
      data: the symbols.
      counts: [size, n] for each expert.
      priors: the same, what to believe of a row.
      shares: [J, T], how much of each symbol of `data` the counts hold.
      some: the part of `data` that strengths and weights are fitted on.
    """
    tables, alone = [], np.empty(data.rows.shape, np.float32)
    for j, (row, seen, prior, share) in enumerate(
        zip(data.rows, counts, priors, shares, strict=True)
    ):
        part = (row[some], data.values[some], share[some])
        likely = [(share[some] * _log(_left_out(seen, prior, a, *part))).sum() for a in _SHRINKAGE]
        a = _SHRINKAGE[int(np.argmax(likely))]
        tables.append((seen + a * prior) / (seen.sum(1, keepdims=True) + a))
        alone[j] = _left_out(seen, prior, a, row, data.values, share)
    weights = _weights(alone[:, some], data.sets[some], data.weight_sets)
    return tables, weights, _shares(weights, alone, data.sets)


def _left_out(
    counts: np.ndarray,
    prior: np.ndarray,
    a: float,
    rows: np.ndarray,
    values: np.ndarray,
    share: np.ndarray,
) -> np.ndarray:
    """Probability [T] of every symbol, itself not counted."""
    own = np.maximum(counts[rows, values] - share, 0)
    total = np.maximum(counts.sum(1)[rows] - share, 0)
    return (own + a * prior[rows, values]) / (total + a)


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(p, _TINY))


def _said_by_others(
    data: _Streams, tables: list[np.ndarray], shares: np.ndarray, j: int, prior: np.ndarray
) -> np.ndarray:
    """[size, n]: what the experts but j say on average where a row of j occurs.

    Rows that never occur get the distribution over all contexts.
    """
    weight = shares.mean(1)
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


def _weights(p: np.ndarray, sets: np.ndarray, number: int) -> np.ndarray:
    """Weights [S, J] of the experts from their probabilities [J, T]."""
    weights = np.full((number, len(p)), 1.0 / len(p))
    for _ in range(_EM_STEPS):
        columns = [np.bincount(sets, share, number) for share in _shares(weights, p, sets)]
        weights = np.stack(columns, 1) + 1e-3
        weights /= weights.sum(1, keepdims=True)
    return weights


def _shares(weights: np.ndarray, p: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """[J, T] float32: by how much each expert foretold every symbol."""
    share = weights.astype(np.float32).T[:, sets] * p
    return share / np.maximum(share.sum(0), np.float32(1e-30))


def _whole_weights(weights: np.ndarray) -> np.ndarray:
    """Integers [S, J] whose rows sum to 2^8. What hardly counts costs time in every symbol."""
    small = (weights < _LEAST) & (weights < weights.max(1, keepdims=True))
    weights = np.where(small, 0, weights)
    weights = weights / weights.sum(1, keepdims=True)
    whole = np.floor(weights * (1 << WEIGHT_BITS)).astype(np.int32)
    whole[np.arange(len(whole)), weights.argmax(1)] += (1 << WEIGHT_BITS) - whole.sum(1)
    return whole
