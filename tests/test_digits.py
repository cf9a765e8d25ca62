"""Scikit-learn's digits as pictures: small real data for learning without labels."""

import sys

import numpy as np
import pytest

from jaxcomp.config import load_config
from jaxcomp.data.pictures import load_pictures, picture_splits
from jaxcomp.errors import DataError
from jaxcomp.evaluate.probe import knn_accuracy

CHANGES = ["data.name=digits", "data.train_size=0", "data.val_size=297", "data.num_threads=0"]


def test_all_digits_are_there_once_and_can_be_told_apart():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    config = load_config("configs/hjepa.py", CHANGES)
    sets = load_pictures(config)
    assert {k: len(v) for k, v in sets.items()} == {"train": 1500, "validation": 297}
    assert sets["train"].classes == tuple("0123456789")
    rows = {
        name: (np.stack([one.load(i).ravel() for i in range(len(one))]) / 255.0, one.labels)
        for name, one in sets.items()
    }
    assert knn_accuracy(rows["train"], rows["validation"], (5,))[5] > 0.95
    batch = next(picture_splits(config, 4, sets).train())
    assert batch["image"].shape == (4, 32, 32, 3) and batch["image"].max() > 150


def test_without_scikit_learn_the_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install scikit-learn"):
        load_pictures(load_config("configs/hjepa.py", CHANGES))
