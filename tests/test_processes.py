"""Training by several processes: same losses, other topologies, preemption, death, agreement."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy
from toy_process import FAILED, INTERRUPTED, splits

from jaxcomp import processes
from jaxcomp.config import load_config
from jaxcomp.data import make_splits
from jaxcomp.data.pipeline import PartOfDraws, array_splits
from jaxcomp.errors import DataError
from jaxcomp.train import fit

pytestmark = pytest.mark.multiprocess
SCRIPT = Path(__file__).with_name("toy_process.py")
BOUND = 240  # seconds that anything may take on a loaded machine; the point is that it ends


class Group:
    """Processes that train the toy together, each with its virtual devices."""

    def __init__(self, folder, count, devices, out="out.json", **options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        together = [f"coordinator=127.0.0.1:{port}", f"processes={count}"] if count > 1 else []
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0",
            "PYTHONPATH": str(SCRIPT.parent.parent),
        }
        self.out = folder / out
        words = [f"{k.replace('__', '.')}={v}" for k, v in options.items()]
        self.logs = [folder / f"{out}.{i}.log" for i in range(count)]
        self.members = []
        for i, log in enumerate(self.logs):
            own = [*together, f"process_id={i}"]
            argv = [sys.executable, str(SCRIPT), str(folder / "run"), str(self.out), *words, *own]
            with log.open("w") as file:
                self.members.append(subprocess.Popen(argv, env=env, stdout=file, stderr=file))

    def wait(self):
        """Exit statuses; all are killed if one does not end in time."""
        try:
            return [p.wait(BOUND) for p in self.members]
        except subprocess.TimeoutExpired:
            for p in self.members:
                p.kill()
            raise AssertionError("no end:\n" + self.text()) from None

    def text(self):
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)

    def result(self):
        assert self.wait() == [0] * len(self.members), self.text()
        return json.loads(self.out.read_text())

    def until(self, step):
        """Waits until the run has taken a step."""
        file = self.out.parent / "run" / "metrics.jsonl"
        end = time.time() + BOUND
        while time.time() < end:
            lines = file.read_text().splitlines() if file.exists() else []
            if any(json.loads(line)["step"] >= step for line in lines[:-1]):
                return
            time.sleep(0.05)
        raise AssertionError("no step:\n" + self.text())


def losses(result):
    return [(r["train"]["loss"], r["val"]["loss"]) for r in result["history"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with four devices: 4 epochs of 5 steps."""
    return Group(tmp_path_factory.mktemp("alone"), 1, 4, training__epochs=4).result()


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_losses_do_not_depend_on_the_number_of_processes(alone, tmp_path, count, devices):
    together = Group(tmp_path, count, devices, training__epochs=4).result()
    assert together["steps"] == alone["steps"] == 20
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)


def test_a_checkpoint_of_one_topology_is_restored_on_others(alone, tmp_path):
    # The plateau schedule does not depend on the number of epochs, so a shorter run is a beginning.
    for epochs, count, devices in ((2, 2, 2), (3, 1, 1), (4, 1, 4)):
        (tmp_path / "run" / "done").parent.mkdir(exist_ok=True)
        group = Group(tmp_path, count, devices, f"{epochs}.json", training__epochs=epochs)
        result = group.result()
        assert len(result["history"]) == epochs
        forget_the_end(tmp_path / "run")
    np.testing.assert_allclose(losses(result), losses(alone), rtol=1e-5)


WIDE = {"training__accumulation": 2, "training__learning_rate": 0.005}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """What the toy with a hidden layer gives in this process, its state whole on four devices."""
    config = toy.config(training__epochs=4, **WIDE)
    data = splits(config.training.batch_size, 0, False)
    return {"history": fit(toy.WideToy(), config, data, tmp_path_factory.mktemp("wide")).history}


def test_a_state_shared_out_over_processes_is_restored_where_it_is_shared_out_otherwise(
    wide, tmp_path
):
    """Groups of two devices of a process, then of four, of one process."""
    for epochs, fsdp, count, devices in ((2, 2, 2, 2), (4, 4, 1, 4)):
        options = WIDE | {"wide": 1, "training__epochs": epochs, "mesh__fsdp": fsdp}
        result = Group(tmp_path, count, devices, f"{epochs}.json", **options).result()
        assert len(result["history"]) == epochs
        forget_the_end(tmp_path / "run")
    np.testing.assert_allclose(losses(result), losses(wide), rtol=1e-5)


def forget_the_end(run):
    """Makes a finished run look interrupted after its last epoch, as more epochs would find it."""
    for record in run.glob("checkpoints/*/extra/*"):
        content = record.read_text()
        if '"done"' in content:
            record.write_text(content.replace('"done": "epochs"', '"done": ""'))


def test_a_signal_to_one_stops_all_at_one_step_and_they_resume(alone, tmp_path):
    group = Group(tmp_path, 2, 2, training__epochs=4, pause=0.2)
    group.until(4)
    group.members[1].send_signal(signal.SIGTERM)
    assert group.wait() == [INTERRUPTED] * 2, group.text()
    steps = {line.split(" at step ")[1].split(":")[0] for log in group.logs
             for line in log.read_text().splitlines() if " at step " in line}  # fmt: skip
    assert len(steps) == 1 and 4 <= int(*steps) < 20
    np.testing.assert_allclose(
        losses(Group(tmp_path, 2, 2, training__epochs=4).result()), losses(alone), rtol=1e-5
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_the_others_and_the_run_resumes(alone, tmp_path, victim):
    group = Group(tmp_path, 2, 2, training__epochs=4, pause=0.2)
    group.until(6)
    group.members[victim].kill()
    statuses = group.wait()
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] != 0, group.text()
    # Ours, or that of the runtime, which ends the process from another thread; a trace may follow.
    told = group.logs[1 - victim].read_text()
    assert "another process ended" in told or "another task died" in told, told
    np.testing.assert_allclose(
        losses(Group(tmp_path, 2, 2, training__epochs=4).result()), losses(alone), rtol=1e-5
    )


