"""The launchers for several processes: what they would run, what they refuse, and one real run."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ("--", "--config=configs/fpn_level.py:kitti", "--config.seed=3")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(script, *arguments, timeout=60, **env):
    return subprocess.run(
        [str(ROOT / "launch" / script), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHON": "python"} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def dry(script, *arguments):
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_local_processes_share_a_coordinator_and_the_devices():
    lines = dry("local_multiprocess.sh", "--processes=3", "--devices", "2", "--dry-run", *TRAIN)
    words = [shlex.split(line) for line in lines.splitlines()]
    assert len(words) == 3
    assert {
        w for line in words for w in line if w.startswith("--coordinator=127.0.0.1:")
    }.__len__() == 1
    assert [line[-1] for line in words] == [f"--process_id={i}" for i in range(3)]
    assert all("--processes=3" in line and "--config.seed=3" in line for line in words)
    assert all("host_platform_device_count=2" in " ".join(line) for line in words)


def test_each_local_process_has_its_gpu():
    lines = dry("local_multiprocess.sh", "--gpus=0,3", "--dry-run", *TRAIN).splitlines()
    assert [shlex.split(x)[1] for x in lines] == [f"CUDA_VISIBLE_DEVICES={i}" for i in (0, 3)]


def test_the_slice_is_asked_for_used_and_given_back():
    assert "--spot" in dry("tpu_pod.sh", "create", "--spot", "--dry-run")
    assert dry("tpu_pod.sh", "copy", "--nfs", "10.0.0.2:/s", "--dry-run").count("worker=all") == 3
    start = dry("tpu_pod.sh", "run", "--workdir", "/mnt/shared/r", "--dry-run", *TRAIN)
    assert "--coordinator=auto" in start and "--workdir=/mnt/shared/r" in start
    resume = dry("tpu_pod.sh", "resume", "--workdir", "/mnt/shared/r", "--dry-run", *TRAIN)
    assert resume == start
    assert "--worker=0" in dry("tpu_pod.sh", "logs", "--dry-run")
    assert "--force" in dry("tpu_pod.sh", "delete", "--dry-run")


def test_the_batch_script_has_a_process_for_each_gpu(tmp_path):
    script = dry(
        "slurm.sh", "--nodes=2", "--gpus=4", f"--workdir={tmp_path}/r", "--dry-run", *TRAIN
    )
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue"):
        assert f"#SBATCH {line}" in script
    assert "--coordinator=auto" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    alone = dry("slurm.sh", "--gpus=0", f"--workdir={tmp_path}/r", "--dry-run", *TRAIN)
    assert "--coordinator" not in alone and "gpus-per-node" not in alone


def test_the_manifest_is_yaml_with_the_command_word_by_word():
    text = dry(
        *("gke.sh", "--image=a/b:1", "--volume=v", "--workdir=/shared/r", "--dry-run", *TRAIN),
        '--config.model.name="odd name"',
    )
    command = next(line for line in text.splitlines() if "command:" in line).partition(":")[2]
    words = json.loads(command)
    assert words[:3] == ["python", "-m", "jaxcomp.main"] and words[-1] == "--coordinator=auto"
    assert '--config.model.name="odd name"' in words
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(text)
    assert service["kind"] == "Service" and job["spec"]["completions"] == 4


def test_xpk_gets_the_same_command():
    words = shlex.split(
        dry("gke.sh", "--image=i", "--workdir=/shared/r", "--xpk=c", "--dry-run", *TRAIN)
    )
    assert words[:3] == ["xpk", "workload", "create"]
    assert "--config=configs/fpn_level.py:kitti" in shlex.split(words[-1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("local_multiprocess.sh",), "behind --"),
        (("local_multiprocess.sh", "--processes=0", *TRAIN), "from 1"),
        (("local_multiprocess.sh", "--config=x"), "stand behind --"),
        (("tpu_pod.sh",), "give a step"),
        (("tpu_pod.sh", "fly", "--dry-run"), "unknown step fly"),
        (("tpu_pod.sh", "run", "--dry-run", *TRAIN), "--workdir"),
        (("tpu_pod.sh", "copy", "--dry-run"), "--nfs"),
        (("slurm.sh", *TRAIN), "--workdir"),
        (("slurm.sh", "--gpus=x", *TRAIN), "not a number"),
        (("gke.sh", *TRAIN), "--image"),
        (("gke.sh", "--image=i", *TRAIN), "all hosts must see it"),
        (
            ("gke.sh", "--image=i", "--workdir=gs://b", *TRAIN),
            "gs://b: give a folder below /shared",
        ),
        (("gke.sh", "--image=i", "--workdir=/shared", *TRAIN), "/shared: give a folder below"),
        (("gke.sh", "--image=i", "--workdir=/shared/../r", *TRAIN), "below /shared"),
        (("gke.sh", "--image=i", "--workdir=/mnt/shared/r", *TRAIN), "below /shared"),
        (
            ("tpu_pod.sh", "run", "--workdir=/r", "--dry-run", *TRAIN),
            "/r: give a folder below /mnt",
        ),
        (("tpu_pod.sh", "run", "--workdir=/shared/r", "--dry-run", *TRAIN), "below /mnt/shared"),
    ],
)
def test_bad_input_is_one_line(arguments, match):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and match in done.stderr


@pytest.mark.parametrize("script", ["local_multiprocess.sh", "tpu_pod.sh", "slurm.sh", "gke.sh"])
def test_help_teaches(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "example" in done.stdout and "--dry-run" in done.stdout


# Stands for the Python of a member: notes signals in FOLDER/I, then ends with what ENDS says.
MEMBER = """#!{python}
import os, pathlib, signal, sys, time
index = int(sys.argv[-1].partition("=")[2])
note, told = pathlib.Path(os.environ["FOLDER"]) / str(index), []
def noted(signum, frame):
    told.append(signum)
    with note.open("a") as file:
        file.write(signal.Signals(signum).name + " ")
