"""The documents' sizes on a real frame, in a process of its own whose memory is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcomp import sharding
from jaxcomp.config import load_config
from jaxcomp.data import make_splits
from jaxcomp.models.faster_rcnn import FasterRCNN
from jaxcomp.optim import make_optimiser
from jaxcomp.step import create_state, make_train_step
from jaxcomp.tasks.detect import DetectTask, detector_config, sampling_config

ROOT = Path(__file__).parents[1]
LIMIT_GIB = 8.0
STEPS = 30

SCRIPT = """
import functools, json, resource, sys
import jax, jax.numpy as jnp, numpy as np
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.codecs.tables import build_tables
from jaxcomp.loaders import Detector, LevelCodec
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN

model = FasterRCNN(DetectorConfig())
size = jnp.full((1, 2), 64.0)
variables = jax.jit(functools.partial(model.init, train=True))(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8), size)
meta = {"classes": ["Car", "Pedestrian"], "height": 416, "width": 1344, "resize": "shortest",
        "min_side": 800, "max_side": 1333}
detector = Detector(model, variables, meta)
codec = FactorisedCodec()
frozen = jax.jit(codec.init)(jax.random.key(1), jnp.zeros((1, 16, 16, 256)))
level = LevelCodec(codec, frozen, build_tables(codec, frozen), {"level": 2, "kind": "codec"})

image, meta = detector.prepare(sys.argv[1])
features = detector.get_fpn_features(image)
blob = level.compress(features)
restored = level.decompress(blob)
found = detector.detect_from_features({**features, **restored}, meta)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({
    "shapes": {k: v.shape[1:] for k, v in features.items()}, "bytes": len(blob),
    "finite": bool(np.isfinite(found["boxes"]).all()), "peak_gib": peak,
    "found": int(found["valid"].sum()),
    "inside": bool((found["boxes"][..., 2] <= meta["original_size"][0, 1] + 0.01).all()),
}))
"""


@pytest.mark.slow
def test_a_real_frame_goes_through_at_full_size(shared):
    frame = min((shared / "data/kitti/training/image_2").glob("*.png"))
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(frame)], cwd=ROOT, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    out = json.loads(run.stdout.splitlines()[-1])
    assert out["shapes"]["p4"] == [26, 84, 256] and out["shapes"]["p6"] == [7, 21, 256]
    assert out["bytes"] > 31 and out["finite"] and out["inside"] and out["found"] > 0
    assert out["peak_gib"] <= LIMIT_GIB, out


WEIGHTS = """
import dataclasses, functools, sys
import jax, jax.numpy as jnp, numpy as np
from jaxcomp import weights_file
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN

model = FasterRCNN(DetectorConfig())
variables = jax.jit(functools.partial(model.init, train=True))(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64.0))
weights_file.export_npz(sys.argv[1], jax.tree.map(np.asarray, variables), {
    "kind": "detector", "model": dataclasses.asdict(model.cfg), "classes": ["Car", "Pedestrian"],
    "height": 416, "width": 1344, "resize": "shortest", "min_side": 800, "max_side": 1333})
"""


@pytest.mark.slow
def test_the_documented_codec_trains_on_a_kitti_folder(shared, tmp_path):
    """The `kitti` profile on six real frames, the detector at full size (random weights)."""
    out = tmp_path / "run"
    weights = tmp_path / "detector.npz"
    env = {**os.environ, "KITTI_ROOT": str(shared / "data/kitti"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", WEIGHTS, str(weights)], cwd=ROOT, env=env, check=True)
    argv = [
        "--config=configs/fpn_level.py:kitti,level=2", f"--config.detector.path={weights}",
        f"--workdir={out}", "--config.data.train_size=4", "--config.data.val_size=2",
        "--config.training.batch_size=2", "--config.training.epochs=1",
        "--config.log.progress=False",
    ]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "jaxcomp.main", *argv], cwd=ROOT, env=env, capture_output=True,
        text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["params"] == 4_617_600 and summary["feature_shape"] == [24, 80, 256]
    assert len(list((out / "streams").glob("*.jxc"))) == summary["frames"] == 2


@pytest.mark.slow
def test_the_full_network_overfits_real_frames(shared):
    """Four KITTI frames at 128 x 416, from a random start: the loss falls to a fraction."""
    config = load_config(
        str(ROOT / "configs/detector.py:kitti"),
        [
            f"data.dir={shared / 'data/kitti'}", "data.train_size=4", "data.val_size=1",
            "data.resize=stretch", "data.height=128", "data.width=416", "data.augment=False",
            "model.anchor_sizes=(12.0,24.0,48.0,96.0,160.0)", "model.canonical_size=56.0",
            "training.batch_size=4", "training.accumulation=1", "training.optimiser=adamw",
            "training.learning_rate=2e-4", "training.lr_schedule.name=constant",
            "training.lr_schedule.warmup_epochs=0", "log.progress=False",
            "sampling.regions=64", "model.rpn_post_nms_train=256", "model.rpn_pre_nms_train=500",
        ],
    )  # fmt: skip
    task = DetectTask(
        FasterRCNN(detector_config(config.model)), sampling_config(config.sampling), (128, 416)
    )
    batch = next(iter(make_splits(config).train_once()))
    tx = make_optimiser(config.training, 1)
    mesh = sharding.make_mesh(jax.devices()[:1])
    state, frozen = create_state(task, tx, jax.random.key(0), batch, mesh=mesh)
    step = make_train_step(task, tx, mesh=mesh)
    batch = sharding.put_batch(mesh, batch)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, batch, np.uint32(0))
        losses.append(float(metrics["loss"]))
        assert metrics["finite"], "a gradient is not finite"
    print("losses", *(f"{loss:.3f}" for loss in losses))
    assert np.isfinite(losses).all()
    assert min(losses) < 0.25 * losses[0]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