def test_a_batch_that_cannot_be_shared_out_is_refused_everywhere(tmp_path):
    group = Group(tmp_path, 2, 1, training__batch_size=5)
    assert group.wait() == [FAILED] * 2, group.text()
    assert group.text().count("batch_size=5 rows cannot be shared out among 2 processes") == 2


@pytest.mark.parametrize("victim", [0, 1])
def test_what_one_process_cannot_read_ends_all_with_its_error(tmp_path, victim):
    began = time.time()
    group = Group(tmp_path, 2, 1, bad=victim, pause=0.1)
    statuses = group.wait()
    assert statuses[victim] == FAILED and statuses[1 - victim] in (1, FAILED), group.text()
    assert time.time() - began < BOUND / 2
    told = "000007.png is truncated; copy it again"
    assert f"error: frame {told}" in group.logs[victim].read_text()
    assert f"process {victim} failed: frame {told}" in group.logs[1 - victim].read_text()


def test_processes_agree_on_the_checkpoint_before_a_damaged_one(wide, tmp_path):
    """What process 1 reads of the last one is cut: process 0, which could read its own, decides."""
    options = WIDE | {"wide": 1, "mesh__fsdp": 4}
    Group(tmp_path, 2, 2, "2.json", training__epochs=2, **options).result()
    run = tmp_path / "run"
    forget_the_end(run)
    files = list((run / "checkpoints" / "10" / "state" / "ocdbt.process_1" / "d").iterdir())
    victim = max(files, key=lambda p: p.stat().st_size)
    os.truncate(victim, victim.stat().st_size // 2)
    group = Group(tmp_path, 2, 2, "3.json", training__epochs=3, **options)
    np.testing.assert_allclose(losses(group.result()), losses(wide)[:3], rtol=1e-5)
    for log in group.logs:
        assert "Checkpoint 10 is damaged; going back to step 5." in log.read_text(), group.text()


def test_processes_of_different_configs_end_together_and_leave_nothing(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "jaxcomp.main", "--config=configs/fpn_level.py"]
    words += [f"--workdir={tmp_path / 'run'}", f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    began = time.time()
    members = [
        subprocess.Popen(
            [*words, f"--process_id={i}", f"--config.seed={i}"],
            env=env, cwd=SCRIPT.parent.parent, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    errors = [member.communicate(timeout=BOUND)[1] for member in members]
    assert [member.returncode for member in members] == [1, 1], errors
    assert all("error: process 1 has another config than process 0" in text for text in errors)
    assert time.time() - began < BOUND and not (tmp_path / "run").exists()


def test_parts_of_a_batch_make_the_whole_one():
    x = {"x": np.arange(30.0)}
    whole = array_splits(x, {"x": np.arange(11.0)}, 6, 3)
    parts = [whole.sharded(i, 3) for i in range(3)]
    batches = [part.train() for part in parts]
    expected = whole.train()
    for _ in range(12):
        together = np.concatenate([next(b)["x"] for b in batches])
        np.testing.assert_array_equal(together, next(expected)["x"])
    held_out = [list(part.validation()) for part in parts]
    for i, batch in enumerate(whole.validation()):
        real = np.concatenate([rows[i]["mask"] for rows in held_out])
        np.testing.assert_array_equal(real, batch["mask"])
        x = np.concatenate([rows[i]["x"] for rows in held_out])
        np.testing.assert_array_equal(x[real > 0], batch["x"][real > 0])
    with pytest.raises(DataError, match="nearest that can is 8"):
        whole.sharded(0, 4)


def test_parts_of_augmented_pictures_and_masks_make_the_whole_batch():
    sizes = ["data.height=16", "data.width=16", "data.train_size=24", "data.val_size=10"]
    made = load_config("configs/hjepa.py", [*sizes, "data.num_threads=0", "training.batch_size=8"])
    assert made.data.augment
    whole = make_splits(made)
    expected, parts = whole.train(), [whole.sharded(i, 2).train() for i in range(2)]
    for _ in range(4):
        batch, halves = next(expected), [next(part) for part in parts]
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), value)


def test_parts_of_draws_make_the_whole_draw():
    def draw(rng, rows):
        return (
            rng.random(rows),
            rng.uniform(-1, 2, (rows, 3)),
            rng.integers(0, 2**63, rows),
            rng.permuted(np.tile(np.arange(5), (rows, 1)), axis=1),
        )

    whole = draw(np.random.default_rng(1), 6)
    parts = [draw(PartOfDraws(np.random.default_rng(1), i, 3), 2) for i in range(3)]
    for i, expected in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), expected)


def test_one_process_needs_nobody():
    assert processes.from_primary(lambda: {"a": 1}, "x") == {"a": 1}
    processes.wait_for_all("nothing")
    processes.check_agreement("a", "b", "c")
    assert not processes.preempted(3) and processes.is_primary()
