"""Run directories: naming, locking, resuming, provenance and the summary. No JAX here.

{root}/{name}/run_{YYYYmmdd_HHMMSS}_lambda_{rate weight}_lr_{learning rate}_bs_{batch}/
  config.json config_used.yaml command_args.txt provenance.json   written at the start
  checkpoints/ metrics.jsonl train.log ...                        written by the trainer
  summary.json                                                    written last: the run is done
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jaxcomp import config as config_lib
from jaxcomp.errors import CheckpointError

_DISK = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another --workdir",
    errno.EACCES: "permission is denied; choose another --workdir or change its mode",
    errno.EPERM: "permission is denied; choose another --workdir or change its mode",
    errno.ENOTDIR: "a part of the path is a file; choose another --workdir",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter --workdir",
    errno.EEXIST: "a file stands where the directory should be; choose another --workdir",
}
_PACKAGES = ("jaxcomp", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a full disk, a read-only place and the like into a `CheckpointError` naming `path`."""
    try:
        yield
    except OSError as error:
        known = _DISK.get(error.errno or 0)
        if known is not None:
            raise CheckpointError(
                f"Cannot write {str(path)!r}: {known} ({error.strerror})."
            ) from error
        reason = error.strerror or str(error) or type(error).__name__
        raise CheckpointError(
            f"Cannot read or write {str(error.filename or path)!r}: {reason}; "
            "check that place, then run the same command again."
        ) from error


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file so that it holds either the old or the whole new content.

    Args:
      path: the file; its folder is made if needed.
      content: text (UTF-8) or bytes.

    Raises:
      CheckpointError: the place cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