signal.signal(signal.SIGINT, noted)
signal.signal(signal.SIGTERM, noted)
signal.signal(signal.SIGHUP, noted)
note.touch()
ends = os.environ["ENDS"].split(",")[index]
if ends == "told":
    end = time.monotonic() + 60
    while not told and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3 + index)
    note.open("a").write("saved")
    sys.exit(143)
sys.exit(int(ends))
"""


@pytest.fixture
def member(tmp_path):
    path = tmp_path / "python"
    path.write_text(MEMBER.replace("{python}", sys.executable))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("ends", ["told,told", "3,told"])  # the latter with its watchdog
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_each_process_once_and_all_save(tmp_path, member, signum, ends):
    if signal.getsignal(signum) == signal.SIG_IGN:
        pytest.skip("the signal is ignored here, as by nohup, and so it is by what is started")
    process = subprocess.Popen(
        [ROOT / "launch/local_multiprocess.sh", "--port=1", f"--logs={tmp_path}/logs", *TRAIN],
        env=os.environ | {"PYTHON": member, "FOLDER": str(tmp_path), "ENDS": ends},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 30
    while not all((tmp_path / i).exists() for i in "01") and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    for _ in range(2):  # an impatient user
        os.killpg(process.pid, signum)
        time.sleep(0.1)
    began = time.monotonic()
    _, err = process.communicate(timeout=20)  # a watchdog left behind would keep the pipe open
    assert time.monotonic() - began < 15
    assert process.returncode == (143 if ends == "told,told" else 3) and err == ""
    notes = [(tmp_path / i).read_text() for i in "01"]
    assert notes == ["SIGTERM saved" if end == "told" else "" for end in ends.split(",")]


@pytest.mark.parametrize(("ends", "status"), [("0,0,0", 0), ("0,3,0", 3), ("0,0,4", 4)])
def test_processes_that_end_at_once_all_give_their_status(tmp_path, member, ends, status):
    done = run(
        *("local_multiprocess.sh", "--processes=3", "--port=1", f"--logs={tmp_path}/logs", *TRAIN),
        PYTHON=member, FOLDER=str(tmp_path), ENDS=ends, timeout=20,
    )  # fmt: skip
    assert done.returncode == status and done.stderr == ""


@pytest.mark.multiprocess
def test_processes_that_fail_end_together(tmp_path):
    done = run(
        *("local_multiprocess.sh", "--processes=2", "--devices=1", f"--logs={tmp_path}", "--"),
        *("--config=configs/fpn_level.py", "--config.training.batch_size=7"),
        *(f"--workdir={tmp_path / 'run'}", "--config.data.train_size=14"),
        *("--config.data.val_size=1", "--config.data.height=32", "--config.data.width=32"),
        timeout=400,
        PYTHON=sys.executable,
        TFDS_DATA_DIR=str(tmp_path / "data"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for i in (0, 1):
        log = (tmp_path / f"process_{i}.log").read_text()
        assert "batch_size=7 rows cannot be shared out among 2 processes" in log
