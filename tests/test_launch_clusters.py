"""The launchers for several processes: what they would run, what they refuse, and one real run."""

import json
import math
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


def stub(folder, name, text):
    """A command of that name, in bash unless its text says otherwise."""
    path = folder / name
    path.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path):
    """The launchers in a repository; `bin` (on PATH) and `home` lie beside it."""
    for name in ("bin", "home", "repository"):
        (tmp_path / name).mkdir()
    shutil.copytree(ROOT / "launch", tmp_path / "repository" / "launch")
    return tmp_path


def run_in(checkout, script, *arguments, cwd=None, timeout=60, **env):
    home = checkout / "home"
    return subprocess.run(
        [checkout / "repository" / "launch" / script, *arguments],
        cwd=cwd or home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        env=os.environ | {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "HOME": str(home)}
        | {"NOTES": str(checkout / "notes"), "PYTHON": "python"} | env,
    )  # fmt: skip


def notes(checkout):
    return (checkout / "notes").read_text().splitlines()


# Stands for gcloud: what ssh is to run is run in the home folder, what scp copies lands there.
GCLOUD = """
case "$4" in
  scp) cp -- "$5" "$HOME" ;;
  ssh) cd && exec bash -c "${@: -1}" ;;
esac"""


@pytest.fixture
def pod(checkout):
    stub(checkout / "bin", "gcloud", GCLOUD)
    return checkout


def start_on(pod, python):
    (pod / "home/jaxcomp/venv/bin").mkdir(parents=True)
    stub(pod / "home/jaxcomp/venv/bin", "python3", python)
    began = time.monotonic()
    done = run_in(pod, "tpu_pod.sh", "run", "--workdir=/mnt/shared/r", *TRAIN, "a b")
    return done, time.monotonic() - began


def test_ssh_returns_while_the_slice_trains(pod):
    # `run` reads to the end of a pipe, as ssh waits for all that hold its streams.
    done, seconds = start_on(
        pod,
        '[[ $1 != -c ]] || exit 0\nprintf "%s\\n" $$ "$@" >"$NOTES"\necho step 1\nexec sleep 40',
    )
    pid, *words = notes(pod)
    os.kill(int(pid), signal.SIGTERM)
    assert done.returncode == 0, done.stderr
    assert seconds < 20 and "step 1" in done.stdout
    assert words[:2] == ["-m", "jaxcomp.main"] and "a b" in words


def test_a_training_that_ends_at_once_is_an_error(pod):
    done, _ = start_on(pod, "[[ $1 != -c ]] || exit 0\necho no such config >&2; exit 3")
    assert done.returncode == 3 and "no such config" in done.stdout


def test_an_old_python_on_the_slice_starts_nothing(pod):
    done, _ = start_on(pod, 'echo "$*" >>"$NOTES"; exit 1')
    assert done.returncode == 1 and "copy comes first" in done.stderr
    assert len(notes(pod)) == 1  # the question for its version


@pytest.fixture
def host(pod):
    """A slice with an image of Python 3.10, where mounting twice fails."""
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        identity = ("-c", "user.name=me", "-c", "user.email=me@localhost")
        subprocess.run(["git", *identity, *words], cwd=pod / "repository", check=True)
    home, bin_ = pod / "home", pod / "bin"
    stub(bin_, "sudo", '[[ $1 != mount ]] || { echo "$*" >>"$NOTES"; mkdir "$HOME/mounted"; }')
    stub(bin_, "mountpoint", '[[ -d "$HOME/mounted" ]]')
    stub(home, "new", '[[ $1 == -c ]] && exec "$REAL" "$@"; echo "new $*" >>"$NOTES"')
    stub(
        bin_,
        "python3",
        """
case "$*" in
  -c*) exec "$REAL" -c "import sys; sys.version_info = (3, 10, 12); ${2}" ;;
  "-m pip"*) exit "${NO_NETWORK:-0}" ;;
  "-m uv venv"*)
    echo "uv $*" >>"$NOTES"
    mkdir -p venv/bin && cp ~/new venv/bin/python3
    printf '#!/bin/sh\necho "pip $*" >>"$NOTES"\n' >venv/bin/pip; chmod +x venv/bin/pip ;;
  *) exit 9 ;;
esac""",
    )
    return pod


def copy_to(host, *arguments, **env):
    words = ("copy", "--nfs=10.0.0.2:/s", *arguments)
    return run_in(host, "tpu_pod.sh", *words, REAL=sys.executable, **env)


