"""Recovery drills on the main job, end to end: kills, a damaged checkpoint, a full disk, and more.

    python -m tests.recovery_drill                # 20 kills at random moments, then the others
    python -m tests.recovery_drill --kills 3 --seed 7

Each drill trains a small form of the main job in processes of its own, does it harm, starts the
same command again, and compares what is left with a run that nobody disturbed: parameters bit by
bit, the record of the training (data position, optimiser steps, best epoch), the measured bytes,
and the log, which must hold each step once and in order. It ends with status 1 if a drill failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZES = (
    *("data.train_size=48", "data.val_size=6", "data.height=64", "data.width=96"),
    *("model.n_hidden=8", "model.n_channels=8", "training.batch_size=4", "training.epochs=8"),
    *("checkpoint.every_steps=5", "log.every_steps=2", "log.progress=False"),
)
SAME = ("params_digest", "steps", "epochs", "best_epoch", "best_validation_loss", "bytes_per_frame")
SAME += ("actual_bits", "estimated_bits", "map50", "mse", "skipped_steps")


def command(run: Path, *more: str) -> list[str]:
    """The main job in its small form."""
    words = [sys.executable, "-m", "jaxcomp.main", "--config=configs/fpn_level.py"]
    return [*words, f"--workdir={run}", *(f"--config.{size}" for size in SIZES), *more]


def start(run: Path, *more: str, **env: str) -> subprocess.Popen[str]:
    """Starts it; its output is read at the end."""
    return subprocess.Popen(
        command(run, *more),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its workers are killed with it
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for the end; returns the output."""
    text, _ = process.communicate()
    assert process.returncode == 0, f"status {process.returncode}:\n{text[-2000:]}"
    return text


def records(run: Path) -> list[tuple[str, int]]:
    """(kind, step) of every line of the log."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(line["kind"], line["step"]) for line in map(json.loads, lines)]


def training_record(run: Path) -> dict:
    """What the last checkpoint says of the training, without times."""
    folder = max(
        (run / "checkpoints").iterdir(), key=lambda p: int(p.name) if p.name.isdigit() else -1
    )
    record = json.loads((folder / "extra" / "metadata").read_text())
    return {key: value for key, value in record.items() if key != "seconds"}


def differences(run: Path, expected: Path) -> list[str]:
    """In words, what differs from the undisturbed run."""
    ours, theirs = (json.loads((d / "summary.json").read_text()) for d in (run, expected))
    words = [
        f"{k}: {ours.get(k)!r}, not {theirs.get(k)!r}" for k in SAME if ours.get(k) != theirs.get(k)
    ]
    if training_record(run) != training_record(expected):
        words.append("the record of the training differs")
    if records(run) != records(expected):
        words.append("the log does not hold each step once and in order")
    left = [
        p.name
        for p in run.rglob("*")
        if p.name.endswith(".tmp") or "orbax-checkpoint-tmp" in p.name
    ]
    return words + [f"left behind: {name}" for name in left]


def killed(run: Path, seconds: float) -> str:
    """Kills the job, workers included, after some seconds; says how far it was."""
    process = start(run)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    steps = [step for _, step in records(run)] if (run / "metrics.jsonl").exists() else []
    return f"step {max(steps)}" if steps else "before the first step"


def drill_kill(folder: Path, expected: Path, seconds: float) -> list[str]:
    """Kills the job once and lets it go on."""
    run = folder / "run"
    where = killed(run, seconds)
    print(f"  killed after {seconds:5.1f} s, {where}", end=": ", flush=True)
    finish(start(run))
    return differences(run, expected)


def drill_truncated(folder: Path, expected: Path, seconds: float) -> list[str]:
    """Cuts files of the newest checkpoint of a killed run: a byte off its index, half its arrays.

    A byte off the end of the arrays alone proves nothing: the store leaves unused bytes there.
    """
    killed_run = folder / "killed"
    process, steps = start(killed_run), []
    while len(steps) < 2:  # one to damage, one to fall back to
        assert process.poll() is None, "the job ended before it had two checkpoints"
        time.sleep(0.02)
        names = [p.name for p in (killed_run / "checkpoints").glob("[0-9]*")]
        steps = sorted(int(name) for name in names if name.isdigit())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    words = []
    for pattern, keep in (("state/manifest.ocdbt", -1), ("state/d/*", -1), ("state/*/d/*", None)):
        run = folder / "run"
        shutil.copytree(killed_run, run)
        files = list((run / "checkpoints" / str(steps[-1])).glob(pattern))
        victim = max(files, key=lambda p: p.stat().st_size)
        content = victim.read_bytes()
        victim.write_bytes(content[: len(content) // 2 if keep is None else keep])
        text = finish(start(run))
        if f"Checkpoint {steps[-1]} is damaged; going back to step" not in text:
            words.append(f"nothing was told of the damage to {pattern}")
        words += differences(run, expected)
        shutil.rmtree(run)
    return words


def drill_two_runs(folder: Path, expected: Path, seconds: float) -> list[str]:
    """Starts the job twice on one directory: the second is refused, the first undisturbed."""
    run = folder / "run"
    first = start(run)
    while not (run / "config.json").exists():
        time.sleep(0.1)
    second = start(run)
    text, _ = second.communicate()
    finish(first)
    words = [] if second.returncode == 1 and "is in use by process" in text else [text[-500:]]
    return differences(run, expected) + words


def drill_signal(folder: Path, expected: Path, seconds: float) -> list[str]:
    """SIGTERM: the job saves, ends, and goes on."""
    run = folder / "run"
    process = start(run)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
    process.communicate()
    finish(start(run))
    return differences(run, expected)


def drill_full_disk(folder: Path, expected: Path, seconds: float) -> list[str]:
    """A disk of 700 kB fills up; after room is made, the job goes on. Needs the right to mount."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return ["skipped: no right to mount a small file system"]
    try:
        process = start(disk / "run")
        text, _ = process.communicate()
        words = [] if process.returncode == 1 and "disk is full" in text else [text[-500:]]
        room = ["mount", "-o", "remount,size=100m", str(disk)]
        subprocess.run(room, check=True, capture_output=True)
        finish(start(disk / "run"))
        return words + differences(disk / "run", expected)
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)


