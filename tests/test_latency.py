"""The plain model of what a frame waits for."""

import pytest

from jaxcomp.errors import ConfigError
from jaxcomp.evaluate import latency
from jaxcomp.evaluate.latency import Path


def test_a_link_carries_its_bits():
    assert latency.transmission_ms(125_000, 1.0) == 1000.0  # a megabit in a second
    assert latency.transmission_ms(125_000, 100.0) == 10.0
    assert latency.transmission_ms(0, 5.0) == 0.0
    with pytest.raises(ConfigError, match="positive"):
        latency.transmission_ms(10, 0.0)


def test_edge_link_and_server_add_up():
    path = Path(edge_ms=20.0, frame_bytes=2500.0, server_ms=30.0)
    assert latency.end_to_end_ms(path, 1.0) == 20 + 20 + 30
    assert latency.end_to_end_ms(path, 1.0, edge_slowdown=4, round_trip_ms=10) == 80 + 20 + 5 + 30
    with pytest.raises(ConfigError, match="edge_slowdown=0"):
        latency.end_to_end_ms(path, 1.0, edge_slowdown=0)
    with pytest.raises(ConfigError, match="round_trip_ms=-1"):
        latency.end_to_end_ms(path, 1.0, round_trip_ms=-1)


def test_the_break_even_is_where_both_take_the_same():
    split, remote = Path(50.0, 2_000.0, 20.0), Path(5.0, 12_000.0, 55.0)
    rate = latency.break_even_mbit_s(split, remote)
    both = [latency.end_to_end_ms(path, rate) for path in (split, remote)]
    assert both[0] == pytest.approx(both[1])
    assert latency.end_to_end_ms(split, rate / 2) < latency.end_to_end_ms(remote, rate / 2)
    slow = latency.break_even_mbit_s(split, remote, edge_slowdown=3)
    assert slow < rate  # a slow edge pays on slower links alone
    assert latency.break_even_mbit_s(Path(1.0, 2.0, 1.0), remote) is None  # faster at any link
    assert latency.break_even_mbit_s(remote, split) == 0.0


def test_rows_name_their_links():
    rows = latency.latency_rows({"a": Path(1.0, 1000.0, 1.0)}, links=(1.0, 20.0))
    assert rows == {"a": {"1": 10.0, "20": 2.4}}
