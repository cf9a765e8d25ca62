"""How long a frame takes from the camera to its detections, by where the network is cut.

    remote   image codec ── bytes ──► image decoder, head, tail
    split    head, feature codec ── bytes ──► feature decoder, tail
    local    head, tail ── bytes of the boxes ──►

One frame at a time, nothing overlaps: edge, then link, then server. The link passes `rate` bits a
second and adds half a round trip; it loses nothing. So this is the latency of a quiet link, not its
throughput, and a frame waits for no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxcomp.errors import ConfigError

LINKS = (1.0, 5.0, 20.0, 100.0)  # Mbit/s


@dataclasses.dataclass(frozen=True)
class Path:
    """What one frame costs on its way.

    Attributes:
      edge_ms: work before the link, on the machine where it was measured.
      frame_bytes: what passes the link.
      server_ms: work behind it.
    """

    edge_ms: float
    frame_bytes: float
    server_ms: float


def transmission_ms(frame_bytes: float, mbit_s: float) -> float:
    """Time of so many bytes on a link: 1 Mbit/s is 1000 bits a millisecond.

    Raises:
      ConfigError: the rate of the link is not positive.
    """
    if not mbit_s > 0:
        raise ConfigError(f"link of {mbit_s} Mbit/s; give a positive rate")
    return 8.0 * frame_bytes / (1000.0 * mbit_s)


def end_to_end_ms(
    path: Path, mbit_s: float, *, edge_slowdown: float = 1.0, round_trip_ms: float = 0.0
) -> float:
    """Milliseconds from the pixels to the detections.

    Args:
      path: what the frame costs.
      mbit_s: rate of the link.
      edge_slowdown: how many times slower the edge is than the machine that was measured.
      round_trip_ms: of an empty packet; half of it is on the way.

    Raises:
      ConfigError: the link is not positive, or the slowdown or the round trip are negative.
    """
    if not edge_slowdown > 0 or round_trip_ms < 0:
        raise ConfigError(
            f"edge_slowdown={edge_slowdown}, round_trip_ms={round_trip_ms}; the first must be "
            "positive, the second not negative"
        )
    link = transmission_ms(path.frame_bytes, mbit_s) + 0.5 * round_trip_ms
    return edge_slowdown * path.edge_ms + link + path.server_ms


def break_even_mbit_s(
    fewer_bytes: Path, more_bytes: Path, *, edge_slowdown: float = 1.0
) -> float | None:
    """The link below which the path with fewer bytes is the faster one; None: at any link.

    Solves T(fewer) = T(more) for the rate of the link. 0 says that the path with more bytes is
    never slower: it has no more bytes after all.

    Raises:
      ConfigError: the slowdown is not positive.
    """
    compute = end_to_end_ms(fewer_bytes, 1.0, edge_slowdown=edge_slowdown)
    compute -= end_to_end_ms(more_bytes, 1.0, edge_slowdown=edge_slowdown)
    bits = 8.0 * (more_bytes.frame_bytes - fewer_bytes.frame_bytes)
    compute += bits / 1000.0  # without the link, at which both were taken
    if bits <= 0:
        return 0.0
    return bits / 1000.0 / compute if compute > 0 else None


def latency_rows(
    paths: Mapping[str, Path], links: Sequence[float] = LINKS, **options: float
) -> dict[str, dict[str, float]]:
    """{name: {"5": milliseconds at 5 Mbit/s, ...}} of several paths; options as `end_to_end_ms`."""
    return {
        name: {f"{link:g}": end_to_end_ms(path, link, **options) for link in links}
        for name, path in paths.items()
    }
