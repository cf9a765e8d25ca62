import dataclasses
import functools

import hjepa_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.errors import ConfigError, ShapeError
from jaxcomp.models.hjepa import HJEPA, HJEPAConfig, init_variables
from jaxcomp.models.vit import SIZES, ViTConfig

# (size, options) -> parameters in total and trained ones, as measured on the original.
COUNTS = {
    ("base", ()): (216_494_592, 130_695_936),
    ("base", ("add", 512)): (217_616_384, 131_817_728),
    ("base", ("concat", 512)): (218_668_032, 132_869_376),
    ("base", ("add", None)): (219_455_232, 133_656_576),
    ("base", ("concat", None)): (221_819_136, 136_020_480),
    ("small", ()): (54_573_312, 32_907_648),
    ("small", ("add", 256)): (54_855_680, 33_190_016),
    ("small", ("concat", 256)): (55_119_360, 33_453_696),
}


@pytest.mark.parametrize(("size", "pyramid"), COUNTS)
def test_parameter_counts_are_those_of_the_original(size, pyramid):
    options = {}
    if pyramid:
        options = dict(zip(("fpn_fusion_method", "fpn_feature_dim"), pyramid, strict=True))
    cfg = HJEPAConfig(ViTConfig(**SIZES[size]), use_fpn=bool(pyramid), **options)
    made = jax.eval_shape(functools.partial(init_variables, HJEPA(cfg)), jax.random.key(0))
    trained, target = (sum(x.size for x in jax.tree.leaves(made[k])) for k in ("params", "target"))
    assert (trained + target, trained) == COUNTS[size, pyramid]


def test_the_target_starts_as_an_exact_copy_in_its_own_memory():
    variables = init_variables(HJEPA(toy.config()), jax.random.key(3))
    ours, theirs = (
        jax.tree.leaves(x) for x in (variables["params"]["encoder"], variables["target"])
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


VARIANTS = {
    "none": {},
    "add": {"use_fpn": True, "fpn_feature_dim": 8},
    "concat": {
        "use_fpn": True,
        "fpn_fusion_method": "concat",
        "fpn_level_dims": (8, 12, 16),
        "fpn_bottom_up": True,
    },
    "attention": {
        "use_fpn": True,
        "fpn_fusion_method": "attention",
        "encoder": {"rope": True, "positions": "sincos", "layer_scale": 0.1},
    },
    "learned": {"use_fpn": True, "fpn_upsampling": "learned"},
    "plane": {"use_fpn": True, "pooling": "2d", "fpn_bottom_up": True},
}
MASK = toy.mask(range(9), range(5, 15))
LENGTHS = {"1d": [12, 6, 3], "2d": [16, 4, 1]}
WHOLE = {"1d": [16, 8, 4], "2d": [16, 4, 1]}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_predicts_trains_and_extracts(name):
    """One compilation per variant: shapes, finite gradients, no influence of what is not valid."""
    cfg = toy.config(**VARIANTS[name])
    model, variables = toy.network(cfg)

    def loss(params, target, images, mask):
        out = model.apply(
            {"params": params, "target": target}, images, mask, max_masked=12, max_context=10
        )
        pairs = zip(out["predictions"], out["targets"], out["masks_valid"], strict=True)
        total = sum((jnp.square(p - t) * v[..., None]).sum() for p, t, v in pairs)
        return total, (out, model.apply({"params": params, "target": target}, images,
                                        method="extract"))  # fmt: skip

    run = toy.compiled(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    args = variables["params"], variables["target"]
    (_, (out, features)), (grads, frozen) = run(*args, toy.images(), MASK)
    for level, (x, valid) in enumerate(zip(out["predictions"], out["masks_valid"], strict=True)):
        assert x.shape == out["targets"][level].shape == (2, LENGTHS[cfg.pooling][level], 16)
        assert valid.shape == x.shape[:2] and valid.dtype == bool
    assert out["masks_valid"][0].sum(1).tolist() == [9, 10]
    assert [x.shape[1] for x in features] == WHOLE[cfg.pooling]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, features, grads)))
    # Nothing reaches the target encoder; every trained weight moves.
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(frozen))
    still = [
        jax.tree_util.keystr(p)
        for p, g in jax.tree_util.tree_flatten_with_path(grads)[0]
        if not np.asarray(g).any()
    ]
    assert not still
    # Hidden pixels reach no prediction, and a sample reaches no other sample.
    other = np.array(toy.images())
    other[0, :8] += 1.0  # rows of patches 0 to 7, all hidden in sample 0
    (_, (moved, _)), _ = run(*args, jnp.asarray(other), MASK)
    for a, b, valid in zip(
        out["predictions"], moved["predictions"], out["masks_valid"], strict=True
    ):
        np.testing.assert_allclose(a[valid], b[valid], atol=1e-5)
    for a, b in zip(out["targets"], moved["targets"], strict=True):
        np.testing.assert_allclose(a[1], b[1], atol=1e-5)
        assert a[0].size < 32 or np.abs(a[0] - b[0]).max() > 1e-3


