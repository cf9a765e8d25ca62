"""Attention of the class token, nearest neighbours, and the pictures of both."""

import io

import hjepa_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcomp.errors import ShapeError
from jaxcomp.evaluate.feature_pictures import (
    OTHER,
    SAME,
    attention_picture,
    heat,
    nearest,
    neighbour_picture,
)
from jaxcomp.models.vit_attention import class_attention


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("rope", [False, True])
def test_class_attention_is_what_the_network_computes(rope, monkeypatch):
    """The network's own attention, made to return its weights, says the same."""
    cfg = toy.config({"rope": rope, "depth": 2})
    params, images = toy.network(cfg)[1]["target"], toy.images(2)
    kept = []

    def told(q, k, v, mask=None):
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
        kept.append(weights)
        return jnp.einsum("bhnm,bmhd->bnhd", weights, v)

    shares = class_attention(cfg.encoder, params, images)
    monkeypatch.setattr(jax.nn, "dot_product_attention", told)
    class_attention(cfg.encoder, params, images)
    assert shares.shape == (2, 2, 4, 4)
    expected = np.asarray(kept[-1][:, :, 0, 1:]).reshape(shares.shape)
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert (np.asarray(shares).sum((2, 3)) < 1).all()


def test_a_heat_map_is_bright_where_shares_are_large():
    image = np.full((8, 8, 3), 200, np.uint8)
    shares = np.zeros((2, 2))
    shares[0, 1] = 1
    out = heat(image, shares).astype(int).sum(-1)
    assert out[:4, 4:].min() > 2 * out[4:].max() and heat(image, np.ones((2, 2))).shape == (8, 8, 3)
    with pytest.raises(ShapeError, match="do not fit"):
        heat(image, np.zeros((9, 2)))


def test_nearest_is_by_angle():
    keys = np.array([[1, 0], [0, 2], [5, 5], [-1, 0]])
    np.testing.assert_array_equal(nearest(np.array([[3, 0.1], [0, 1]]), keys, 2), [[0, 2], [1, 2]])


def test_frames_tell_the_labels():
    images = np.zeros((2, 16, 16, 3), np.uint8)
    found = [np.zeros((2, 16, 16, 3), np.uint8)] * 2
    labels = [np.array([3, 1]), np.array([0, 0])]
    sheet = opened(neighbour_picture(images, found, np.array([3, -1]), labels))
    colours = {tuple(c) for c in sheet.reshape(-1, 3)}
    assert {SAME, OTHER} <= colours
    lower = {tuple(c) for c in sheet[sheet.shape[0] // 2 + 4 :].reshape(-1, 3)}
    assert lower == {(0, 0, 0), (255, 255, 255)}


def test_an_attention_picture_has_a_column_for_each_head():
    images = np.zeros((3, 16, 16, 3), np.uint8)
    one, two = (opened(attention_picture(images, np.ones((3, h, 4, 4)))).shape for h in (1, 3))
    assert one[0] == two[0] and two[1] > one[1]
    with pytest.raises(ShapeError, match="no image"):
        attention_picture(images[:0], np.ones((0, 1, 4, 4)))