def test_a_copy_can_be_repeated_and_finds_a_new_python(host):
    for _ in range(2):
        done = copy_to(host)
        assert done.returncode == 0, done.stderr
    assert (host / "home/jaxcomp/launch/tpu_pod.sh").exists()
    lines = notes(host)
    assert [x for x in lines if x.startswith("mount")] == ["mount -t nfs 10.0.0.2:/s /mnt/shared"]
    assert len([x for x in lines if x.startswith("uv") and ">=3.11" in x]) == 1
    assert [x for x in lines if x.startswith("pip")] == ["pip install -q -e . jax[tpu]"] * 2


def test_a_slice_without_a_new_python_installs_nothing(host):
    done = copy_to(host, NO_NETWORK="1")
    assert done.returncode == 1 and "no Python 3.11 or newer" in done.stderr
    assert not any(line.startswith("pip") for line in notes(host))


def test_what_is_not_committed_is_not_left_behind_in_silence(host):
    (host / "repository/mine.py").touch()
    done = copy_to(host)
    assert done.returncode == 1 and "mine.py" in done.stderr and "--allow-dirty" in done.stderr
    assert not (host / "home/jaxcomp").exists()
    done = copy_to(host, "--allow-dirty")
    assert done.returncode == 0 and "warning: uncommitted" in done.stderr
    assert (host / "home/jaxcomp/launch").exists()
    assert not (host / "home/jaxcomp/mine.py").exists()


# Stands for sbatch: runs the script at once, once for each index of an array.
SBATCH = """
echo "sbatch $*" >>"$NOTES"
script=$(cat); grep '#SBATCH' <<<"$script" >>"$NOTES"
export SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7
indices=$(sed -n 's/#SBATCH --array=0-//p' <<<"$script")
for SLURM_ARRAY_TASK_ID in $(seq 0 "${indices:-0}"); do
  export SLURM_ARRAY_TASK_ID; bash <<<"$script" || true
done
echo "7;cluster" """


@pytest.fixture
def cluster(checkout):
    stub(checkout / "bin", "sbatch", SBATCH)
    stub(checkout / "bin", "srun", 'echo "srun $*" >>"$NOTES"')
    stub(checkout / "bin", "python", 'printf "[%s]" "$@" >>"$NOTES"; echo >>"$NOTES"')
    return checkout


def test_a_step_gets_the_cores_of_its_processes(cluster):
    done = run_in(cluster, "slurm.sh", "--cpus=6", "--workdir=/r", *TRAIN)
    assert done.returncode == 0 and done.stdout == "job 7\n", done.stderr
    (step,) = (x for x in notes(cluster) if x.startswith("srun"))
    assert "--cpus-per-task=6" in step.split()


def test_a_relative_folder_is_one_folder(cluster):
    here = cluster / "home"
    done = run_in(cluster, "slurm.sh", "--workdir=runs/r", *TRAIN, cwd=here)
    assert done.returncode == 0, done.stderr
    assert (here / "runs").is_dir() and not (cluster / "repository/runs").exists()
    lines = notes(cluster)
    assert f"#SBATCH --output={here}/runs/r.%j.out" in lines
    assert any(line.endswith(f" --workdir={here}/runs/r") for line in lines)


def test_a_sweep_is_an_array_and_a_report_after_it(cluster):
    sweep = ("--array=2", "--gpus=2", "--workdir=/s", "--", "--config=c.py", "--config.x=a b")
    done = run_in(cluster, "slurm.sh", *sweep, CUDA_VISIBLE_DEVICES="4,5")
    assert done.returncode == 0, done.stderr
    common = "[launch/sweep.py][--config=c.py][--config.x=a b][--config.sweep.root=/s]"
    lines = notes(cluster)
    assert [line for line in lines if line.startswith("[")] == [
        *(f"{common}[--no-report][--shard={i}/2][--devices=4,5]" for i in (0, 1)),
        f"{common}[--report-only]",
    ]
    asked = [line for line in lines if line.startswith("sbatch")]
    assert asked == ["sbatch --parsable", "sbatch --parsable --dependency=afterany:7"]
    assert "#SBATCH --array=0-1" in lines and "#SBATCH --gpus-per-node=2" in lines


def test_a_part_of_an_array_is_queued_again_alone(cluster):
    preempted = """
[[ $* != *--report-only ]] || exit 0
trap 'echo saved >>"$NOTES"; exit 143' TERM
sleep 0.5; kill -TERM $PPID
for ((i = 0; i < 100; i++)); do sleep 0.1; done"""
    stub(cluster / "bin", "python", preempted)
    stub(cluster / "bin", "scontrol", 'echo "scontrol $*" >>"$NOTES"')
    done = run_in(cluster, "slurm.sh", "--array=2", "--workdir=/s", "--", "--config=c.py")
    assert done.returncode == 0, done.stderr
    told = [line for line in notes(cluster) if line.startswith(("scontrol", "saved"))]
    assert told == ["saved", "scontrol requeue 7_0", "saved", "scontrol requeue 7_1"]