@pytest.mark.parametrize("name", ["add", "learned"])
def test_longer_lists_change_no_valid_number(name):
    cfg = toy.config(**VARIANTS[name])
    model, variables = toy.network(cfg)
    mask = toy.mask(range(8), range(4, 12))
    run = toy.compiled(model.apply, static_argnames=("max_masked", "max_context"))
    tight = run(variables, toy.images(), mask, max_masked=8, max_context=8)
    loose = run(variables, toy.images(), mask, max_masked=16, max_context=16)
    for name in ("predictions", "targets"):
        for a, b, valid in zip(tight[name], loose[name], tight["masks_valid"], strict=True):
            b = b[:, : a.shape[1]]
            for row in range(2):
                np.testing.assert_allclose(
                    a[row][valid[row]], b[row][valid[row]], atol=1e-5, err_msg=name
                )
    counts = [[v.sum() for v in out["masks_valid"]] for out in (tight, loose)]
    assert counts[0] == counts[1]


def test_no_or_all_patches_hidden_is_safe():
    model, variables = toy.network(toy.config(use_fpn=True))

    def loss(params, mask):
        out = model.apply({**variables, "params": params}, toy.images(), mask)
        pairs = zip(out["predictions"], out["targets"], out["masks_valid"], strict=True)
        return sum((jnp.square(p - t) * v[..., None]).sum() for p, t, v in pairs), out

    grad = toy.compiled(jax.value_and_grad(loss, has_aux=True))
    (value, out), grads = grad(variables["params"], toy.mask((), ()))
    assert value == 0 and not any(v.any() for v in out["masks_valid"])
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))
    (value, out), grads = grad(variables["params"], toy.mask(range(16), range(16)))
    assert value > 0 and all(v.all() for v in out["masks_valid"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, grads)))


@functools.cache
def predict(cfg, **options):
    """(compiled function of images and mask, ...) of a network with the toy's variables."""
    model, variables = toy.network(cfg)
    return toy.compiled(functools.partial(model.apply, variables, **options))


def test_the_original_arithmetic_is_safe_too():
    run = predict(toy.config(use_fpn=True, compat=True))
    for hidden in ((), range(16)):
        out = run(toy.images(), toy.mask(hidden, hidden))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))
        assert all(v.all() == bool(hidden) for v in out["masks_valid"])


def test_dropping_tokens_is_what_masked_attention_computes():
    """Visible tokens of a sample with padding, against the sample alone without any."""
    cfg = toy.config(encoder={"rope": True})
    mask = toy.mask(range(3), range(9))
    whole = predict(cfg)(toy.images(), mask)["context_features"]
    one = predict(cfg, max_context=7)(toy.images()[1:], mask[1:])["context_features"]
    np.testing.assert_allclose(whole[1, :8], one[0], atol=1e-5)


