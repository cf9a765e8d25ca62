"""The ready-made object: creation from arguments and configs, calls on arrays, bad arguments."""

import hjepa_toy as toy
import numpy as np
import pytest

from jaxcomp import config as config_lib
from jaxcomp.errors import CheckpointError, ConfigError, DataError, NonFiniteError, ShapeError
from jaxcomp.interop.hjepa_weights import hjepa_from_torch, hjepa_to_torch, tensor_table
from jaxcomp.loaders.hjepa import HJEPAModel, create_hjepa, create_hjepa_from_config, load_hjepa
from jaxcomp.models.vit import SIZES, encoder_type

SMALL = {
    "encoder": {"patch": 4, "width": 16, "depth": 1, "heads": 2},
    "predictor_depth": 1,
    "predictor_num_heads": 2,
}


@pytest.fixture(scope="module")
def model():
    cfg = toy.config(use_fpn=True, fpn_feature_dim=8)
    return HJEPAModel(cfg, toy.network(cfg)[1])


def test_lists_are_as_long_as_the_fullest_sample(model):
    out = model(toy.images(), toy.mask(range(7), range(10)).astype(np.float32))
    for name in ("predictions", "targets"):
        assert [x.shape for x in out[name]] == [(2, 10, 16), (2, 5, 16), (2, 2, 16)]
    assert [int(m.sum()) for m in out["masks_valid"]] == [17, 8, 4]


def test_nothing_hidden_gives_no_valid_token_and_no_nan(model):
    out = model(toy.images(), toy.mask((), ()))
    assert [x.shape[1] for x in out["predictions"]] == [4, 2, 1]
    assert not any(m.any() for m in out["masks_valid"])
    assert all(np.isfinite(x).all() for x in out["predictions"])


def test_features_by_level_and_encoder(model):
    features = [model.extract_features(toy.images(), level) for level in range(3)]
    assert [x.shape for x in features] == [(2, 16, 16), (2, 8, 16), (2, 4, 16)]
    context = model.extract_features(toy.images(), 0, use_target_encoder=False)
    assert np.abs(context - features[0]).max() > 1e-3
    for level in (-1, 3, 1.0, True, None):
        with pytest.raises(ConfigError, match=r"whole number from 0 to 2"):
            model.extract_features(toy.images(), level)
    with pytest.raises(ShapeError, match=r"\[B, 16, 16, 3\]"):
        model.extract_features(np.zeros((2, 3, 16, 16), np.float32))


def test_creation_checks_every_argument():
    for change, words in (
        ({"encoder_type": "vit_bas_patch16_224"}, "tiny, small, base, large, huge"),
        ({"encoder_type": 3}, "not a name"),
        ({"embed_dim": 512}, "512, but 'tiny' has 16"),
        ({"img_size": 18}, "multiples of patch=4"),
        ({"num_hierarchies": 5}, "2, 3 or 4"),
        ({"use_fpn": True, "fpn_fusion_method": "cat"}, "add, concat, attention"),
        ({"use_fpn": True, "fpn_feature_dim": -1}, "fpn_feature_dim=-1"),
        ({"fusion": "add"}, "no option 'fusion'"),
    ):
        with pytest.raises(ConfigError, match=words):
            create_hjepa(**({"encoder_type": "tiny", "img_size": 16} | SMALL | change))


def test_names_of_encoders():
    assert encoder_type("vit_small_patch14_224") == {**SIZES["small"], "patch": 14,
                                                     "image_size": 224}  # fmt: skip
    assert encoder_type("huge") == SIZES["huge"]
    for name in (
        "vit_giant",
        "base_patch16",
        "vit_base_patchx",
        "vit_base_patch0",
        "vit",
        "vit_bas_patch16",
    ):
        with pytest.raises(ConfigError, match="unknown"):
            encoder_type(name)


