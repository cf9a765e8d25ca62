"""Real frames of KITTI through the full-size detector, every `:kitti` codec and every anchor."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import oracle_files
import pytest

from jaxcomp.evaluate.anchors import KINDS, anchors
from jaxcomp.interop.torch_weights import write_safetensors
from jaxcomp.models.fpn import LEVELS

ROOT = Path(__file__).parents[1]
FRAMES = 1
LIMIT_GIB = 16.0
CODECS = {
    "joint": "fpn_joint.py:kitti",
    "random": "fpn_random.py:kitti",
    **{f"level_{i}": f"fpn_level.py:kitti,level={i}" for i in range(len(LEVELS))},
}
# Two steps on two frames: the codecs know nothing, but all their parts have run.
FEW = [
    "--config.data.train_size=2", f"--config.data.val_size={FRAMES}", "--config.training.epochs=1",
    "--config.training.batch_size=1", "--config.training.rate_weight=0.001",
    "--config.log.progress=False", "--config.data.cache_features=True",
]  # fmt: skip


def command(words, environment):
    """Runs `python -m WORDS` and says how long it took and the most that a process has held."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{time.monotonic() - start:6.0f} s, {peak:5.2f} GiB at most so far: {' '.join(words)}")
    assert peak < LIMIT_GIB
    return done.stdout


@pytest.mark.slow
def test_every_codec_and_anchor_takes_real_frames_at_full_size(shared, tmp_path):
    """Weights in torchvision's layout and of its sizes, but drawn: the accuracy says nothing."""
    oracle = oracle_files.read(shared / "oracles", "fasterrcnn_r50_fpn_v2")
    file, detector = tmp_path / "detector.safetensors", tmp_path / "detector.npz"
    write_safetensors(file, oracle.recipe.state_dict(oracle.meta["manifest"], oracle.meta["seed"]))
    environment = {**os.environ, "KITTI_ROOT": str(shared / "data/kitti"), "XLA_FLAGS": ""}
    words = ["--model", "faster_rcnn", "--classes", "Car,Pedestrian", "--out", str(detector)]
    command(["jaxcomp", "import-weights", str(file), *words], environment)
    more = [f"--config.detector.path={detector}", f"--config.data.feature_store={tmp_path / 'f'}"]
    for name, spec in CODECS.items():
        words = [f"--config=configs/{spec}", f"--workdir={tmp_path / 'runs' / name}", *FEW, *more]
        command(["jaxcomp.main", *words], environment)
    out = tmp_path / "comparison"
    text = command(["jaxcomp", "evaluate", str(tmp_path / "runs"), f"--out={out}"], environment)
    print(text)
    _check(json.loads((out / "rate_accuracy.json").read_text()), out)


def _check(found, out):
    assert found["frames"] == FRAMES and found["data"] == "kitti"
    assert found["image_size"] == [384, 1280]
    assert found["uncompressed"]["complexity"]["parameters"] > 43e6
    learned = {p["treatment"]: p for p in found["points"] if p["kind"] == "learned"}
    assert set(learned) == {"joint", "random", "assembled"}
    assert all(p["whole"] and p["bytes_per_frame"] > 1000 for p in learned.values())
    assert learned["joint"]["complexity"]["parameters"] == 11_172_224
    assert learned["random"]["complexity"]["parameters"] == 4_617_600
    offered = {kind: anchors(kind) for kind in KINDS}
    wanted = {a.label for offer in offered.values() for a in offer.anchors}
    others = {p["name"] for p in found["points"] if p["kind"] != "learned"}
    assert others == wanted and {"boxes", "uniform-level-8"} <= wanted
    assert found["missing"] == {k: v for o in offered.values() for k, v in o.missing.items()}
    shapes = {level: tuple(x) for level, x in found["uncompressed"]["shapes"].items()}
    assert shapes["p2"] == (96, 320, 256) and shapes["p6"] == (6, 20, 256)
    assert (out / "index.html").stat().st_size > 10_000
