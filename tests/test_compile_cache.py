"""Where compiled programs are kept, before and after JAX is imported."""

import os
import sys
import types

import pytest

from jaxcomp.compile_cache import keep_compiled

FOLDER, SECONDS = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


class Config(types.SimpleNamespace):
    def update(self, name, value):
        setattr(self, name, value)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    return tmp_path


def test_before_jax_is_imported_the_environment_says_it(monkeypatch, home):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    keep_compiled()
    folder = os.environ[FOLDER]
    assert folder.startswith(str(home / ".cache" / "jaxcomp")) and os.path.isdir(folder)
    assert os.environ[SECONDS] == "0.2"
    config = Config(jax_compilation_cache_dir=None)
    keep_compiled(config, min_seconds=0.5)
    assert config.jax_compilation_cache_dir == folder
    assert config.jax_persistent_cache_min_compile_time_secs == 0.5


def test_the_choice_of_the_user_stays(monkeypatch, home):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    os.environ[FOLDER] = "mine"
    config = Config(jax_compilation_cache_dir="mine")
    keep_compiled()
    keep_compiled(config)
    assert os.environ[FOLDER] == config.jax_compilation_cache_dir == "mine"
    assert not any(home.iterdir())


def test_nothing_happens_where_it_is_too_late_or_cannot_be_kept(monkeypatch, home):
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    keep_compiled()
    assert not any(home.iterdir())
    (home / ".cache").write_text("not a folder")
    config = Config(jax_compilation_cache_dir=None)
    keep_compiled(config)
    assert config.jax_compilation_cache_dir is None and FOLDER not in os.environ
