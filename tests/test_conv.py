"""The codec convolutions against XLA's plain forms and against a loop written from the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.ops import conv

SIZES = [(8, 12), (7, 5), (1, 1), (2, 3), (3, 20)]


def _random(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s, dtype=np.float32)) for s in shapes]


def _loop_down(x, w):
    """The sum of the module's formula, written out."""
    batch, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (2, 3), (2, 3), (0, 0)))
    out = np.zeros((batch, (height + 1) // 2, (width + 1) // 2, w.shape[3]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            patch = padded[:, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5]
            out[:, i, j] = np.einsum("bklc,klcm->bm", patch, w)
    return out


def _loop_up(x, k):
    batch, height, width, _ = x.shape
    out = np.zeros((batch, 2 * height + 4, 2 * width + 4, k.shape[3]))
    for i in range(height):
        for j in range(width):
            out[:, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5] += np.einsum(
                "bc,klcm->bklm", x[:, i, j], k
            )
    return out[:, 2 : 2 + 2 * height, 2 : 2 + 2 * width]


@pytest.mark.parametrize("size", SIZES)
def test_forward_is_the_formula(size):
    x, w = _random((2, *size, 3), (5, 5, 3, 4))
    np.testing.assert_allclose(conv.conv5s2(x, w), _loop_down(x, w), atol=2e-5)
    np.testing.assert_allclose(conv.conv5s2_transpose(x, w), _loop_up(x, w), atol=2e-5)


@pytest.mark.parametrize("function", [conv.conv5s2, conv.conv5s2_transpose])
@pytest.mark.parametrize("size", SIZES)
def test_both_forms_have_the_same_values_and_gradients(function, size):
    x, w = _random((2, *size, 3), (5, 5, 3, 4))
    results = []
    for polyphase in (True, False):
        y, vjp = jax.vjp(lambda *a, p=polyphase: function(*a, polyphase=p), x, w)
        results.append((y, *vjp(jnp.cos(y))))
    for ours, plain in zip(*results, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_matrix_and_polyphase_forms_agree(size):
    x, w = _random((2, *size, 3), (5, 5, 3, 4))
    y = conv.downsample(x, w)
    np.testing.assert_allclose(conv._downsample_matrix(x, w), y, atol=2e-5)
    np.testing.assert_allclose(
        conv._correlate_matrix(x, y), conv.correlate(x, y), rtol=1e-5, atol=1e-4
    )
    plain = conv.upsample(y, w, polyphase=False)
    np.testing.assert_allclose(conv._upsample_matrix(y, w), plain, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(conv.upsample(y, w, polyphase=True), plain, rtol=1e-5, atol=1e-4)


def test_every_form_is_reached(monkeypatch):
    """Small maps take the matrix forms, large ones the convolutions; both are differentiated."""
    x, w = _random((1, 6, 8, 3), (5, 5, 3, 4))
    wanted = jax.grad(lambda a: jnp.sum(jnp.cos(conv.conv5s2(a, w))))(x)
    monkeypatch.setattr(conv, "_MATRIX_ROWS", 0)
    monkeypatch.setattr(conv, "_MATRIX_TAPS", 0)
    got = jax.grad(lambda a: jnp.sum(jnp.cos(conv.conv5s2(a, w))))(x)
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_default_form_follows_the_backend():
    assert conv._resolve(None) == (jax.default_backend() == "cpu")


@pytest.mark.parametrize("function", [conv.conv5s2, conv.conv5s2_transpose])
def test_bfloat16_keeps_its_dtype_and_is_close(function):
    x, w = _random((1, 6, 8, 4), (5, 5, 4, 4))
    small = (x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    y, vjp = jax.vjp(function, *small)
    assert y.dtype == jnp.bfloat16
    assert [g.dtype for g in vjp(y)] == [jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_allclose(y.astype(jnp.float32), function(x, w), atol=0.25)


def test_matches_torch():
    torch = pytest.importorskip("torch")
    x, w = _random((2, 6, 9, 3), (5, 5, 3, 4))
    nchw = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
    down = torch.nn.functional.conv2d(
        nchw, torch.from_numpy(np.array(w)).permute(3, 2, 0, 1), stride=2, padding=2
    )
    up = torch.nn.functional.conv_transpose2d(
        nchw, torch.from_numpy(np.array(w)).permute(2, 3, 0, 1), None, 2, 2, 1
    )
    np.testing.assert_allclose(conv.conv5s2(x, w), down.permute(0, 2, 3, 1), atol=2e-5)
    np.testing.assert_allclose(conv.conv5s2_transpose(x, w), up.permute(0, 2, 3, 1), atol=2e-5)