def test_remat_and_bfloat16_change_cost_and_precision_only():
    _, variables = toy.network(toy.config(use_fpn=True))
    out = predict(toy.config(use_fpn=True))(toy.images(), MASK)["predictions"][0]
    for encoder, dtype, limit in (
        ({"remat": True}, jnp.float32, 1e-5),
        ({"dtype": "bfloat16"}, jnp.bfloat16, 0.2),
    ):
        model = HJEPA(toy.config(encoder, use_fpn=True))
        other = toy.compiled(functools.partial(model.apply, variables))(toy.images(), MASK)
        assert other["predictions"][0].dtype == dtype
        difference = np.abs(out - other["predictions"][0].astype(np.float32))[:, :9]
        assert difference.mean() < limit


def test_drop_path_depends_on_the_key():
    run = predict(toy.config({"drop_path": 0.5, "depth": 2}), train=True)
    a, b, again = (
        run(toy.images(), MASK, rngs={"dropout": jax.random.key(k)})["context_features"]
        for k in (0, 1, 0)
    )
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, again)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hierarchies": 1}, "2, 3 or 4"),
        ({"num_hierarchies": 5}, "2, 3 or 4"),
        ({"fpn_fusion_method": "sum"}, "add, concat, attention"),
        ({"fpn_feature_dim": 0, "use_fpn": True}, "fpn_feature_dim=0"),
        ({"fpn_level_dims": (4, 4)}, "2 widths for 3 levels"),
        ({"pooling": "3d"}, "1d, 2d"),
        ({"predictor_heads": 3}, "predictor_heads=3 does not divide"),
        ({"predictor_depth": 0}, "predictor_depth"),
        ({"compat": True, "pooling": "2d"}, "compat"),
        ({"encoder": {"image_size": (16, 18)}}, r"multiples of patch=4"),
        ({"encoder": {"patch": 5}}, r"multiples of patch=5"),
        ({"encoder": {"heads": 5}}, "heads=5 does not divide"),
        ({"encoder": {"heads": 8, "rope": True}}, "multiples of 4"),
        ({"encoder": {"image_size": 4}}, "use fewer levels"),
        ({"encoder": {"drop_path": 1.0}}, "drop_path"),
    ],
)
def test_bad_sizes_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        toy.config(**change)


def test_bad_inputs_are_refused():
    model, variables = toy.network(toy.config())
    images, mask = toy.images(), toy.mask((1,), (2,))

    def call(*args, **options):
        jax.eval_shape(functools.partial(model.apply, variables, **options), *args)

    for bad, words in (
        ((images[:, :8], mask), r"\[B, 16, 16, 3\]"),
        ((jnp.zeros((2, 16, 16, 3), jnp.int32), mask), "uint8 pixels or normalised floats"),
        ((images, mask[:1]), r"mask has shape \[1, 16\], \[2, 16\]"),
        ((images, np.zeros((2, 4, 4))), r"mask has shape"),
        ((images, np.zeros((2, 16), complex)), "give bool"),
    ):
        with pytest.raises(ShapeError, match=words):
            call(*bad)
    for room in (0, 3, 17, 4.0):
        with pytest.raises(ShapeError, match=r"max_masked=.* from 4 to 16"):
            call(images, mask, max_masked=room)
    with pytest.raises(ShapeError, match="context has shape"):
        call(images, mask, context=mask[:, :3])


def test_pixels_are_normalised_and_masks_of_any_type_agree():
    run = predict(toy.config(), return_all_levels=False)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    floats = ((pixels / 255 - mean) / std).astype(np.float32)
    outs = [run(x, m) for x, m in ((pixels, MASK), (floats, MASK.astype(np.float32)))]
    assert [len(outs[0][k]) for k in ("predictions", "targets", "masks_valid")] == [1, 1, 1]
    np.testing.assert_allclose(*(o["predictions"][0] for o in outs), atol=1e-4)


def test_configs_compare_and_hash():
    assert toy.config() == toy.config() and hash(toy.config()) == hash(toy.config())
    assert dataclasses.replace(toy.config(), use_fpn=True) != toy.config()