class Workdir:
    """A locked run directory; also a context manager that gives the lock back.

    Attributes:
      path: the directory.
      resumed: whether it existed with this config before.
      made: whether this process made the directory.
      started: `time.time()` of opening, for `summary.json`.
    """

    def __init__(self, path: Path, lock: IO[str], resumed: bool, made: bool = False):
        self.path = path
        self.resumed = resumed
        self.made = made
        self.started = time.time()
        self._lock = lock

    @property
    def finished(self) -> bool:
        """Whether `summary.json` exists."""
        return (self.path / "summary.json").exists()

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes `name` below the directory atomically as indented JSON; returns its path.

        NaN and infinity, which JSON does not have, become null.
        """
        atomic_write(self.path / name, json_text(content))
        return self.path / name

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """Writes `summary.json`, which marks the run as finished; call it last."""
        return self.write_json("summary.json", summary)

    def discard_unused(self) -> None:
        """Removes a directory of this process's making in which nothing was trained.

        So a mistyped path does not take the name of the run that follows.
        """
        trained = any(p.is_file() for p in (self.path / "checkpoints").rglob("*"))
        if self.made and not trained:
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.close()

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def finite(value: Any) -> Any:
    """`value` with NaN and infinity, also inside mappings and lists, replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def json_text(content: Mapping[str, Any]) -> str:
    """Indented, strict JSON; arrays become lists, what is not finite becomes null."""
    plain = json.loads(json.dumps(content, default=_plain))
    return json.dumps(finite(plain), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Numbers and paths of other libraries as plain JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def run_name(config: config_lib.ConfigDict, now: datetime.datetime) -> str:
    """The documented name of a run directory."""
    training = config.training
    if config.task == "detect":
        return f"run_{training.learning_rate:.6f}_{training.batch_size}"
    return (
        f"run_{now:%Y%m%d_%H%M%S}_lambda_{training.rate_weight:.2e}"
        f"_lr_{training.learning_rate:.2e}_bs_{training.batch_size}"
    )


def stored_digest(path: Path) -> str | None:
    """The config digest of a run directory, or None where there is no readable `provenance.json`.

    It is computed from `config.json` where there is one, so that runs of earlier versions, whose
    digest was made in another way, can be resumed.
    """
    try:
        stored = json.loads((path / "provenance.json").read_text())["config_digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        return config_lib.digest(dict(json.loads((path / "config.json").read_text())))
    except (OSError, ValueError, TypeError):
        return stored


def find_unfinished(parent: Path, digest: str) -> Path | None:
    """The latest `run_*` below `parent` with this config and without `summary.json`."""
    runs = sorted(parent.glob("run_*"), key=lambda r: (r.stat().st_mtime, r.name), reverse=True)
    fits = (r for r in runs if not (r / "summary.json").exists() and stored_digest(r) == digest)
    return next(fits, None)


class FollowedWorkdir:
    """A run directory that another process of the same run has opened: nothing is written to it.

    Attributes:
      path: the directory.
      resumed: whether it existed with this config before.
      finished: whether it held a summary when the run began.
    """

    def __init__(self, path: str | os.PathLike[str], resumed: bool, finished: bool):
        self.path, self.resumed, self.finished = Path(path), resumed, finished

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Where the other process writes it."""
        del content
        return self.path / name

    def discard_unused(self) -> None:
        """Leaves it to the other process."""

    def close(self) -> None:
        """Has no lock to give back."""


def open_workdir(
    config: config_lib.ConfigDict,
    *,
    name: str,
    root: str | os.PathLike[str] = "checkpoints",
    explicit: str | os.PathLike[str] | None = None,
    argv: Sequence[str] = (),
) -> Workdir:
    """Makes a run directory, or finds the one to resume, and locks it.

    Args:
      config: the resolved config of the run.
      name: the folder that holds all runs of one kind.
      root: where that folder lies.
      explicit: exactly this directory instead (`--workdir`).
      argv: the command line, written to `command_args.txt`.

    Returns:
      The locked directory. Keep it open while the run lasts: the kernel gives the lock back when
      the process ends, however it ends.

    Raises:
      CheckpointError: another process holds it, it belongs to another config or to a run whose
        config is not on record, or the place cannot be written.
    """
    digest = config_lib.digest(config)
    parent = Path(root) / name
    path = Path(explicit) if explicit else find_unfinished(parent, digest)
    made = path is None
    with disk_errors(path or parent):
        if path is None:
            path = _new_directory(parent, run_name(config, datetime.datetime.now()))
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    try:
        found = stored_digest(path)
        if found not in (None, digest):
            raise CheckpointError(_other_config(path, config))
        if found is None:
            _check_new(path)
            _write_start(path, config, digest, argv)
        return Workdir(path, lock, resumed=found is not None, made=made)
    except BaseException:
        lock.close()
        raise


def _check_new(path: Path) -> None:
    """Refuses files of a run that nobody can tell the config of."""
    present = [n for n in ("checkpoints", "config.json", "summary.json") if (path / n).exists()]
    if present:
        raise CheckpointError(
            f"{str(path)!r} holds {' and '.join(present)}, but no readable provenance.json that "
            "says which run they are of; remove them or choose another --workdir."
        )


def _new_directory(parent: Path, name: str) -> Path:
    """Makes a directory that nobody else made, numbering runs of the same name."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = parent / (name if number == 1 else f"{name}_{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise CheckpointError(f"{parent} holds 1000 runs called {name}; remove some.")


def _lock(path: Path) -> IO[str]:
    """Takes the directory's lock or says who has it."""
    lock = open(path / ".lock", "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise CheckpointError(
            f"{str(path)!r} is in use by process {owner}. Wait for it, stop it, "
            "or start beside it with another --workdir."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _other_config(path: Path, config: config_lib.ConfigDict) -> str:
    """Words the refusal of a directory of another config, with the first differences."""
    try:
        old = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        old = {}
    new = json.loads(config_lib.to_json(config))
    before, after = (config_lib.result_keys(c) for c in (old, new))
    keys = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    shown = [f"{k} {before.get(k)!r} -> {after.get(k)!r}" for k in keys]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return (
        f"{str(path)!r} holds a run with another config ({'; '.join(shown[:3])}{more}). "
        "To resume it, give its config; to start anew, rename it or choose another --workdir."
    )


def _write_start(
    path: Path, config: config_lib.ConfigDict, digest: str, argv: Sequence[str]
) -> None:
    """Writes what made the run; `provenance.json` last, since it makes the run resumable."""
    config_lib_json = config_lib.to_json(config)
    atomic_write(path / "config.json", config_lib_json + "\n")
    atomic_write(path / "config_used.yaml", to_yaml(json.loads(config_lib_json)))
    now = datetime.datetime.now().isoformat(timespec="seconds")
    lines = [f"command: {' '.join(argv)}", f"execution_time: {now}"]
    lines += [f"{k}: {v}" for k, v in config_lib.flatten(config)]
    atomic_write(path / "command_args.txt", "\n".join(lines) + "\n")
    content = {"config_digest": digest, "argv": list(argv), "created": now, **provenance()}
    atomic_write(path / "provenance.json", json.dumps(content, indent=2) + "\n")


def to_yaml(tree: Mapping[str, Any], indent: int = 0) -> str:
    """Nested mappings of plain values as YAML; each value is in JSON form, which YAML reads."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines.append(f"{' ' * indent}{key}:\n{to_yaml(value, indent + 2)}")
        else:
            # JSON writes 1e-05, which YAML 1.1 reads as a string: it wants a dot.
            text = json.dumps(value)
            if isinstance(value, float) and "e" in text and "." not in text:
                text = text.replace("e", ".0e")
            lines.append(f"{' ' * indent}{key}: {text}\n")
    return "".join(lines)


def _version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def git_commit() -> str | None:
    """The commit of the source tree, with `+changes` if tracked files differ; None outside git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=5)
        head = run([*git, "rev-parse", "HEAD"])
        if head.returncode:
            return None
        changed = run([*git, "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        return head.stdout.strip() + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def provenance() -> dict[str, Any]:
    """Versions, commit and machine of this run (accelerators: see `jax.devices()`)."""
    return {
        "commit": git_commit(),
        "versions": {"python": platform.python_version()}
        | {p: v for p in _PACKAGES if (v := _version(p))},
        "hardware": {
            "platform": platform.platform(),
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        },
    }
