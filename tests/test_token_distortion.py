"""What the distortion of tokens sees, and the anchor that sends one vector."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.errors import CorruptStreamError, NonFiniteError, ShapeError
from jaxcomp.evaluate.anchors_vector import VectorCoder
from jaxcomp.tasks.token_distortion import TokenDistortion, covariance, whitening


def maps(count=400, seed=0):
    """[N, 2, 3, 4] with channels of very different variance, two of them correlated."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (count, 2, 3, 4)) * [10, 1, 1, 0.1] + 5
    x[..., 2] += 0.8 * x[..., 1]
    return x.astype(np.float32)


def test_whitened_rows_are_decorrelated():
    x = maps().reshape(-1, 4)
    np.testing.assert_allclose(covariance(x), np.cov(x.T, bias=True), rtol=1e-6, atol=1e-8)
    rows = x[:, :3]  # what is far below the mean variance counts less, so that noise stays small
    rows[:, 0] /= 10
    done = (rows - rows.mean(0)) @ whitening(rows)
    np.testing.assert_allclose(np.cov(done.T, bias=True), np.eye(3), atol=0.05)


def judged(weights, x, x_hat):
    judge = TokenDistortion.of(x, **weights)
    return np.asarray(judge.level({}, "t0", jnp.asarray(x), jnp.asarray(x_hat), None))


def test_the_pooled_error_sees_the_mean_alone():
    x, weights = maps(), {"whitened_weight": 0.0, "pooled_weight": 1.0}
    cancelled = x.copy()
    cancelled[:, 0] += 3
    cancelled[:, 1] -= 3
    np.testing.assert_allclose(judged(weights, x, cancelled), 0, atol=1e-8)
    whole = np.broadcast_to(x.mean((0, 1, 2)), x.shape)
    assert judged(weights, x, whole).mean() == pytest.approx(1, rel=0.01)


def test_the_whitened_error_weighs_quiet_channels_like_loud_ones():
    x, weights = maps(), {"whitened_weight": 2.0, "pooled_weight": 0.0}
    loud, quiet = x + np.float32([10, 0, 0, 0]), x + np.float32([0, 1, 0, 0])
    ratio = judged(weights, x, quiet) / judged(weights, x, loud)
    assert (ratio > 0.3).all()
    np.testing.assert_allclose(judged(weights, x, x), 0)


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2, 1])
def test_vectors_come_back_from_the_bytes_that_their_bits_need(bits):
    rng = np.random.default_rng(bits)
    vectors = rng.normal(0, 1, (500, 13)) * np.linspace(0.1, 5, 13)
    coder = VectorCoder.fit(vectors, bits)
    x = np.clip(vectors[0], coder.low, coder.high).astype(np.float32)
    blob = coder.encode(x)
    assert len(blob) == -(-13 * bits // 8)
    step = (coder.high - coder.low) / (2**bits - 1)
    assert (np.abs(coder.decode(blob) - x) <= 0.501 * step).all()


def test_vectors_that_are_none_are_refused():
    coder = VectorCoder.fit(np.random.default_rng(0).normal(size=(9, 5)), 4)
    with pytest.raises(ShapeError, match=r"\(5,\) is needed"):
        coder.encode(np.zeros(4))
    with pytest.raises(NonFiniteError):
        coder.encode(np.full(5, np.nan))
    with pytest.raises(CorruptStreamError, match="2 bytes are no vector"):
        coder.decode(b"ab")
