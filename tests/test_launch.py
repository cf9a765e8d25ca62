"""The launchers check their input and call the main command as the guide says."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ONE = ROOT / "launch" / "run_train_factorized_prior_specific_level_fpn.sh"
ALL = ROOT / "launch" / "train_all_levels.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(script, *args, cwd=ROOT, **env):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CUDA_VISIBLE_DEVICES")}
    return subprocess.run(
        [str(script), *args],
        cwd=cwd,
        env=clean | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry(*args, **kwargs):
    done = run(ONE, *args, "--dry-run", **kwargs)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout), done.stderr


@pytest.mark.parametrize("level", range(5))
def test_level_becomes_a_config_argument(level):
    words, stderr = dry("--level", str(level))
    config = f"--config=configs/fpn_level.py:level={level}"
    assert words == ["python", "-m", "jaxcomp.main", config]
    assert stderr == ""


def test_options_become_overrides(tmp_path):
    config, weights = tmp_path / "my config.py", tmp_path / "detector.npz"
    config.touch(), weights.touch()
    done = run(
        *(ONE, "--dry-run", "--level=1", "--config", str(config), "--lambda", "0.0005"),
        *("--detection_checkpoint", str(weights), "--device", "2"),
        *("--", "--config.training.epochs=5", "a b"),
        PYTHON="python3",
    )
    assert done.stderr == ""
    assert shlex.split(done.stdout) == [
        "CUDA_VISIBLE_DEVICES=2",
        *("python3", "-m", "jaxcomp.main", f"--config={config}:level=1"),
        *("--config.training.rate_weight=0.0005", f"--config.detector.path={weights}"),
        *("--config.training.epochs=5", "a b"),
    ]


def test_config_arguments_are_kept():
    words, _ = dry("--level", "3", "--config", "configs/fpn_level.py:kitti")
    assert words[-1] == "--config=configs/fpn_level.py:kitti,level=3"


def test_paths_are_those_of_the_caller(tmp_path):
    (tmp_path / "mine.py").touch()
    words, _ = dry("--level", "0", "--config", "mine.py", cwd=tmp_path)
    assert words[-1] == f"--config={tmp_path / 'mine.py'}:level=0"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "--level is missing"),
        (["--level"], "needs a value"),
        (["--level", "5"], "'5'"),
        (["--level", "-1"], "'-1'"),
        (["--level", "02"], "'02'"),
        (["--level", "p2"], "'p2'"),
        (["--level", "1", "--depth", "3"], "unknown option '--depth'"),
        (["--level", "1", "3"], "unknown option '3'"),
        (["--level", "1", "--config", "none.py"], "none.py"),
        (["--level", "1", "--device", "gpu"], "'gpu'"),
    ],
)
def test_bad_input_is_one_error_and_status_1(args, word):
    done = run(ONE, *args, "--dry-run")
    assert done.returncode == 1
    assert word in done.stderr.splitlines()[0] and done.stdout == ""


def test_missing_detector_is_a_warning():
    words, stderr = dry("--level", "1", "--detection_checkpoint", "none.npz")
    assert "warning" in stderr and "none.npz" in stderr
    assert words[-1] == "--config.detector.path=none.npz"


def test_a_pattern_that_matches_is_no_warning(tmp_path):
    (tmp_path / "best model 3.npz").touch()
    _, stderr = dry("--level", "1", "--detection_checkpoint", f"{tmp_path}/best model *.npz")
    assert stderr == ""
    _, stderr = dry("--level", "1", "--detection_checkpoint", f"{tmp_path}/last*.npz")
    assert "warning" in stderr


@pytest.mark.parametrize("script", [ONE, ALL])
def test_help(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and done.stderr == ""


def test_all_levels_in_turn():
    done = run(ALL, "--dry-run", "--lambda", "0.001", "--", "--config.training.epochs=1")
    assert done.returncode == 0
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[3][-1] for line in lines] == list("01234")
    assert all(line[-1] == "--config.training.epochs=1" for line in lines)


@pytest.mark.parametrize("args", [["--level", "2"], ["--depth", "2"], ["--config", "none.py"]])
def test_all_levels_refuses_bad_input_before_starting(args):
    done = run(ALL, *args, "--yes")
    assert done.returncode == 1 and done.stdout == "" and args[0][2:] in done.stderr


@pytest.fixture
def fake(tmp_path):
    """A copy of the launchers with an interpreter that fails for level 3."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "fpn_level.py").touch()
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "  *level=3*) exit 1 ;;\n"
        '  *level=0*) [ -z "$FIRST_STATUS" ] || exit "$FIRST_STATUS" ;;\n'
        '  *jaxcomp.report*) echo "table: $*"; exit 0 ;;\n'
        "esac\n"
        "level=${3##*level=}\n"
        'run="checkpoints/fpn_specific_level_compression_level_$level/run_1"\n'
        'mkdir -p "$run"\n'
        'echo "Best Validation Loss: 0.$level" > "$run/training_summary.txt"\n'
    )
    python.chmod(0o755)
    return tmp_path


def test_a_failed_level_does_not_stop_the_others(fake):
    done = run(fake / "launch" / ALL.name, PYTHON=str(fake / "python"))
    assert done.returncode == 1
    assert "done: 0 1 2 4\nfailed: 3" in done.stdout
    assert "best loss 0.2" in done.stdout
    table = next(line for line in done.stdout.splitlines() if line.startswith("table:"))
    assert "level_2" in table and "level_3" not in table


@pytest.mark.parametrize("status", ["130", "143"])
def test_an_interrupted_level_stops_the_series(fake, status):
    done = run(fake / "launch" / ALL.name, PYTHON=str(fake / "python"), FIRST_STATUS=status)
    assert done.returncode == int(status) and "=== level 1" not in done.stdout


def test_a_level_killed_for_its_memory_does_not_stop_the_others(fake):
    done = run(fake / "launch" / ALL.name, PYTHON=str(fake / "python"), FIRST_STATUS="137")
    assert done.returncode == 1 and "done: 1 2 4\nfailed: 0 3" in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("script", [ONE, ALL])
def test_shellcheck(script):
    done = subprocess.run(["shellcheck", "-x", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