# Stands for launch/sweep.py on a host: notes its words, then does what the host's file says.
SWEEP = """#!{python}
import os, pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
words = sys.argv[1:]
home = pathlib.Path(os.environ["NOTES"]).parent
name = "report" if "--report-only" in words else words[-1].partition("=")[2][0]
(home / f"words_{name}").write_text("\\n".join([os.getcwd(), *words]))
print("hello from", name, flush=True)
does = os.environ.get("DOES_" + name, "0")
end = time.monotonic() + 60
while does == "told" and not told and time.monotonic() < end:
    time.sleep(0.02)
if does == "told":
    time.sleep(0.5)
    print("saved", name, flush=True)
    (home / f"saved_{name}").touch()
    sys.exit(143)
sys.exit(int(does))
"""


@pytest.fixture
def hosts(checkout):
    """Hosts that are this machine: the stub of ssh notes the name and runs the line."""
    stub(checkout / "repository/launch", "sweep.py", SWEEP.replace("{python}", sys.executable))
    stub(
        checkout / "bin",
        "rsh",
        'echo "$1 $2" >>"$NOTES"; [[ $2 != down ]] || exit 255; bash -c "$3"',
    )
    return checkout


SWEEP_WORDS = ("--", "--config=c.py", "--config.x=it's a b")
HOSTS = ("--hosts=a,me@b", "--rsh=rsh -q")


def test_a_sweep_goes_to_all_hosts_and_ends_as_one_report(hosts):
    done = run_in(
        hosts, "sweep_hosts.sh", *HOSTS, f"--logs={hosts}/logs", *SWEEP_WORDS, PYTHON=sys.executable
    )
    assert done.returncode == 0 and done.stderr == ""
    folder = str(hosts / "repository")
    common = [folder, "--config=c.py", "--config.x=it's a b"]
    for name, own in (
        ("0", ["--no-report", "--shard=0/2"]),
        ("1", ["--no-report", "--shard=1/2"]),
        ("report", ["--report-only"]),
    ):
        assert (hosts / f"words_{name}").read_text().splitlines() == common + own
    lines = notes(hosts)
    assert sorted(lines[:2]) == ["-q a", "-q me@b"] and lines[2:] == ["-q a"]
    assert "[me@b] hello from 1" in done.stdout
    assert (hosts / "logs/a.log").read_text() == "hello from 0\nhello from report\n"