def test_yaml_of_the_original_and_our_config_make_models(monkeypatch):
    made = []
    monkeypatch.setattr("jaxcomp.loaders.hjepa.init_variables", lambda m, key: made.append(m) or {})
    create_hjepa_from_config(
        {
            "model": {
                "encoder_type": "vit_base_patch16_224",
                "embed_dim": 768,
                "num_hierarchies": 4,
                "predictor": {"depth": 6, "num_heads": 12, "mlp_ratio": 4.0},
                "fpn": {"use_fpn": True, "feature_dim": 512, "fusion_method": "concat"},
                "ema": {"momentum": 0.996},
            },
            "data": {"image_size": 224},
            "training": {"use_gradient_checkpointing": True},
        }
    )
    create_hjepa_from_config(
        config_lib.load_config("configs/hjepa.py:fpn=add,base,feature_dim=512")
    )
    first, second = (m.cfg for m in made)
    assert first.level_dims == (512,) * 4 and first.encoder.remat and first.heads == 12
    assert second.level_dims == (512,) * 3 and second.encoder.grid == (14, 14)
    assert second.fpn_fusion_method == "add" and second.use_fpn
    with pytest.raises(ConfigError, match="no section 'model'"):
        create_hjepa_from_config({})


def test_weights_of_the_original_round_trip_and_wrong_ones_are_refused(model):
    cfg = model.cfg
    state = hjepa_to_torch(model.variables, cfg)
    assert len(state) == len(tensor_table(cfg))
    wrapped = {f"module.{k}": v for k, v in state.items()}
    back = hjepa_to_torch(hjepa_from_torch(wrapped, cfg), cfg)
    assert all(np.array_equal(back[k], v) for k, v in state.items())
    name = "fpn_lateral_convs.0.0.weight"
    with pytest.raises(CheckpointError, match=r"1 names are missing \(fpn_lateral"):
        hjepa_from_torch({k: v for k, v in state.items() if k != name}, cfg)
    with pytest.raises(CheckpointError, match=r"is \[8\], needed \[8, 16\]"):
        hjepa_from_torch(state | {name: np.zeros(8)}, cfg)
    with pytest.raises(NonFiniteError, match=name):
        hjepa_from_torch(state | {name: np.full((8, 16), np.inf)}, cfg)
    with pytest.raises(ConfigError, match="no counterpart"):
        tensor_table(toy.config(use_fpn=True, fpn_bottom_up=True))
    with pytest.raises(CheckpointError, match="no weights"):
        load_hjepa("nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.height=30", r"nearest is 32"),
        ("model.num_hierarchies=5", "at most 4"),
        ("model.fpn_fusion_method=sum", "add, attention, concat"),
        ("data.name=scenes", "textures, digits, pictures"),
        ("masking.max_context=0.0", "more than 0"),
        ("loss.type=l1", "did you mean|Valid"),
        ("ema.end=1.5", "at most 1"),
        ("model.heads=7", "does not divide"),
    ],
)
def test_configs_out_of_range_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        config_lib.load_config("configs/hjepa.py:fpn=add", [change])


def test_folders_give_labels_by_class_and_bad_ones_are_refused(tmp_path):
    from PIL import Image

    from jaxcomp.data.pictures import augmented, load_pictures

    config = config_lib.load_config(
        "configs/hjepa.py", ["data.name=pictures", f"data.dir={tmp_path}", "data.val_size=1"]
    )
    with pytest.raises(DataError, match="holds 0 pictures"):
        load_pictures(config)
    for i, name in enumerate(("cat", "dog", "dog")):
        (tmp_path / name).mkdir(exist_ok=True)
        picture = np.full((20 + i, 30, 3), 40 * i, np.uint8)
        Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    sets = load_pictures(config)
    assert sets["train"].classes == ("cat", "dog") and len(sets["train"]) == 2
    for one in sets.values():
        for row, label in enumerate(one.labels):
            assert (one.load(row)[0, 0, 0] == 0) == (label == 0)
    rng = np.random.default_rng(0)
    out = augmented(sets["train"].load(0), 12, 8, rng, config.augment)
    assert out.shape == (12, 8, 3) and out.dtype == np.uint8
    with config.unlocked():
        config.data.dir = ""
    with pytest.raises(DataError, match="no folder"):
        load_pictures(config)
