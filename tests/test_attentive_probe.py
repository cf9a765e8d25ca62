"""The attentive probe finds what a mean hides."""

import numpy as np
import pytest

from jaxcomp.errors import DataError, ShapeError
from jaxcomp.evaluate.attentive_probe import attentive_probe
from jaxcomp.evaluate.probe import linear_probe, pool_tokens


def one_telling_token(rng, rows, tokens=12, width=16, classes=4):
    """Noise, and one marked token anywhere whose other channels tell the class."""
    x = rng.normal(size=(rows, tokens, width)).astype(np.float32)
    x[..., 0] = 0
    labels, place = rng.integers(classes, size=rows), rng.integers(tokens, size=rows)
    x[np.arange(rows), place, 0] = 4
    x[np.arange(rows), place, 1 : 1 + classes] += 4 * np.eye(classes, dtype=np.float32)[labels]
    return x, labels, place


def test_it_looks_where_the_class_is():
    rng = np.random.default_rng(0)
    x, y, _ = one_telling_token(rng, 600)
    z, wanted, place = one_telling_token(rng, 200)
    found = attentive_probe((x, y), (z, wanted))
    mean = linear_probe((pool_tokens(x), y), (pool_tokens(z), wanted))["accuracy"]
    assert found["accuracy"] > mean + 0.05 and found["accuracy"] > 0.85
    assert (found["weights"].argmax(1) == place).mean() > 0.9
    np.testing.assert_allclose(found["weights"].sum(1), 1, rtol=1e-5)


def test_labels_without_meaning_are_guessed():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 6, 8)).astype(np.float32)
    y = rng.integers(5, size=300)
    assert attentive_probe((x[:200], y[:200]), (x[200:], y[200:]))["accuracy"] < 0.45


def test_it_is_a_function_of_its_arguments():
    x, y, _ = one_telling_token(np.random.default_rng(2), 60)
    one, two = (attentive_probe((x, y), (x[:9], y[:9]), seed=3, epochs=2) for _ in range(2))
    np.testing.assert_array_equal(one["weights"], two["weights"])


def test_bad_tokens_are_refused():
    x, y = np.zeros((4, 3, 2), np.float32), np.zeros(4, int)
    with pytest.raises(ShapeError, match=r"training tokens \[4, 6\]"):
        attentive_probe((x.reshape(4, 6), y), (x, y))
    with pytest.raises(ShapeError, match="test tokens"):
        attentive_probe((x, y), (x, y[:2]))
    with pytest.raises(DataError, match="not finite"):
        attentive_probe((x + np.nan, y), (x, y))
