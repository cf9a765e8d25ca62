"""The task of the face detectors: shapes, gradients of the parts, the job's description."""

import functools
import json
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.config import load_config
from jaxcomp.errors import CheckpointError, ConfigError
from jaxcomp.interop.featherface_names import abstract_variables
from jaxcomp.jobs import face
from jaxcomp.models.featherface import PARAMETERS, VARIANTS, FaceDetector
from jaxcomp.models.featherface_attention import Gates
from jaxcomp.models.featherface_context import Context, GroupedContext, Mixer
from jaxcomp.models.featherface_pyramid import BiFPN, FacePyramid
from jaxcomp.step import group_norms
from jaxcomp.tasks.face import FaceTask, Regularisation, face_model_config, gradient_group
from jaxcomp.tasks.face_loss import FaceLossConfig

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "featherface.py"


def config_of(words="v1", *overrides):
    return load_config(f"{CONFIG}:{words}", overrides)


@pytest.mark.parametrize("variant", VARIANTS)
def test_configs_are_those_of_the_networks(variant):
    for profile in ("embedded", "widerface"):
        cfg = face_model_config(config_of(f"{variant},{profile}").model)
        own = VARIANTS[variant]
        for name in ("features", "pyramid", "body_gates", "pyramid_gates", "context", "mixer"):
            assert getattr(cfg, name) == getattr(own, name), name
        assert cfg.cells == own.cells or own.pyramid == "fpn"
    assert cfg.min_sizes == own.min_sizes


@pytest.mark.parametrize(
    "wrong",
    [
        "model.features=30", "model.features=40", "model.context=dense",
        "distil.strategy=quadratic",
        "distil.alpha_initial=1.5", "regularise.block=2", "data.smallest=200", "data.height=100",
        "training.smart_stopping.window_start=17", "evaluation.protocol=huge",
    ],
)  # fmt: skip
def test_bad_values_are_named(wrong):
    with pytest.raises(ConfigError, match=wrong.split("=")[0].rpartition(".")[2]):
        config_of("v2", wrong)


def test_counts_are_the_documented_ones():
    found = face.describe(config_of("v2", "data.height=640", "data.width=640"))
    assert found["total_parameters"] == PARAMETERS["v2"] and found["anchors"] == 16800
    assert sum(found["macs"].values()) == found["total_macs"] > 1e8
    json.dumps(found)
    with pytest.raises(ConfigError, match="489,015"):
        face.describe(config_of("v1", "model.features=24"))


def test_macs_are_those_of_the_convolutions_whatever_the_backend():
    found = face.describe(config_of("v2", "data.height=64", "data.width=64"))
    # 2 x 2 places of the last level, three 1x1 convolutions of 32 channels.
    assert found["macs"]["outputs_2"] == 2 * 2 * 32 * (4 + 2 + 10) * 2
    # Grouped 3x3 convolutions count the channels of their group only.
    point = 32 * (16 + 8)
    grouped = 9 * (16 * 4 + 4 * 8 * 2)
    assert found["macs"]["context_2"] == 4 * (point + grouped)


MAPS = [jnp.asarray(np.random.default_rng(i).normal(size=(2, 8 >> i, 8 >> i, 8 << i)), jnp.float32)
        for i in range(3)]  # fmt: skip
PARTS = {
    "deformable": (Context(True), MAPS[0]),
    "grouped": (GroupedContext(), jnp.tile(MAPS[0], 4)),
    "shuffled": (Mixer("shuffle_grouped"), jnp.tile(MAPS[0], 2)),
    "cbam": (Gates("cbam"), [jnp.tile(x, 16 >> i) for i, x in enumerate(MAPS)]),
    "shared": (Gates("shared"), MAPS),
    "bifpn": (BiFPN(8, 2), MAPS),
    "light": (BiFPN(8, 2, light=True), MAPS),
    "fpn": (FacePyramid(8), MAPS),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_parameter_of_a_fresh_part_learns(name):
    module, x = PARTS[name]
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), x)

    def loss(params):
        out, _ = module.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        leaves = jax.tree.leaves(out)
        weights = [np.random.default_rng(i).normal(size=y.shape) for i, y in enumerate(leaves)]
        return sum((w * y).sum() for w, y in zip(weights, leaves, strict=True))

    grads = flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")
    largest = max(np.abs(g).max() for g in grads.values())
    for path, grad in grads.items():
        assert np.isfinite(grad).all(), path
        # The normalisation takes a bias before it away again; it cannot learn.
        dead = path.endswith("bias") and f"{path.rpartition('/')[0]}/norm/bias" in grads
        assert dead or np.abs(grad).max() > 1e-6 * largest, path


def toy_batch(rows=2, side=64):
    rng = np.random.default_rng(0)
    boxes = np.tile(np.array([0.2, 0.3, 0.6, 0.8], np.float32), (rows, 3, 1))
    return {
        "image": rng.integers(0, 255, (rows, side, side, 3)).astype(np.uint8),
        "boxes": boxes, "landmarks": np.full((rows, 3, 10), 0.5, np.float32),
        "labels": np.tile(np.array([1, -1, 0], np.int32), (rows, 1)),
        "mask": np.ones(rows, np.float32),
    }  # fmt: skip


def test_the_loss_with_everything_on_traces_to_gradients_of_all_parameters():
    student, teacher = (FaceDetector(VARIANTS[name]) for name in ("v2", "v1"))
    flat = {k: np.zeros(v.shape, np.float32) for k, v in abstract_variables(teacher).items()}
    frozen = {"teacher": flax.traverse_util.unflatten_dict(flat, sep="/")}
    task = FaceTask(
        student, FaceLossConfig(), teacher=(teacher, frozen["teacher"]),
        regularisation=Regularisation(0.2, 0.5, 0.1),
    )  # fmt: skip
    shapes = flax.traverse_util.unflatten_dict(abstract_variables(student), sep="/")
    params, stats = shapes["params"], {"batch_stats": shapes["batch_stats"]}

    def run(params, batch):
        grad = jax.grad(task.loss, has_aux=True)
        found, aux = grad(params, stats0, frozen, batch, jax.random.key(0), jnp.int32(3))
        return found, aux, group_norms(found, gradient_group)

    stats0 = jax.tree.map(lambda s: jnp.zeros(s.shape), stats)
    grads, aux, norms = jax.eval_shape(run, params, toy_batch())
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert jax.tree.structure(aux.stats) == jax.tree.structure(stats)
    assert {"task_loss", "distil", "feature_distil", "alpha"} <= set(aux.metrics)
    groups = {"body", "body_gates", "neck", "neck_gates", "context", "mixer", "outputs"}
    assert set(norms) == groups
    sums = jax.eval_shape(task.eval_loss, params, stats, frozen, toy_batch())
    assert {"count", "loss", "box", "class", "landmark"} <= set(sums)


def test_group_norms_add_up():
    tree = {"a_0": {"kernel": jnp.array([3.0])}, "a_1": {"kernel": jnp.array([4.0])}}
    norms = group_norms(tree | {"b": {"bias": jnp.array([2.0])}}, gradient_group)
    assert norms == {"a": 5.0, "b": 2.0}


def test_a_teacher_that_is_not_there():
    with pytest.raises(CheckpointError, match="no weights"):
        face.load_teacher("nowhere.npz")
    assert face.load_teacher("") is None
    assert face.stop_rule(config_of("v1").training.smart_stopping) is None
    rule = face.stop_rule(config_of("v2,widerface").training.smart_stopping)
    assert rule.patience == 20 and rule.optimal_window == (100, 120)
