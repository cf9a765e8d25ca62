"""What happens to broken objects and frames: left out and reported, or fatal."""

from __future__ import annotations

import collections
import logging
from collections.abc import Sequence

from jaxcomp.errors import DataError

POLICIES = ("report", "fatal")
_SHOWN = 5


class Junk:
    """Collects what was left out.

    Args:
      policy: "report" collects, "fatal" raises at the first.
    """

    def __init__(self, policy: str):
        self.policy = policy
        self.counts: collections.Counter[str] = collections.Counter()
        self.messages: list[str] = []
        self._frames: set[str] = set()

    def add(self, kind: str, message: str, frame: str = "") -> None:
        """Notes one "object" or "frame" that is left out.

        Args:
          kind: of what is left out.
          message: starts with file and line.
          frame: if given, its name; a frame is noted once.

        Raises:
          DataError: the policy is "fatal".
        """
        if self.policy == "fatal":
            raise DataError(message)
        if frame and frame in self._frames:
            return
        self._frames.add(frame)
        self.counts[kind] += 1
        self.messages.append(message)

    def extend(self, found: Sequence[tuple[str, str]]) -> None:
        """Notes several (kind, message) pairs."""
        for kind, message in found:
            self.add(kind, message)

    def log(self, logger: logging.Logger) -> None:
        """Warns with the counts and the first messages; silent where all was well."""
        if not self.messages:
            return
        counts = " and ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in self.counts.items())
        more = len(self.messages) - _SHOWN
        logger.warning(
            "kitti: %s left out (config.data.on_junk='fatal' stops instead):\n  %s%s",
            counts,
            "\n  ".join(self.messages[:_SHOWN]),
            f"\n  ... and {more} more" if more > 0 else "",
        )