def drill_oddities(folder: Path, expected: Path, seconds: float) -> list[str]:
    """Another time zone and locale, files from the future, a folder with odd letters."""
    run = folder / "läuft — 跑 (1)"
    where = killed(run, seconds)
    for path in run.rglob("*"):
        os.utime(path, (4e9, 4e9))
    env = {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LANG": "C", "PYTHONUTF8": "1"}
    print(f"  ({where})", end=" ")
    finish(start(run, **env))
    return differences(run, expected)


def report(
    name: str, drill: Callable[[Path, Path, float], list[str]], expected: Path, seconds: float
) -> bool:
    """Runs a drill in a folder of its own; whether it went well."""
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    try:
        words = drill(folder, expected, seconds)
    except AssertionError as error:
        words = [str(error)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    skipped = any(word.startswith("skipped") for word in words)
    print(f"{name}: {'; '.join(words) or 'good'}", flush=True)
    return not words or skipped


def main() -> int:
    """Runs all drills; returns the exit status."""
    arguments = argparse.ArgumentParser(
        "python -m tests.recovery_drill", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only-kills", action="store_true", help="leave out the other drills")
    args = arguments.parse_args()
    base = Path(tempfile.mkdtemp(prefix="drill-expected-"))
    expected = base / "run"
    try:
        finish(start(expected))  # fills the caches: data and compiled programs
        shutil.rmtree(expected)
        began = time.time()
        finish(start(expected))
        seconds = time.time() - began
        print(f"undisturbed: {seconds:.1f} s, {max(s for _, s in records(expected))} steps")
        rng = random.Random(args.seed)
        moments = [rng.uniform(0.1, 1.0) * seconds for _ in range(args.kills)]
        good = [report("kill -9", drill_kill, expected, moment) for moment in moments]
        print(f"{sum(good)}/{len(good)} kills recovered bit by bit")
        if not args.only_kills:
            for drill in (
                drill_signal,
                drill_truncated,
                drill_two_runs,
                drill_full_disk,
                drill_oddities,
            ):
                good.append(report(drill.__name__, drill, expected, 0.7 * seconds))
        return 0 if all(good) else 1
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