def test_the_host_that_failed_is_named_and_the_rest_is_reported(hosts):
    words = ("--hosts=a,b,down", "--rsh=rsh -q", *SWEEP_WORDS)
    done = run_in(hosts, "sweep_hosts.sh", *words, PYTHON=sys.executable, DOES_1="3")
    assert done.returncode == 1
    failed = [line.partition(":")[2].partition(":")[0] for line in done.stderr.splitlines()]
    assert failed == [" b, with status 3", " down, with status 255"]
    assert (hosts / "words_report").exists()
    words = (*HOSTS, *SWEEP_WORDS)
    done = run_in(hosts, "sweep_hosts.sh", *words, PYTHON=sys.executable, DOES_report="4")
    assert done.returncode == 1 and "failed: a, with status 4" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_lets_all_hosts_save(hosts, signum):
    if signal.getsignal(signum) == signal.SIG_IGN:
        pytest.skip("the signal is ignored here, as by nohup, and so it is by what is started")
    process = subprocess.Popen(
        [hosts / "repository/launch/sweep_hosts.sh", *HOSTS, *SWEEP_WORDS],
        env=os.environ | {"PATH": f"{hosts / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable}
        | {"NOTES": str(hosts / "notes"), "DOES_0": "told", "DOES_1": "told"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 30
    while not all((hosts / f"words_{i}").exists() for i in "01") and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    for _ in range(2):  # an impatient user
        os.killpg(process.pid, signum)
        time.sleep(0.1)
    process.wait(timeout=30)
    early = signum != signal.SIGKILL and not all((hosts / f"saved_{i}").exists() for i in "01")
    out, err = process.communicate(timeout=30)  # to the end of all that hold the pipe
    assert not early and all((hosts / f"saved_{i}").exists() for i in "01")
    assert not (hosts / "words_report").exists()
    if signum != signal.SIGKILL:  # of which it knows nothing: the hosts notice
        assert process.returncode == 128 + signum
        assert "[a] saved 0" in out and err.startswith("told to stop") and "failed" not in err


def test_the_commands_of_a_sweep_can_be_read_before(hosts):
    done = run_in(hosts, "sweep_hosts.sh", *HOSTS, "--dir=/my code", "--dry-run", *SWEEP_WORDS)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[:3] for line in lines] == [["rsh", "-q", h] for h in ("a", "me@b", "a")]
    there = [shlex.split(line[3]) for line in lines]
    assert all(line[:2] == ["cd", "/my code"] and "--config.x=it's a b" in line for line in there)
    assert [line[-1] for line in there] == ["--shard=0/2", "--shard=1/2", "--report-only"]
    assert not (hosts / "notes").exists()


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


GKE = ("gke.sh", "--image=i", "--workdir=/shared/r", "--dry-run")


@pytest.mark.parametrize(
    ("accelerator", "topology", "type_"),
    [
        ("tpu-v5-lite-podslice", "4x4", "v5litepod-16"),
        ("tpu-v6e-slice", "8x8", "v6e-64"),
        ("tpu-v5p-slice", "2x2x4", "v5p-32"),
        ("tpu-v4-podslice", "2x2x1", "v4-8"),
        ("tpu7x", "2x2x2", "tpu7x-16"),
    ],
)
def test_xpk_asks_for_the_slice_of_the_manifest(accelerator, topology, type_):
    options = (f"--accelerator={accelerator}", f"--topology={topology}")
    words = shlex.split(dry(*GKE, *options, "--xpk=c", *TRAIN))
    assert words[words.index("--tpu-type") + 1] == type_
    manifest = dry(*GKE, *options, "--volume=v", *TRAIN)
    chips = math.prod(map(int, topology.split("x")))
    assert f"completions: {chips // 4}\n" in manifest and f"topology: {topology}\n" in manifest


def test_the_image_has_a_python_that_the_package_takes():
    lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
    image = next(line for line in lines if line.startswith("FROM"))
    version = tuple(int(x) for x in image.partition(":")[2].partition("-")[0].split("."))
    assert version >= (3, 11) and "python_requires = >=3.11" in (ROOT / "setup.cfg").read_text()
    # The configs are named as in the checkout: the command runs there.
    assert "COPY . ." in lines and any(line.startswith("WORKDIR") for line in lines)
    assert "launch/Dockerfile" in (ROOT / "launch/README.md").read_text()


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
        ((*GKE, "--volume=v", "--hosts=2", *TRAIN), "topology 4x4 has 16: give --hosts 4"),
        ((*GKE, "--xpk=c", "--topology=8x8", "--hosts=4", *TRAIN), "has 64: give --hosts 16"),
        ((*GKE, "--xpk=c", "--topology=1x1", *TRAIN), "--chips 4 does not divide"),
        ((*GKE, "--xpk=c", "--topology=16", *TRAIN), "give it as 4x4"),
        ((*GKE, "--xpk=c", "--accelerator=gpu", *TRAIN), "--accelerator gpu: for --xpk give"),
        (("slurm.sh", "--array=0", "--workdir=/r", *TRAIN), "from 1"),
        (("slurm.sh", "--array=2", "--nodes=2", "--workdir=/r", *TRAIN), "has one node"),
        (("slurm.sh", "--array=2", "--workdir=/r", *TRAIN, "--shard=0/2"), "--shard is given"),
        (("sweep_hosts.sh", *TRAIN), "--hosts A,B,C is needed"),
        (("sweep_hosts.sh", "--hosts=a"), "behind --"),
        (("sweep_hosts.sh", "--hosts=a,,b", *TRAIN), "'' is not a host"),
        (("sweep_hosts.sh", "--hosts=a,b,a", *TRAIN), "a is there twice"),
        (("sweep_hosts.sh", "--hosts=-oX", *TRAIN), "'-oX' is not a host"),
        (("sweep_hosts.sh", "--hosts=a", *TRAIN, "--report-only"), "--report-only is given"),
        (("sweep_hosts.sh", "--hosts=a", "--rsh=no-such-rsh", *TRAIN), "is not installed"),
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


SCRIPTS = ["local_multiprocess.sh", "tpu_pod.sh", "slurm.sh", "gke.sh", "sweep_hosts.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_teaches(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "example" in done.stdout and "--dry-run" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_interpreter_where_it_can_be_chosen(script):
    chosen = "${PYTHON:-" in (ROOT / "launch" / script).read_text()
    assert ("PYTHON=" in run(script, "--help").stdout) == chosen


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
