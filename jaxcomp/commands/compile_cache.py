"""Compiled programs kept between commands."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path

from jaxcomp.workdir import cpu_model


def keep_compiled() -> None:
    """Lets JAX keep the programs it compiles, so that the next command starts sooner.

    A codec's network is compiled for every size of map, which takes about 2 seconds each; read back
    it takes 0.4. To be called before JAX is imported, else nothing happens. The folder is
    `JAX_COMPILATION_CACHE_DIR`, or else one in the home directory, which is named after the
    processor since such directories may serve several kinds.
    """
    if "jax" in sys.modules or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    machine = cpu_model() + importlib.metadata.version("jax")
    name = hashlib.sha256(machine.encode()).hexdigest()[:12]
    try:
        folder = Path.home() / ".cache" / "jaxcomp" / "xla" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # only speed is lost
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
