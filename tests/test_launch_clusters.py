"""The launchers for several processes: what they would run, what they refuse, and one real run."""

import json
import os
import shlex
import shutil
import subprocess
import sys
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
        (("gke.sh", "--image=i", "--workdir=gs://b", *TRAIN), "all hosts must see it"),
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
