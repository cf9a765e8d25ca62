"""Images of any size: resized on the device, detections in their own pixels, few compilations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import weights_file
from jaxcomp.config import load_config
from jaxcomp.errors import CheckpointError, ConfigError, ShapeError
from jaxcomp.evaluate.detection import frames_from_batch, pixel_sizes
from jaxcomp.evaluate.pictures import keep_pictures
from jaxcomp.jobs.detect import initial_variables
from jaxcomp.loaders import load_detector
from jaxcomp.models.faster_rcnn import DetectorConfig, FasterRCNN
from jaxcomp.models.transform import Frames, frames_of, network_input, normalise_image
from jaxcomp.ops.resize import resize_into
from jaxcomp.tasks.detect import DetectTask
from jaxcomp.tasks.detection_loss import SamplingConfig

SMALL = DetectorConfig(
    num_classes=3, stem_features=8, stage_blocks=(1, 1, 1, 1), stage_features=(8, 8, 16, 16),
    bottleneck=False, fpn_features=8, anchor_sizes=(8, 16, 32, 64, 96), rpn_convs=1,
    rpn_pre_nms=40, rpn_post_nms=20, rpn_pre_nms_train=40, rpn_post_nms_train=20, box_convs=1,
    box_conv_features=8, box_fc=16, canonical_size=56.0, max_detections=10, score_threshold=0.0,
)  # fmt: skip
MODEL = FasterRCNN(SMALL)
CANVAS = (64, 128)


@pytest.fixture(scope="module")
def variables():
    init = jax.jit(functools.partial(MODEL.init, train=True))
    return init(jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64.0))


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def batch(sizes=((30, 70), (40, 60))):
    native = np.array(sizes, np.float32)
    image = np.zeros((len(sizes), 48, 80, 3), np.uint8)
    for i, (height, width) in enumerate(sizes):
        image[i, :height, :width] = photo(height, width, i)
    boxes = np.zeros((len(sizes), 3, 4), np.float32)
    boxes[:, 0] = [4, 4, 60, 40]
    valid = np.zeros((len(sizes), 3), bool)
    valid[:, 0] = True
    return {
        "image": image, "native_size": native, "image_size": np.floor(native * 1.6),
        "image_id": np.arange(len(sizes), dtype=np.int32), "boxes": boxes, "valid": valid,
        "labels": valid.astype(np.int32), "ignore": np.zeros_like(valid),
        "mask": np.ones(len(sizes), np.float32),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "new"), [((7, 9), (15, 11)), ((12, 10), (5, 30)), ((4, 4), (4, 4))]
)
def test_resizing_is_that_of_torch(size, new):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).random((1, 16, 32, 3), np.float32)
    ours = resize_into(jnp.asarray(x), jnp.array([size]), jnp.array([new]), (20, 36))
    part = torch.tensor(x[:, : size[0], : size[1]]).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(part, size=new, mode="bilinear").permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours[:, : new[0], : new[1]], theirs, atol=2e-6)
    assert not np.asarray(ours)[:, new[0] :].any() and not np.asarray(ours)[:, :, new[1] :].any()


def test_rows_do_not_depend_on_each_other_nor_on_the_padding():
    data = batch()
    both = network_input(frames_of(data, CANVAS))
    noisy = {**data, "image": np.where(data["image"] == 0, 77, data["image"])}
    noisy["image"][0, :30, :70] = data["image"][0, :30, :70]
    noisy["image"][1, :40, :60] = data["image"][1, :40, :60]
    np.testing.assert_array_equal(both, network_input(frames_of(noisy, CANVAS)))
    one = {k: v[1:] for k, v in data.items()}
    np.testing.assert_allclose(both[1:], network_input(frames_of(one, CANVAS)), atol=1e-6)


def test_an_image_of_the_canvas_size_is_only_normalised():
    image = photo(*CANVAS)[None]
    size = np.array([CANVAS], np.float32)
    frames = Frames(image, size, size, CANVAS)
    np.testing.assert_allclose(network_input(frames), normalise_image(image), atol=1e-6)
    assert frames_of({"image": image}, CANVAS) is image


@pytest.fixture(scope="module")
def weights(variables, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "detector.npz"
    model = {k: v for k, v in SMALL.__dict__.items()}
    meta = {
        "kind": "detector", "model": model, "classes": ["Car", "Pedestrian"], "height": 64,
        "width": 128, "resize": "shortest", "min_side": 64, "max_side": 128,
    }  # fmt: skip
    weights_file.export_npz(path, jax.tree.map(np.asarray, variables), meta)
    return path


def test_sizes_share_compiled_networks(weights):
    """Nine photos, each another size: two canvases with a bucket of 64, one run a program."""
    detector = load_detector(weights, bucket=64)
    for i in range(9):
        height, width = 30 + i, 60 - 2 * i
        if i % 2:
            height, width = width, height
        found = detector.detect(photo(height, width))
        boxes = found["boxes"][found["valid"]]
        assert (boxes[:, 2] <= width + 1e-3).all() and (boxes[:, 3] <= height + 1e-3).all()
        assert boxes[:, 2].max() > 0.5 * width
    assert detector.compilations() == 4  # head and tail, lying and standing


def test_detections_are_those_of_the_whole_model(weights, variables):
    detector = load_detector(weights)
    image = photo(40, 61)
    found = detector.detect(image)
    frames, meta = detector.prepare(image)
    whole = jax.jit(MODEL.apply)(variables, frames, frames.image_size)
    scale = np.tile(meta["scale"][:, ::-1], 2)[:, None]
    np.testing.assert_allclose(found["boxes"], whole["boxes"] / scale, atol=1e-3)
    np.testing.assert_allclose(found["scores"], whole["scores"], atol=1e-5)


def test_a_bucket_must_fit_the_strides(weights):
    with pytest.raises(ShapeError, match="multiple of 32"):
        load_detector(weights, bucket=48)


def test_boxes_and_pictures_are_in_pixels_of_the_stored_image():
    data = batch()
    found = {"boxes": data["boxes"], "scores": np.ones((2, 3)), "labels": data["labels"]}
    found["valid"] = data["valid"]
    frames = frames_from_batch(found, data)
    np.testing.assert_allclose(frames[0].boxes[0], [2.5, 2.5, 37.5, 25], atol=1e-5)
    np.testing.assert_array_equal(frames[0].boxes, frames[0].truth_boxes)
    np.testing.assert_array_equal(pixel_sizes(data), data["native_size"])
    store = {}
    keep_pictures(store, data, {"after": found}, {}, limit=1)
    np.testing.assert_allclose(store["truth_boxes"][0][0], frames[0].truth_boxes[0])
    np.testing.assert_allclose(store["after_boxes"][0][0], frames[0].boxes[0])


def make_task(**options):
    model = FasterRCNN(SMALL)
    if options.pop("freeze_norm", False):
        model = FasterRCNN(dataclasses.replace(SMALL, freeze_norm=True))
    return DetectTask(model, SamplingConfig(anchors=16, regions=8), CANVAS, **options)


def test_training_on_native_images_with_frozen_statistics(variables):
    task = make_task(freeze_norm=True, initial=lambda: variables)
    params, stats, _ = task.init(jax.random.key(0), batch())
    step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (loss, aux), grads = step(params, stats, {}, batch(), jax.random.key(1), 0)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    jax.tree.map(np.testing.assert_array_equal, aux.stats, stats)


def test_frozen_stages_get_no_update(variables):
    task = make_task(frozen_stages=2, initial=lambda: variables)
    params, *_ = task.init(jax.random.key(0), batch())
    mask = task.update_mask(params, 0)
    still = {name for name, value in mask["body"].items() if value == 0}
    assert still == {"stem", "stage1_block1"}
    assert all(mask[name] == 1 for name in ("fpn", "rpn", "box_head"))
    assert make_task().update_mask(params, 0) is None


def test_training_starts_from_given_weights(weights, variables):
    start = initial_variables(str(weights), SMALL, 0)
    task = make_task(initial=lambda: start)
    params, stats, _ = task.init(jax.random.key(7), batch())
    jax.tree.map(np.testing.assert_array_equal, params, dict(variables["params"]))
    jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], variables["batch_stats"])
    assert initial_variables("", SMALL, 0) is None
    with pytest.raises(CheckpointError, match="other sizes"):
        initial_variables(str(weights), DetectorConfig(), 0)
    with pytest.raises(CheckpointError):
        initial_variables(str(weights.with_name("none.pth")), DetectorConfig(), 0)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_trains(dtype, variables):
    model = FasterRCNN(dataclasses.replace(SMALL, dtype=dtype))
    task = DetectTask(model, SamplingConfig(anchors=16, regions=8), CANVAS)
    frames = frames_of(batch(), CANVAS)
    start = jax.eval_shape(
        functools.partial(model.init, train=True), jax.random.key(0), frames, frames.image_size
    )
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(start))
    params, stats = variables["params"], {"batch_stats": variables["batch_stats"]}
    (loss, _), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
        params, stats, {}, batch(), jax.random.key(1), 0
    )
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_unknown_rules_in_a_config_are_refused():
    with pytest.raises(ConfigError, match="resize"):
        load_config("configs/detector.py", ["data.resize=square"])
    assert load_config("configs/detector.py", ["data.resize=stretch"]).data.resize == "stretch"
    with pytest.raises(ConfigError, match="max_side"):
        load_config("configs/detector.py", ["data.min_side=900", "data.max_side=100"])
