"""Compiled programs kept between commands and runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

from jaxcomp.workdir import cpu_model


def keep_compiled(config: Any = None, min_seconds: float = 0.2) -> None:
    """Lets JAX keep the programs it compiles, so that the next command starts sooner.

    A codec's network is compiled for every size of map, which takes about 2 seconds each; read back
    it takes 0.4. The folder is the user's own choice (`JAX_COMPILATION_CACHE_DIR`), or else one in
    the home directory, which is named after the processor since such directories may serve several
    kinds.

    Args:
      config: `jax.config` of a program that has imported JAX. None: variables of the environment
        say it, which works before JAX is imported; else nothing happens.
      min_seconds: programs that are compiled faster are not kept.
    """
    if config is None:
        late_or_chosen = "jax" in sys.modules or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    else:
        late_or_chosen = config.jax_compilation_cache_dir
    if late_or_chosen:
        return
    machine = cpu_model() + importlib.metadata.version("jax")
    name = hashlib.sha256(machine.encode()).hexdigest()[:12]
    try:
        folder = Path.home() / ".cache" / "jaxcomp" / "xla" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # only speed is lost
    if config is None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(min_seconds))
    else:
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
