"""Residual vector quantisation: search, nesting, frozen rows to the bit, revival, statistics."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.codecs import residual_vq as rq
from jaxcomp.errors import CheckpointError

K, N, D = 3, 8, 4
settings = hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
quantise = jax.jit(rq.quantise, static_argnames="chunk")
dequantise, nearest = jax.jit(rq.dequantise), jax.jit(rq.nearest)
ema_update = jax.jit(rq.ema_update, static_argnames=("decay", "chunk"))
initialise, revive = jax.jit(rq.initialise), jax.jit(rq.revive)


def setup(seed, positions=50, masked=0.3):
    rng = np.random.default_rng(seed)
    rows = (
        rng.normal(0, 1, (K, N, D)).astype(np.float32) / np.float32(1 + np.arange(K))[:, None, None]
    )
    x = rng.normal(0, 1, (positions, D)).astype(np.float32)
    return jnp.asarray(rows), jnp.asarray(x), jnp.asarray(rng.random(positions) > masked)


def reference(rows, x, mask, sizes):
    """The definition, in float64, one vector at a time."""
    rows, x = np.asarray(rows, np.float64), np.asarray(x, np.float64)
    indices, total = np.zeros((len(rows), len(x)), int), np.zeros_like(x)
    for p in np.flatnonzero(mask):
        r = x[p].copy()
        for k, n in enumerate(sizes):
            if n:
                indices[k, p] = np.argmin(np.square(r - rows[k, :n]).sum(1))
                r -= rows[k, indices[k, p]]
        total[p] = x[p] - r
    return indices, total


points = st.lists(st.integers(0, N), min_size=K, max_size=K)


@settings
@hypothesis.given(seed=st.integers(0, 2**16), sizes=points, chunk=st.sampled_from([7, 64]))
def test_any_point_and_any_chunk_give_the_definition(seed, sizes, chunk):
    rows, x, mask = setup(seed)
    out = quantise(rows, x, mask, jnp.asarray(sizes), chunk=chunk)
    indices, total = reference(rows, x, mask, sizes)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_allclose(out.total, total, atol=1e-6)
    error = np.square(np.asarray(x - out.total))[np.asarray(mask)].mean()
    used = [k for k in range(K) if sizes[k]]
    if used:
        np.testing.assert_allclose(out.codebook_loss[used[-1]], error, rtol=1e-5)
    np.testing.assert_array_equal(out.codebook_loss, out.commitment)
    np.testing.assert_array_equal(out.codebook_loss[jnp.asarray(sizes) == 0], 0)


@settings
@hypothesis.given(seed=st.integers(0, 2**16), sizes=points)
def test_decoding_is_what_the_encoder_saw_to_the_bit(seed, sizes):
    rows, x, mask = setup(seed)
    sizes = jnp.asarray(sizes)
    out = quantise(rows, x, mask, sizes, chunk=64)
    np.testing.assert_array_equal(dequantise(rows, out.indices, mask, sizes), out.total)


@settings
@hypothesis.given(
    seed=st.integers(0, 2**16), k=st.integers(1, K), sizes=st.lists(st.integers(1, N), min_size=K)
)
def test_the_first_rows_of_the_first_codebooks_are_the_smaller_model(seed, k, sizes):
    """Cutting rows and codebooks away changes nothing; earlier indices do not depend on later."""
    rows, x, mask = setup(seed)
    point = tuple(sizes[:k])
    whole = quantise(rows, x, mask, rq.point_sizes(point, K), chunk=64)
    small = quantise(rows[:k, : max(point)], x, mask, jnp.asarray(point), chunk=64)
    np.testing.assert_array_equal(whole.indices[:k], small.indices)
    np.testing.assert_array_equal(whole.total, small.total)
    more = quantise(rows, x, mask, jnp.asarray((*point, *[N] * (K - k))), chunk=64)
    np.testing.assert_array_equal(more.indices[:k], small.indices)


def test_search_never_holds_all_distances():
    """The largest array in the program is far from positions x rows."""
    x, rows = jnp.zeros((200_000, 8)), jnp.zeros((256, 8))
    text = jax.jit(functools.partial(rq.nearest, size=256)).lower(x, rows).compile()
    memory = text.memory_analysis()
    assert memory.temp_size_in_bytes < 200_000 * 256  # a quarter of what one such array takes


def test_a_request_beyond_the_checkpoint_is_refused_by_name():
    assert rq.checked_point((5, 256, 64), (256, 16)) == (256, 16)
    with pytest.raises(CheckpointError, match=r"6 codebooks are asked for, but a\.npz holds 5"):
        rq.checked_point((5, 256, 64), (16,) * 6, "a.npz")
    with pytest.raises(CheckpointError, match=r"512 embeddings .* holds 5 codebooks of 256"):
        rq.checked_point((5, 256, 64), (16, 512))
    for none in ((), (0,), (16, 0)):
        with pytest.raises(CheckpointError, match="at least 1"):
            rq.checked_point((5, 256, 64), none)


# --- gradients ------------------------------------------------------------------------------------


def test_gradients_reach_the_chosen_rows_alone_and_vectors_by_straight_through_and_commitment():
    rows, x, mask = setup(0)
    sizes = jnp.asarray([4, 8, 0])

    def loss(rows, x, part):
        out = rq.quantise(rows, x, mask, sizes)
        return {
            "total": out.total.sum(),
            "through": rq.straight_through(x, out.total).sum(),
            "codebook": out.codebook_loss.sum(),
            "commitment": out.commitment.sum(),
        }[part]

    def gradient(part):
        return jax.grad(loss, (0, 1))(rows, x, part)

    out = quantise(rows, x, mask, sizes)
    real = np.asarray(mask)
    counts = np.stack([np.bincount(np.asarray(i)[real], minlength=N) for i in out.indices])
    counts[2] = 0
    to_rows, to_x = gradient("total")
    np.testing.assert_array_equal(to_rows, np.repeat(counts[..., None], D, 2))
    np.testing.assert_array_equal(to_x, 0)
    np.testing.assert_array_equal(gradient("through")[1], 1)
    to_rows, to_x = gradient("codebook")
    assert (np.asarray(jnp.abs(to_rows).sum(-1) > 0) == (counts > 0)).all()
    np.testing.assert_array_equal(to_x, 0)
    to_rows, to_x = gradient("commitment")
    np.testing.assert_array_equal(to_rows, 0)
    assert (np.asarray(jnp.abs(to_x).sum(-1) > 0) == real).all()


# --- learning -------------------------------------------------------------------------------------


def books_of(rows, frozen):
    """A state with some history."""
    rng = np.random.default_rng(9)
    counts = jnp.asarray(rng.uniform(1, 5, (K, N)), jnp.float32)
    return rq.Codebooks(rows, counts, rows * counts[..., None], counts / 10, frozen)


@settings
@hypothesis.given(
    seed=st.integers(0, 2**16), codebook=st.integers(0, K - 1), low=st.integers(0, N - 1),
    data=st.data(),
)  # fmt: skip
def test_frozen_rows_keep_every_bit(seed, codebook, low, data):
    high = data.draw(st.integers(low + 1, N))
    rows, x, mask = setup(seed)
    free = rq.trainable_rows(K, N, codebook, low, high)
    books = books_of(rows, ~free)
    indices = nearest(x, rows[codebook], high)
    rng = jax.random.key(seed)
    new = ema_update(books, codebook, x, indices, mask, 0.5)
    new = initialise(new, codebook, low, high, x, mask, rng)
    new, _ = revive(new, codebook, high, x, indices, mask, rng, 1e9)
    held = ~np.asarray(free)
    for name in ("rows", "counts", "sums"):
        old, now = np.asarray(getattr(books, name)), np.asarray(getattr(new, name))
        assert np.abs(now[held] - old[held]).max(initial=0) == 0, name
        assert now[held].tobytes() == old[held].tobytes(), name
    assert (np.asarray(new.rows)[~held] != np.asarray(rows)[~held]).any()


def test_the_moving_average_is_that_of_the_assigned_vectors():
    rows, x, mask = setup(3)
    books = books_of(rows, jnp.zeros((K, N), bool))
    indices = nearest(x, rows[1], N)
    new = ema_update(books, 1, x, indices, mask, 0.9, chunk=16)
    for j in range(N):
        mine = np.asarray(x)[np.asarray(mask) & (np.asarray(indices) == j)]
        count = 0.9 * float(books.counts[1, j]) + 0.1 * len(mine)
        total = 0.9 * np.asarray(books.sums[1, j]) + 0.1 * mine.sum(0)
        np.testing.assert_allclose(new.counts[1, j], count, rtol=1e-5)
        np.testing.assert_allclose(new.rows[1, j], total / count, rtol=1e-4, atol=1e-6)


def test_positions_without_a_vector_change_nothing():
    rows, x, mask = setup(4)
    books = books_of(rows, jnp.zeros((K, N), bool))
    rng = jax.random.key(0)

    def learn(x):
        out = quantise(rows, x, mask, jnp.full(K, N))
        one = ema_update(books, 0, x, out.indices[0], mask, 0.9)
        two = initialise(books, 1, 2, N, x, mask, rng)
        three, _ = revive(books, 2, N, x, out.indices[2], mask, rng, 1.0)
        return out, one, two, three

    other = jnp.where(mask[:, None], x, 1e6)
    for a, b in zip(jax.tree.leaves(learn(x)), jax.tree.leaves(learn(other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_vector_at_all_gives_no_nan():
    rows, x, _ = setup(5)
    none = jnp.zeros(len(x), bool)
    books = books_of(rows, jnp.zeros((K, N), bool))
    rng = jax.random.key(0)
    out = quantise(rows, x, none, jnp.full(K, N))
    new = ema_update(books, 0, x, out.indices[0], none, 0.9)
    new = initialise(new, 0, 0, N, x, none, rng)
    new, revived = revive(new, 0, N, x, out.indices[0], none, rng, 1.0)
    new = rq.update_usage(new, 0, rq.histogram(out.indices[0], none, N), 0.9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, new)))
    assert int(revived) == 0
    np.testing.assert_array_equal(out.total, 0)


def clusters(count=N, each=40):
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 10, (count, D))
    x = centres[:, None] + rng.normal(0, 0.05, (count, each, D))
    return jnp.asarray(centres, jnp.float32), jnp.asarray(x.reshape(-1, D), jnp.float32)


def test_initialisation_finds_separate_clusters():
    _, x = clusters()
    books = rq.make_codebooks(1, N, D)
    mask = jnp.ones(len(x), bool)
    new = initialise(books, 0, 0, N, x, mask, jax.random.key(0))
    error = np.square(np.asarray(x - new.rows[0][nearest(x, new.rows[0], N)])).sum(1)
    assert error.max() < 1.0  # every cluster has a row of its own


def test_added_rows_go_where_the_first_ones_do_not_serve():
    centres, x = clusters()
    books = rq.make_codebooks(1, N, D)
    books = books._replace(rows=books.rows.at[0, :5].set(centres[:5]))
    new = initialise(books, 0, 5, N, x, jnp.ones(len(x), bool), jax.random.key(2))
    found = nearest(new.rows[0, 5:], centres, N)
    assert sorted(found.tolist()) == [5, 6, 7]


def test_dead_rows_are_revived_and_then_used():
    _, x = clusters()
    rows = jnp.full((1, N, D), 1e3).at[0, 0].set(0.0)  # all but one are out of reach
    mask = jnp.ones(len(x), bool)
    books = rq.Codebooks(
        rows, jnp.ones((1, N)), rows, jnp.zeros((1, N)), jnp.zeros((1, N), bool)
    )  # fmt: skip
    before = rq.usage_report(rq.histogram(nearest(x, rows[0], N), mask, N), N)
    assert float(before["dead"]) == (N - 1) / N
    for i in range(30):
        indices = nearest(x, books.rows[0], N)
        books = ema_update(books, 0, x, indices, mask, 0.5)
        books, _ = revive(books, 0, N, x, indices, mask, jax.random.key(i), 0.1)
    after = rq.usage_report(rq.histogram(nearest(x, books.rows[0], N), mask, N), N)
    assert float(after["dead"]) == 0 and float(after["perplexity"]) > 6


def test_usage_of_known_counts():
    report = rq.usage_report(jnp.asarray([5, 5, 5, 5, 0, 0, 7, 7]), 6)
    np.testing.assert_allclose(report["perplexity"], 4.0, rtol=1e-6)
    np.testing.assert_allclose([report["used"], report["dead"]], [4 / 6, 2 / 6], rtol=1e-6)
    empty = rq.usage_report(jnp.zeros(8), 8)
    assert float(empty["perplexity"]) == 1 and float(empty["dead"]) == 1
