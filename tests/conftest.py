"""Four virtual CPU devices, rank promotion as an error, and the optional reference files."""

from __future__ import annotations

import os
import pathlib

# Before anything imports JAX: it reads these once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Tests compile much and compute little: code that is not optimised takes half the time. For code as
# users run it: XLA_FLAGS=--xla_backend_optimization_level=3 pytest
for _flag, _value in (
    ("--xla_force_host_platform_device_count", 4),
    ("--xla_backend_optimization_level", 0),
):
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
# Compiled programs are kept between runs and shared by the workers.
_CACHE = pathlib.Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import pytest  # noqa: E402

# What takes a minute and more comes first: begun last, it would keep one worker busy alone.
_FIRST = (
    "test_notebooks", "test_hjepa", "test_processes", "test_featherface", "test_face_task",
    "test_sweep_smoke", "test_rans", "test_conv", "test_codec_oracle", "test_main_job",
    "test_train", "test_hjepa_oracle", "test_token_codec", "test_pyramid_codec",
    "test_residual_vq_job",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Sorts the files; the tests of each stay as they are."""
    rank = {name: i for i, name in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(_FIRST)))


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference files beside (or in) the repository; skips where there is none."""
    root = pathlib.Path(__file__).resolve().parent.parent
    for path in (root / "shared", root.parent / "shared"):
        if path.is_dir():
            return path
    pytest.skip(f"needs the reference files in {root.parent / 'shared'}")
