"""A process that keeps its memory does not ask the system for the same pages again."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from jaxcomp.memory import keep_memory
kept = sys.argv[1] == "kept" and keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24)  # 128 MiB
before = faults()
for _ in range(4):
    np.ones(2**24)
print(int(kept), faults() - before)
"""


def faults(word, **variables):
    """(whether memory is kept, pages that four arrays of 128 MiB asked for)."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT, word]
    done = subprocess.run(command, env=plain | variables, capture_output=True, check=True)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_pages_are_asked_for_once():
    kept, few = faults("kept")
    if not kept:
        pytest.skip("not glibc")
    _, many = faults("plain")
    assert few < 1000 and few <= many  # without huge pages 131,072


def test_the_user_decides():
    assert faults("kept", MALLOC_ARENA_MAX="2")[0] == 0
