"""Who may import whom, read from the source of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"types", "errors"}
TRAINER = {"config", "workdir", "train", "step", "progress", "feed", "checkpoint", "optim", "log"}
TRAINER |= {"sharding", "processes", "trees", "weights_file"}

# room: rooms that it may import (besides itself, `types` and `errors`)
ALLOWED = {
    "types": set(),
    "errors": set(),
    "config": {"config_rules"},
    "config_rules": {"rules"},
    "rules": set(),
    "workdir": {"config"},
    **{room: TRAINER for room in TRAINER - {"config", "workdir"}},
    "ops": set(),
    "models": {"ops"},
    "codecs": {"ops"},
    "data": set(),
    "evaluate": {"codecs", "ops"},
    "interop": {"models", "codecs"},
    "tasks": {"models", "codecs", "evaluate", "ops"},
    "documents": {"log"},
    "report": {"workdir", "documents", "log"},
    "complexity": set(),
    "compile_cache": {"workdir"},
    "memory": set(),
}
# Commands and what wires the rooms together: they may import everything below them.
TOP = {"main", "cli", "commands", "__main__", "__init__", "jobs", "loaders", "inspecting"}
TOP |= {"loaders_lidar", "loaders_face"}
JAX_FREE = {"config", "config_rules", "rules", "workdir", "errors", "data", "compile_cache"}
JAX_FREE |= {"memory"}
NO_JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "clu"}


def modules():
    """Every module of the package and every config, as (room, path)."""
    for path in sorted((ROOT / "jaxcomp").rglob("*.py")):
        yield path.relative_to(ROOT / "jaxcomp").parts[0].removesuffix(".py"), path
    for path in sorted((ROOT / "configs").glob("*.py")):
        yield "configs", path


def imports(path):
    """Absolute dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


CASES = [pytest.param(r, p, id=str(p.relative_to(ROOT))) for r, p in modules()]


@pytest.mark.parametrize(("room", "path"), CASES)
def test_imports_stay_inside_the_walls(room, path):
    own = [name.split(".")[1] for name in imports(path) if name.startswith("jaxcomp.")]
    if room == "configs":
        assert set(own) <= {"config"}, f"{path} imports {own}"
    elif room not in TOP:
        assert room in ALLOWED, f"{path}: a new room needs a line in ALLOWED"
        extra = set(own) - ALLOWED[room] - BASE - {room}
        assert not extra, f"{path} ({room}) must not import {sorted(extra)}"


LIGHT = [c for c in CASES if c.values[0] in JAX_FREE | {"configs"}]


@pytest.mark.parametrize(("room", "path"), LIGHT)
def test_light_rooms_do_not_import_jax(room, path):
    found = {name.split(".")[0] for name in imports(path)} & NO_JAX
    assert not found, f"{path} ({room}) imports {found}"


def test_the_walls_see_a_violation(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from jaxcomp.models import fpn\n")
    assert list(imports(bad)) == ["jaxcomp.models.fpn"]
