"""Sweeps: what is run, in which order, what happens to failures, and the script."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxcomp.config import digest, load_config, to_json
from jaxcomp.errors import ConfigError
from jaxcomp.jobs import sweep
from jaxcomp.jobs.children import Children

ROOT = Path(__file__).resolve().parent.parent
SWEEP = "configs/fpn_lambda_sweep.py"
# Stands for the main command: fails for rate 0.5 while there is a file "broken", else is done.
RUN = """
import json, pathlib, sys
folder, broken = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
if broken.exists() and "0.1" in folder.name:
    sys.exit("out of memory")
folder.mkdir(parents=True)
(folder / "summary.json").write_text(json.dumps({"bytes_per_frame": 10, "map50": 0.5}))
"""
# Stands for a long run: notes every signal, and saves for a while when it is told to end.
LONG = """
import pathlib, signal, sys, time
note, told = pathlib.Path(sys.argv[1]), []
def noted(signum, frame):
    told.append(signum)
    with note.open("a") as file:
        file.write(f"{signal.Signals(signum).name} ")
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), noted)
note.touch()
end = time.monotonic() + 60
while not told and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.5)
with note.open("a") as file:
    file.write("saved")
sys.exit(143)
"""
# Stands for the script, with LONG runs.
LONG_SWEEP = """
import runpy, sys
sys.path.insert(0, ".")
from jaxcomp.jobs import sweep
notes, long = sys.argv[1:3]
sweep.command = lambda run: [sys.executable, "-c", long, f"{notes}/{run.member}_{run.rate_weight}"]
sys.argv = ["launch/sweep.py", *sys.argv[3:]]
runpy.run_path("launch/sweep.py", run_name="__main__")
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A planned sweep of which every process is `RUN`."""
    monkeypatch.chdir(ROOT)
    config = load_config(f"{SWEEP}:smoke", [f"sweep.root={tmp_path / 'root'}"]).sweep

    def command(run):
        return [sys.executable, "-c", RUN, str(run.folder), str(tmp_path / "broken")]

    monkeypatch.setattr(sweep, "command", command)
    return sweep.plan(config)


def values(run):
    return dict(word.removeprefix("--config.").partition("=")[::2] for word in run.arguments)


def test_every_member_rate_and_level_is_a_run_of_its_own():
    runs = sweep.plan(load_config(SWEEP).sweep)
    assert len(runs) == len({run.folder for run in runs}) == (3 + 3 + 15) * 2 + 3 * 3
    level = next(r for r in runs if r.member == "level_task" and r.level == 3)
    assert "--config=configs/fpn_level.py:level=3" in level.arguments
    assert values(level)["training.task_weight"] == "1.0"
    assert values(level)["training.epochs"] == "2"


def test_a_chain_starts_from_the_codec_before():
    runs = [r for r in sweep.plan(load_config(SWEEP).sweep) if r.member == "joint"]
    weights = [run.rate_weight for run in runs]
    assert weights == sorted(weights) and runs[0].after is None
    assert "model.initial" not in values(runs[0])
    for before, run in itertools.pairwise(runs):
        assert values(run)["model.initial"] == str(before.folder / "codec.npz")
        assert int(values(run)["training.epochs"]) < int(values(runs[0])["training.epochs"])


def test_a_member_can_start_from_the_runs_of_another():
    runs = sweep.plan(load_config(SWEEP).sweep)
    of = {(r.member, r.level, i): r for r in runs for i in range(3) if r.rate_weight == _rate(r, i)}
    for level in range(5):
        for i in range(3):
            plain, task = of["level", level, i], of["level_task", level, i]
            assert values(task)["model.initial"] == str(plain.folder / "codec.npz")
            assert int(values(task)["training.epochs"]) < int(
                values(of["level", level, 0])["training.epochs"]
            )
            assert task.chain == plain.chain and runs.index(plain) < runs.index(task)


def test_followers_start_when_their_first_runs_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = [f"sweep.root={tmp_path / 'root'}", "sweep.members.random.rate_weights=(0.1,)"]
    config = load_config(f"{SWEEP}:smoke", [*overrides, "sweep.members.random.after=joint_task"])

    def command(run):
        return [sys.executable, "-c", RUN, str(run.folder), str(tmp_path / "broken")]

    monkeypatch.setattr(sweep, "command", command)
    runs = sweep.plan(config.sweep)
    assert [r.member for r in runs] == ["joint_task", "random"]
    (tmp_path / "broken").touch()
    lines = []
    assert {r.member for r in sweep.Sweep(runs, say=lines.append).start()} == {
        "joint_task",
        "random",
    }
    assert "random rate 0.1 waits for" in lines[-1]
    (tmp_path / "broken").unlink()
    assert sweep.Sweep(runs, jobs=2, say=lines.append).start() == [] and all(
        r.finished for r in runs
    )


def _rate(run, i):
    weights = load_config(SWEEP).sweep.members[run.member].rate_weights
    return sorted(weights)[i]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_share_the_chains_out(count):
    runs = sweep.plan(load_config(SWEEP).sweep)
    parts = [sweep.shard(runs, i, count) for i in range(count)]
    assert sorted(r.name for part in parts for r in part) == sorted(r.name for r in runs)
    chains = [{r.chain for r in part} for part in parts]
    assert sum(map(len, chains)) == len(set().union(*chains))
    with pytest.raises(ConfigError, match="index goes from"):
        sweep.shard(runs, count, count)


def test_finished_runs_are_skipped_and_failures_stop_their_chain_alone(runs, tmp_path):
    (tmp_path / "broken").touch()
    lines = []
    failed = sweep.Sweep(runs, jobs=2, say=lines.append).start()
    assert {r.name for r in failed} == {"random rate 0.1", "joint_task rate 0.1"}
    assert all("out of memory" in r.log.read_text() for r in failed)
    assert len(lines) == 1 and "random rate 0.01: 10 bytes a frame" in lines[0]
    table = Path(sweep.write_table(tmp_path / "root", runs))
    states = [row["state"] for row in csv.DictReader(table.read_text().splitlines())]
    assert sorted(states) == ["finished", "waiting", "waiting"]
    (tmp_path / "broken").unlink()
    first = next(r for r in runs if r.finished).folder / "summary.json"
    before = first.stat().st_mtime_ns
    assert sweep.Sweep(runs, say=lines.append).start() == []
    assert first.stat().st_mtime_ns == before and len(lines) == 4
    rows = json.loads((tmp_path / "root" / "sweep.json").read_text())
    assert [row["member"] for row in rows] == [r.member for r in runs]


def test_each_process_sees_its_own_device(runs, tmp_path, monkeypatch):
    say = "import os, sys; open(sys.argv[1], 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + ' ')"
    seen = tmp_path / "seen"
    monkeypatch.setattr(sweep, "command", lambda run: [sys.executable, "-c", say, str(seen)])
    sweep.Sweep(runs, jobs=2, devices=("5", "7"), say=lambda _: None).start()
    assert set(seen.read_text().split()) <= {"5", "7"}


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("sweep.members.random.rate_weights=()", "one or more different numbers"),
        ("sweep.members.random.rate_weights=(0.1,0.1)", "one or more different numbers"),
        ("sweep.members.random.epochs=(1,2)", "a number for each"),
        ("sweep.members.random.chained_epochs=2.0", "share of the epochs"),
        ("sweep.members.random.after=level", "give a member that starts from scratch: "),
        ("sweep.members.random.after=joint_task", "has 1 rate weights, random 2"),
    ],
)
def test_contradictions_are_named(override, match):
    with pytest.raises(ConfigError, match=match):
        load_config(f"{SWEEP}:smoke", [override])


def script(*arguments):
    return subprocess.run(
        [sys.executable, "launch/sweep.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_script_prints_its_commands():
    done = script(f"--config={SWEEP}:smoke", "--dry-run", "--only=random")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(x.startswith("python -m jaxcomp.main ") for x in lines)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((), "give --config"),
        (("--config=configs/fpn_level.py",), "not a sweep"),
        ((f"--config={SWEEP}", "--only=jont"), "did you mean 'joint'"),
        ((f"--config={SWEEP}", "--shard=a/b"), "give I/N"),
        ((f"--config={SWEEP}", "--jobs=-1"), "a number from 1"),
        ((f"--config={SWEEP}", "--devices=0,0"), "0 is there twice"),
    ],
)
def test_the_script_refuses_in_one_line(arguments, match):
    done = script(*arguments)
    assert done.returncode == 1 and match in done.stderr and done.stderr.count("\n") == 1


def test_the_main_command_points_to_the_script():
    done = subprocess.run(
        [sys.executable, "-m", "jaxcomp.main", f"--config={SWEEP}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "launch/sweep.py" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_on_once_and_the_runs_save_before_the_sweep_ends(tmp_path, signum):
    if signal.getsignal(signum) == signal.SIG_IGN:
        pytest.skip("the signal is ignored here, as by nohup, and so it is by what is started")
    words = (f"--config={SWEEP}:smoke", f"--config.sweep.root={tmp_path / 'root'}", "--jobs=2")
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_SWEEP, str(tmp_path), LONG, *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while len(notes := list(tmp_path.glob("*_0.*"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signum)  # as the terminal does, to all in its foreground
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, (out, err)
    assert err.startswith(signum.name) and err.count("\n") == 1
    assert [note.read_text() for note in notes] == ["SIGTERM saved"] * 2
    assert len(list(tmp_path.glob("*_0.*"))) == 2  # nothing further was started


def test_nothing_starts_once_all_were_told_to_stop(tmp_path):
    children = Children()
    assert children.stop() and not children.stop()
    assert children.start([sys.executable, "-c", f"open({str(tmp_path / 'x')!r}, 'w')"]) is None
    assert not children.running and not list(tmp_path.iterdir())


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before, hup = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Children().told():
            assert signal.getsignal(signal.SIGTERM) is not before
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, hup)


def test_another_thread_can_run_a_sweep(runs):
    failed = []
    thread = threading.Thread(target=lambda: failed.append(sweep.Sweep(runs, say=str).start()))
    thread.start()
    thread.join(60)
    assert failed == [[]]


def finish(runs):
    for run in runs:
        run.folder.mkdir(parents=True)
        content = {"config_digest": digest(run.config), "config": json.loads(to_json(run.config))}
        (run.folder / "summary.json").write_text(json.dumps(content))


def test_the_results_of_another_config_are_not_taken_for_finished(runs, tmp_path):
    finish(runs)
    assert all(run.finished for run in runs)
    overrides = [f"sweep.root={tmp_path / 'root'}", "sweep.overrides=('data.train_size=12',)"]
    others = sweep.plan(load_config(f"{SWEEP}:smoke", overrides).sweep)
    with pytest.raises(ConfigError, match=r"rate_0.1.*data\..*sweep\.root=FOLDER.*remove"):
        others[0].finished  # noqa: B018
    words = (f"--config={SWEEP}:smoke", *(f"--config.{x}" for x in overrides))
    done = script(*words)
    assert done.returncode == 1 and "another config" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_sweep_whose_folder_was_moved_is_finished_all_the_same(runs, tmp_path):
    finish(runs)
    (tmp_path / "root").rename(tmp_path / "moved")
    moved = sweep.plan(load_config(f"{SWEEP}:smoke", [f"sweep.root={tmp_path / 'moved'}"]).sweep)
    assert all(run.finished for run in moved)


def test_a_signal_during_the_report_ends_it(tmp_path, monkeypatch):
    note = tmp_path / "note"
    monkeypatch.setattr(sweep, "report_command", lambda _: [sys.executable, "-c", LONG, str(note)])

    def tell():
        while not note.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    with pytest.raises(sweep.SweepInterrupted) as told:
        sweep.report(None)
    assert told.value.signum == signal.SIGTERM and note.read_text() == "SIGTERM saved"
