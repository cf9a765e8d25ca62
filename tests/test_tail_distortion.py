"""What the frozen tail sees of coded features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.config import load_config
from jaxcomp.errors import ConfigError
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN
from jaxcomp.models.fpn import LEVELS
from jaxcomp.tasks.feature_codec import FeatureCodecTask, level_statistics
from jaxcomp.tasks.pyramid_codec import pyramid_statistics, pyramid_task
from jaxcomp.tasks.tail_distortion import TailDistortion, real_regions

SMALL = DetectorConfig(
    num_classes=3, stem_features=4, stage_blocks=(1, 1, 1, 1), stage_features=(4, 4, 6, 6),
    bottleneck=False, fpn_features=6, anchor_sizes=(8, 16, 32, 64, 128), rpn_convs=1,
    rpn_pre_nms=20, rpn_post_nms=12, pool_size=3, canonical_size=40.0, box_convs=1,
    box_conv_features=5, box_fc=7,
)  # fmt: skip
SIZE = np.asarray([[64, 96]] * 2, np.float32)


@pytest.fixture(scope="module")
def detector():
    """Model, variables and a pyramid, all drawn: to compile the body would take a minute."""
    model = FasterRCNN(SMALL)
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda k, x: model.init(k, x, SIZE, train=True), jax.random.key(0), image
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: np.abs(rng.normal(0, 0.3, s.shape)).astype("f4"), shapes)
    for name in ("rpn", "box_head"):
        part = variables["params"][name]
        part = jax.tree.map(lambda x: x * rng.choice([-1, 1], x.shape).astype("f4"), part)
        variables["params"][name] = part
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    pyramid = {
        name: jnp.asarray(rng.normal(0, 1, (2, *size, 6)), jnp.float32)
        for name, size in zip(LEVELS, sizes, strict=True)
    }
    return model, variables, pyramid


@pytest.fixture(scope="module")
def seen(detector):
    """T of P3, jitted, with the regions of P2 so that there are some."""
    model, variables, pyramid = detector
    tail = TailDistortion(model, 1.0, regions=4)
    boxes = jax.jit(tail.propose)(variables, pyramid, SIZE)["regions_p2"]
    x = pyramid["p3"]
    return jax.jit(lambda y, rois: tail.level(variables, "p3", x, y, rois)), x, boxes


def test_regions_are_the_best_proposals_of_their_level(detector):
    model, variables, pyramid = detector
    tail = TailDistortion(model, 1.0, regions=12)
    found = jax.jit(tail.propose)(variables, pyramid, SIZE)
    assert sorted(found) == ["regions_p2", "regions_p3", "regions_p4", "regions_p5"]
    whole = jax.jit(lambda v, x: model.apply(v, x, SIZE, 12, method="propose"))
    _, _, boxes, valid = whole(variables, pyramid)
    together = np.concatenate([np.asarray(x) for x in found.values()], 1)
    for i in range(2):
        want = np.asarray(boxes[i])[np.asarray(valid[i])]
        got = together[i][np.asarray(real_regions(together[i : i + 1]))[0] > 0]
        order = [np.lexsort(x.T) for x in (want, got)]
        np.testing.assert_allclose(want[order[0]], got[order[1]], rtol=1e-5)


def test_unchanged_features_cost_nothing_and_worse_ones_more(seen):
    see, x, boxes = seen
    assert np.asarray(real_regions(boxes)).sum() > 0
    np.testing.assert_allclose(see(x, boxes), 0, atol=1e-6)
    noise = jax.random.normal(jax.random.key(2), x.shape)
    costs = np.stack([see(x + s * noise, boxes) for s in (0.1, 0.3, 1.0)])
    assert (costs > 0).all() and (np.diff(costs, axis=0) > 0).all()


def test_padding_regions_do_not_count(seen):
    see, x, boxes = seen
    y = x + 0.3
    padded = jnp.concatenate([boxes, jnp.zeros_like(boxes)], 1)
    np.testing.assert_allclose(see(y, boxes), see(y, padded), rtol=1e-5)
    assert np.isfinite(see(y, jnp.zeros_like(boxes))).all()
    assert (np.asarray(see(y, boxes[:, :0])) > 0).all()  # as on P6, the RPN alone


def test_the_gradient_reaches_the_codec_and_not_the_tail(detector):
    model, variables, pyramid = detector
    codec = FactorisedCodec(in_channels=6, n_hidden=4, n_channels=3, stages=1)
    tail = TailDistortion(model, weight=2.0, feature_weight=0.0, regions=4)
    task = FeatureCodecTask(
        codec, 0.0, level_statistics([pyramid["p3"]]), level=1, frozen=variables, tail=tail
    )
    regions = jax.jit(tail.propose)(variables, pyramid, SIZE)["regions_p2"]
    batch = {"features": pyramid["p3"], "regions_p3": regions, "mask": np.ones(2, "f4")}
    params, stats, frozen = task.init(jax.random.key(3), batch)

    def loss(p):
        return task.loss(p, stats, frozen, batch, jax.random.key(4), 0)

    (value, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(value, 2 * aux.metrics["task"], rtol=1e-6)
    size = sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(gradient["synthesis"]))
    assert size > 0 and frozen is variables
    sums = jax.jit(task.eval_loss)(params, stats, frozen, batch)
    assert sums["task"] > 0 and sums["count"] == 2


def test_whole_pyramids_are_judged_from_images(detector):
    model, variables, pyramid = detector
    codec = FactorisedCodec(in_channels=6, n_hidden=4, n_channels=3, stages=1)

    def head(frozen, batch):
        return {name: x * batch["image"].mean() for name, x in pyramid.items()}

    tail = TailDistortion(model, weight=1.0, regions=4, head=head)
    statistics = pyramid_statistics([{k: np.asarray(x) for k, x in pyramid.items()}])
    task = pyramid_task("random", codec, 0.1, statistics, head=head, frozen=variables, tail=tail)
    image = np.ones((2, 64, 96, 3), np.float32)
    batch = {"image": image, "mask": np.ones(2, "f4")}
    params, stats, frozen = task.init(jax.random.key(3), batch)
    judged = jax.jit(task.eval_loss)(params, stats, frozen, batch)
    cached = {k: np.asarray(pyramid[k]) for k in LEVELS}
    cached |= jax.jit(tail.propose)(variables, pyramid, SIZE)
    again = jax.jit(task.eval_loss)(params, stats, frozen, cached | {"mask": batch["mask"]})
    np.testing.assert_allclose(judged["task"], again["task"], rtol=1e-3)
    assert judged["task"] > 0


def test_a_loss_of_nothing_is_refused():
    overrides = ["--config.training.feature_weight=0"]
    with pytest.raises(ConfigError, match="leave nothing to learn from"):
        load_config("configs/fpn_level.py", overrides)
