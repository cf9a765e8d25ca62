"""Sizes of images inside the network's canvas."""

import pytest

from jaxcomp.data.resize import ResizeRule, canvas_size, shortest_size
from jaxcomp.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("size", "expected", "padded"),
    [
        ((384, 1280), (399, 1333), (416, 1344)),
        ((375, 1242), (402, 1333), (416, 1344)),
        ((370, 1224), (402, 1332), (416, 1344)),  # 1224 * (1333 / 1224) < 1333
        ((800, 1333), (800, 1333), (800, 1344)),
        ((480, 640), (800, 1066), (800, 1088)),
    ],
)
def test_shortest_side_follows_torchvision(size, expected, padded):
    assert shortest_size(*size, 800, 1333) == expected
    assert canvas_size(*expected, 32) == padded


def test_rules():
    assert ResizeRule("stretch", 384, 1280).size(375, 1242) == (384, 1280)
    assert ResizeRule("none", 128, 416).size(128, 416) == (128, 416)
    assert ResizeRule("shortest", 416, 1344).size(375, 1242) == (402, 1333)


@pytest.mark.parametrize(
    ("rule", "size"),
    [
        (ResizeRule("none", 128, 416), (128, 400)),
        (ResizeRule("shortest", 384, 1280), (375, 1242)),
        (ResizeRule("stretch", 384, 1280), (0, 10)),
    ],
)
def test_what_does_not_fit_is_refused(rule, size):
    with pytest.raises(DataError, match="pixels"):
        rule.size(*size)


def test_unknown_rules_are_refused():
    with pytest.raises(ConfigError, match="use one of"):
        ResizeRule("square", 1, 1)
