"""Residual vector quantisation with nested prefixes, as pure functions of explicit arrays.

    r_0 = x;   i_k = argmin_j |r_k - rows[k, j]|^2;   r_{k+1} = r_k - rows[k, i_k];   x' = sum rows

(Juang and Gray, 1982; Lee et al., 2022, arXiv:2203.01941.) A *point* says how many rows of each
codebook take part: (256, 256, 16) is two codebooks of 256 rows and 16 rows of a third. The first
rows of the first codebooks are the model of a smaller point: nothing else has to be stored.

Vectors are [P, D], one for each place of a map or of a batch of maps; `mask` [P] tells which of
them exist. Those that do not take part in nothing: no statistics, no loss, index 0, zeros decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcomp.errors import CheckpointError
from jaxcomp.types import Array

CHUNK = 2048  # positions whose distances are in memory at a time
CANDIDATES = 4096  # residuals that new rows are chosen from
_SMALL = 1e-12


class Codebooks(NamedTuple):
    """The state of all codebooks.

    Attributes:
      rows: float32 [K, N, D].
      counts: float32 [K, N], moving average of the vectors that chose a row.
      sums: float32 [K, N, D], moving average of their sum.
      usage: float32 [K, N], moving average of the share that chose a row, for reports.
      frozen: bool [K, N], rows that no update may touch.
    """

    rows: Array
    counts: Array
    sums: Array
    usage: Array
    frozen: Array


class Quantised(NamedTuple):
    """What `quantise` found.

    Attributes:
      indices: int32 [K, P]; 0 where the codebook or the position takes no part.
      total: float32 [P, D], the sum of the chosen rows; its gradient reaches those rows.
      codebook_loss: float32 [K], mean of (stop(r) - q)^2: moves the rows.
      commitment: float32 [K], mean of (r - stop(q))^2: the same value, moves the vectors.
    """

    indices: Array
    total: Array
    codebook_loss: Array
    commitment: Array


def make_codebooks(count: int, size: int, features: int) -> Codebooks:
    """K codebooks of N zero rows of D features, nothing frozen."""
    flat = jnp.zeros((count, size), jnp.float32)
    rows = jnp.zeros((count, size, features), jnp.float32)
    return Codebooks(rows, flat, rows, flat, jnp.zeros((count, size), bool))


def checked_point(shape: tuple[int, ...], sizes: Sequence[int], where: str = "") -> tuple[int, ...]:
    """A point that codebooks of a shape can serve.

    Args:
      shape: of the rows, [K, N, D].
      sizes: rows wanted of the first, second, ... codebook.
      where: names the checkpoint in errors.

    Raises:
      CheckpointError: more codebooks or more rows than there are, or none.
    """
    point, held = tuple(int(n) for n in sizes), f"{where or 'the checkpoint'} holds "
    held += f"{shape[0]} codebooks of {shape[1]} embeddings"
    if not point or min(point) < 1:
        raise CheckpointError(f"point {point}: ask for at least 1 codebook and 1 embedding; {held}")
    if len(point) > shape[0]:
        raise CheckpointError(f"{len(point)} codebooks are asked for, but {held}; ask for fewer")
    if max(point) > shape[1]:
        raise CheckpointError(f"{max(point)} embeddings are asked for, but {held}; ask for fewer")
    return point


def point_sizes(point: Sequence[int], count: int) -> Array:
    """A point as int32 [K]: 0 for the codebooks that take no part."""
    return jnp.asarray([*point, *[0] * (count - len(point))], jnp.int32)


def nearest(x: Array, rows: Array, size: Array | int, chunk: int = CHUNK) -> Array:
    """Index of the nearest of the first rows, the lowest of equals.

    Distances are computed for `chunk` positions at a time, so memory does not grow with P N.

    Args:
      x: [P, D].
      rows: [N, D].
      size: how many rows take part, at least 1; may be traced.
      chunk: positions at a time.

    Returns:
      int32 [P].
    """
    rows = lax.stop_gradient(rows)
    # |x|^2 is the same for all rows, and rows that take no part are infinitely far.
    length = jnp.square(rows).sum(1)
    length = jnp.where(jnp.arange(len(rows)) < size, length, jnp.inf)

    def some(part: Array) -> Array:
        product = jnp.matmul(part, rows.T, precision=lax.Precision.HIGHEST)
        return jnp.argmin(length[None] - 2 * product, 1).astype(jnp.int32)

    count = len(x)
    parts = _chunks(lax.stop_gradient(x), min(chunk, max(count, 1)))
    return lax.map(some, parts).reshape(-1)[:count]


def quantise(
    rows: Array, x: Array, mask: Array, sizes: Array, chunk: int = CHUNK
) -> Quantised:  # fmt: skip
    """Quantises vectors to a point.

    Args:
      rows: [K, N, D].
      x: [P, D].
      mask: [P], 0 or False where there is no vector.
      sizes: int32 [K], rows of each codebook that take part; 0 leaves the codebook out. May be
        traced: all points are one compiled program.
      chunk: see `nearest`.

    Returns:
      The indices, the decoded vectors and the losses of each codebook (means over the vectors that
      exist and their features).
    """
    real = mask.astype(x.dtype)[:, None]
    weight = 1.0 / (jnp.maximum(real.sum(), 1.0) * x.shape[1])
    residual, total = x * real, jnp.zeros_like(x)
    indices, codebook_loss, commitment = [], [], []
    for k in range(len(rows)):
        part = real * (sizes[k] > 0).astype(x.dtype)
        index = _search(residual, rows[k], sizes[k], chunk) * part[:, 0].astype(jnp.int32)
        q = rows[k][index] * part
        still = lax.stop_gradient(q)
        codebook_loss.append(
            jnp.sum(jnp.square(lax.stop_gradient(residual) - q) * part) * weight,
        )
        commitment.append(jnp.sum(jnp.square(residual - still) * part) * weight)
        residual, total = residual - still, total + q
        indices.append(index)
    return Quantised(jnp.stack(indices), total, jnp.stack(codebook_loss), jnp.stack(commitment))


def _search(residual: Array, rows: Array, size: Array, chunk: int) -> Array:
    """`nearest`, not computed for a codebook that takes no part."""
    found = lax.stop_gradient(residual), lax.stop_gradient(rows)
    return lax.cond(
        size > 0,
        lambda r, e: nearest(r, e, size, chunk),
        lambda r, e: jnp.zeros(len(r), jnp.int32),
        *found,
    )


def dequantise(rows: Array, indices: Array, mask: Array, sizes: Array) -> Array:
    """Indices [K, P] back to vectors [P, D], zeros where there is none; see `quantise`."""
    real = mask.astype(rows.dtype)[:, None]
    total = jnp.zeros((indices.shape[1], rows.shape[2]), rows.dtype)
    for k in range(len(rows)):
        total = total + rows[k][indices[k]] * (real * (sizes[k] > 0).astype(rows.dtype))
    return total


def residual_before(
    rows: Array, x: Array, indices: Array, sizes: Array, codebook: Array | int
) -> Array:
    """What codebook number `codebook` (may be traced) has to quantise, [P, D]."""
    for k in range(len(rows)):
        part = ((sizes[k] > 0) & (k < codebook)).astype(x.dtype)
        x = x - rows[k][indices[k]] * part
    return x


def straight_through(x: Array, total: Array) -> Array:
    """`total`, with the gradient of both: rows get theirs, and the vectors get it as well.

    Bengio et al., 2013, arXiv:1308.3432; van den Oord et al., 2017, arXiv:1711.00937.
    """
    return total + (x - lax.stop_gradient(x))


def trainable_rows(
    count: int, size: int, codebook: Array | int, low: Array | int, high: Array | int
) -> Array:
    """Which rows may move, bool [K, N]: low .. high - 1 of one codebook alone."""
    own = jnp.arange(count)[:, None] == codebook
    row = jnp.arange(size)[None]
    return own & (row >= low) & (row < high)


def histogram(indices: Array, mask: Array, size: int) -> Array:
    """int32 [N]: how many of the vectors that exist chose each row."""
    return jnp.zeros(size, jnp.int32).at[indices].add(mask.astype(jnp.int32))


def update_usage(
    books: Codebooks, codebook: Array | int, counts: Array, decay: Array | float
) -> Codebooks:
    """Moves the usage of one codebook towards the shares of these counts [N]."""
    total = counts.sum()
    share = counts.astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)
    old = books.usage[codebook]
    new = jnp.where(total > 0, decay * old + (1 - decay) * share, old)
    return books._replace(usage=books.usage.at[codebook].set(new))


def ema_update(
    books: Codebooks,
    codebook: Array | int,
    residuals: Array,
    indices: Array,
    mask: Array,
    decay: float,
    chunk: int = CHUNK,
) -> Codebooks:
    """One step of k-means by moving averages (van den Oord et al., 2017, appendix A.1).

        counts <- d counts + (1 - d) n;   sums <- d sums + (1 - d) sum r;   row = sums / counts

    Frozen rows keep every bit of rows, counts and sums.

    Args:
      books: the state.
      codebook: which one learns; may be traced.
      residuals: [P, D], what it quantised.
      indices: int32 [P], what was chosen.
      mask: [P].
      decay: d.
      chunk: positions summed at a time.
    """
    count, total = _sums(residuals, indices, mask, books.rows.shape[1], chunk)
    free = ~books.frozen[codebook]
    counts = decay * books.counts[codebook] + (1 - decay) * count
    sums = decay * books.sums[codebook] + (1 - decay) * total
    moved = free & (counts > _SMALL)
    rows = sums / jnp.maximum(counts, _SMALL)[:, None]
    return books._replace(
        counts=_put(books.counts, codebook, counts, free),
        sums=_put(books.sums, codebook, sums, free),
        rows=_put(books.rows, codebook, rows, moved),
    )


def _sums(
    x: Array, indices: Array, mask: Array, size: int, chunk: int
) -> tuple[Array, Array]:  # fmt: skip
    """Counts [N] and sums [N, D] by index: products with a few one-hot rows at a time.

    Unlike a scatter its order of additions is fixed on every device.
    """
    real = mask.astype(x.dtype)
    parts = [_chunks(v, min(chunk, len(x))) for v in (x * real[:, None], indices, real)]

    def add(carry: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple, None]:
        vectors, index, weight = part
        one_hot = (index[:, None] == jnp.arange(size)[None]).astype(vectors.dtype)
        one_hot = one_hot * weight[:, None]
        product = jnp.matmul(one_hot.T, vectors, precision=lax.Precision.HIGHEST)
        return (carry[0] + one_hot.sum(0), carry[1] + product), None

    start = jnp.zeros(size, x.dtype), jnp.zeros((size, x.shape[1]), x.dtype)
    return lax.scan(add, start, tuple(parts))[0]


def _put(whole: Array, codebook: Array | int, values: Array, where: Array) -> Array:
    """`whole` with values [N, ...] of one codebook where `where` [N] holds."""
    old = whole[codebook]
    chosen = where.reshape(-1, *[1] * (old.ndim - 1))
    return whole.at[codebook].set(jnp.where(chosen, values, old))


def initialise(
    books: Codebooks,
    codebook: Array | int,
    low: Array | int,
    high: Array | int,
    residuals: Array,
    mask: Array,
    rng: Array,
    candidates: int = CANDIDATES,
) -> Codebooks:
    """New rows low .. high - 1 of one codebook, drawn from residuals by k-means++.

    Each is drawn with a probability in proportion to its squared distance from the nearest row that
    is there already, those below `low` included (Arthur and Vassilvitskii, 2007).

    Args:
      books: the state; only the new rows change, with their counts and sums.
      codebook: which one; may be traced, as `low` and `high`.
      low: the first new row.
      high: behind the last one.
      residuals: [P, D].
      mask: [P].
      rng: key.
      candidates: residuals that are looked at, drawn at random.
    """
    first, then = jax.random.split(rng)
    noise = jax.random.uniform(first, (len(residuals),))
    most = min(candidates, len(residuals))
    score, place = lax.top_k(jnp.where(mask.astype(bool), noise, -1.0), most)
    real, sample = score >= 0, residuals[place]
    old = books.rows[codebook]
    index = nearest(sample, old, jnp.maximum(low, 1))
    distance = jnp.square(sample - old[index]).sum(1)
    # With no row yet every residual is as good as the others.
    distance = jnp.where(real, jnp.where(jnp.asarray(low) > 0, distance, 1.0), 0.0)

    def choose(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, far = carry
        weight = jnp.where(far > 0, jnp.log(jnp.maximum(far, 1e-30)), -jnp.inf)
        key = jax.random.fold_in(then, j)
        pick = sample[jnp.argmax(weight + jax.random.gumbel(key, weight.shape))]
        near = jnp.square(sample - pick[None]).sum(1)
        first_one = (j == 0) & (jnp.asarray(low) == 0)
        far = jnp.where(real, jnp.where(first_one, near, jnp.minimum(far, near)), 0.0)
        return rows.at[j].set(pick), far

    rows, _ = lax.fori_loop(low, high, choose, (old, distance))
    number = jnp.arange(len(old))
    fresh = (number >= low) & (number < high) & ~books.frozen[codebook]
    # A light start: the first batches decide where a row goes.
    counts = jnp.full(len(old), 1e-3, rows.dtype)
    return books._replace(
        rows=_put(books.rows, codebook, rows, fresh),
        counts=_put(books.counts, codebook, counts, fresh),
        sums=_put(books.sums, codebook, rows * counts[:, None], fresh),
    )


def revive(
    books: Codebooks,
    codebook: Array | int,
    size: Array | int,
    residuals: Array,
    indices: Array,
    mask: Array,
    rng: Array,
    share: float,
) -> tuple[Codebooks, Array]:
    """Moves rows that next to no vector chooses to where the error is largest.

    A row is dead where its count is below `share` times the mean count of the codebook's rows. It
    becomes a residual drawn with a probability in proportion to its squared error (as in k-means++)
    and starts with the mean count, so that it has time to be chosen.

    Args:
      books: the state; frozen rows and those from `size` on are left alone.
      codebook: which one; may be traced.
      size: its rows that take part; may be traced.
      residuals: [P, D].
      indices: int32 [P].
      mask: [P].
      rng: key.
      share: see above; 0 revives nothing.

    Returns:
      (the new state, the number of revived rows, int32).
    """
    rows, counts = books.rows[codebook], books.counts[codebook]
    active = jnp.arange(len(rows)) < size
    # Frozen rows have no counts of this stage; their share is known by `usage` alone.
    free = active & ~books.frozen[codebook]
    mean = jnp.where(free, counts, 0.0).sum() / jnp.maximum(free.sum(), 1)
    dead = free & (counts < share * mean)
    error = jnp.square(residuals - rows[indices]).sum(1)
    weight = jnp.where(mask.astype(bool) & (error > 0), jnp.log(error + 1e-30), -jnp.inf)
    most = min(len(rows), len(residuals))
    score, place = lax.top_k(weight + jax.random.gumbel(rng, weight.shape), most)
    place = jnp.resize(place, (len(rows),))
    dead = dead & jnp.isfinite(jnp.resize(score, (len(rows),)))
    fresh, start = residuals[place], jnp.full(len(rows), 1.0, rows.dtype) * mean
    return books._replace(
        rows=_put(books.rows, codebook, fresh, dead),
        counts=_put(books.counts, codebook, start, dead),
        sums=_put(books.sums, codebook, fresh * start[:, None], dead),
    ), dead.sum().astype(jnp.int32)


def usage_report(counts: Array, size: Array | int, dead: float = 0.01) -> dict[str, Array]:
    """How well the rows of a codebook are used.

    Args:
      counts: [N], how often each row was chosen, or any multiple of it.
      size: rows that take part.
      dead: a row counts as dead below this share of the mean.

    Returns:
      {"perplexity": exp of the entropy in nats, "used": share of the rows ever chosen,
      "dead": share of the rows chosen less than `dead` times the mean}, float32 scalars.
    """
    active = jnp.arange(len(counts)) < size
    counts = jnp.where(active, counts, 0).astype(jnp.float32)
    p = counts / jnp.maximum(counts.sum(), _SMALL)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, _SMALL)), 0.0))
    number = jnp.maximum(jnp.asarray(size, jnp.float32), 1.0)
    rare = active & (p * number < dead)
    return {
        "perplexity": jnp.exp(entropy),
        "used": (counts > 0).sum() / number,
        "dead": rare.sum() / number,
    }


def _chunks(x: Array, chunk: int) -> Array:
    """[P, ...] to [ceil(P / chunk), chunk, ...], zeros behind."""
    missing = -len(x) % chunk
    x = jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)))
    return x.reshape(-1, chunk, *x.shape[1:])
