"""ViT-S/16 with three levels against numbers of the original network with the same weights."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest

from jaxcomp.interop.hjepa_weights import hjepa_from_torch, hjepa_to_torch
from jaxcomp.models.hjepa import HJEPA, HJEPAConfig
from jaxcomp.models.token_pooling import pool_mask
from jaxcomp.models.vit import SIZES, ViTConfig
from jaxcomp.tasks.jepa_loss import JEPALossConfig, jepa_losses

ENCODER = ViTConfig(**SIZES["small"])
MODES = {
    "none": HJEPAConfig(ENCODER, compat=True),
    "add256": HJEPAConfig(ENCODER, use_fpn=True, fpn_feature_dim=256, compat=True),
    "concat256": HJEPAConfig(
        ENCODER, use_fpn=True, fpn_feature_dim=256, fpn_fusion_method="concat", compat=True
    ),
}
# The order of the rows of the stored losses.
LOSSES = [
    (kind, normalise, masked)
    for kind in ("mse", "smoothl1", "huber")
    for normalise in (False, True)
    for masked in (False, True)
]
ROOM = 98
UNEQUAL = "mask_unequal"
close = functools.partial(oracle_files.close, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def oracle(shared):
    found = oracle_files.read(shared / "oracles", "hjepa_vits_fpn")
    rng = np.random.default_rng([found.meta["seed"], zlib.crc32(b"hjepa_images")])
    images = rng.standard_normal((2, 3, 224, 224)).astype(np.float32)
    found.images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return found


@pytest.fixture(scope="module", params=MODES)
def run(request, oracle):
    """(mode, outputs by mask name, features of whole images); one compilation for a mode."""
    mode, cfg = request.param, MODES[request.param]
    state = oracle.recipe.state_dict(oracle.meta["manifest"][mode], oracle.meta["seed"])
    variables = hjepa_from_torch(state, cfg)
    count = sum(x.size for x in jax.tree.leaves(variables))
    assert count == oracle.meta["parameter_count"][mode]
    back = hjepa_to_torch(variables, cfg)
    assert all(np.array_equal(back[k], v) for k, v in state.items()) and len(back) == len(state)

    def everything(model, images, mask):
        out = model(images, mask, max_masked=ROOM)
        return out, model.extract(images), model.extract(images, use_target_encoder=False)[0]

    apply = jax.jit(functools.partial(HJEPA(cfg).apply, method=everything))
    variables = jax.tree.map(jnp.asarray, variables)
    found = {n: apply(variables, oracle.images, oracle.arrays[n]) for n in ("mask98", UNEQUAL)}
    return mode, {k: v[0] for k, v in found.items()}, found["mask98"][1:]


def test_encoders_and_predictor(oracle, run):
    out = run[1]["mask98"]
    close(oracle, "context_features", out["context_features"])
    close(oracle, "target_features", out["target_features"])
    close(oracle, "predictor_output", out["predictor_output"])
    wanted = oracle.arrays["context_tokens_first3"]
    np.testing.assert_allclose(out["context_features"][:, :3], wanted, atol=2e-4 * wanted.max())


def test_predictions_and_targets(oracle, run):
    mode, outputs, _ = run
    for prefix, out in ((mode, outputs["mask98"]), (f"{mode}_unequal", outputs[UNEQUAL])):
        for level in range(3):
            for name, noise in (("predictions", "pred"), ("targets", "target")):
                limit = oracle.meta["fp32_vs_fp64_maxabs"][f"{mode}_{noise}{level}"]
                close(oracle, f"{prefix}_{name}_{level}", out[name][level], noise=limit)


def test_features_of_whole_images(oracle, run):
    mode, _, (target, context) = run
    for level, features in enumerate(target):
        close(oracle, f"{mode}_extract_{level}", features)
    close(oracle, f"{mode}_extract_0_context_encoder", context)


def test_masks_are_pooled_as_masks(oracle, run):
    for name, suffix in (("mask98", "98"), (UNEQUAL, "unequal")):
        counts = [np.asarray(m).sum(1) for m in run[1][name]["masks_valid"]]
        np.testing.assert_array_equal(counts, oracle.arrays[f"pooled_mask_counts_{suffix}"])


def test_losses(oracle, run):
    mode, outputs, _ = run
    for name, suffix in (("mask98", "98"), (UNEQUAL, "unequal")):
        out = outputs[name]
        for row, (kind, normalise, masked) in enumerate(LOSSES):
            cfg = JEPALossConfig(kind, 0.5, oracle.meta["loss_weights"], normalise, per_token=True)
            valid = out["masks_valid"] if masked else None
            found = jepa_losses(out["predictions"], out["targets"], valid, cfg)
            keys = ("loss", "loss_h0", "loss_h1", "loss_h2", "loss_unweighted")
            np.testing.assert_allclose(
                [float(found[k]) for k in keys],
                oracle.arrays[f"{mode}_loss_{suffix}"][row],
                rtol=1e-4,
                err_msg=f"{suffix} {kind} {normalise} {masked}",
            )


def test_pooled_masks_alone(oracle):
    hidden = oracle.arrays[UNEQUAL].astype(bool)
    counts = hidden.sum(1)
    valid = jnp.arange(ROOM)[None] < counts[:, None]
    for level, wanted in enumerate(oracle.arrays["pooled_mask_counts_unequal"]):
        np.testing.assert_array_equal(pool_mask(valid, None, 2**level).sum(1), wanted)
