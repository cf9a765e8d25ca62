"""H-JEPA: features at several scales, learned without labels, with or without a feature pyramid.

    python -m jaxcomp.main --config=configs/hjepa.py:fpn=add         # embedded pictures
    python -m jaxcomp.main --config=configs/hjepa.py:fpn=add,base,feature_dim=512 \
        --config.data.dir=FOLDER                                     # a folder of pictures, 224 px
    python -m jaxcomp inspect --config=configs/hjepa.py:fpn=add,base,feature_dim=512

Arguments: `fpn=none` (default), `add`, `concat` or `attention`; a size, `toy` (default), `tiny`,
`small`, `base`, `large` or `huge`; `feature_dim=` of the pyramid (0: as wide as the network);
`levels=` 2 to 4; `patch=` (0: 4 pixels embedded, else 16); a profile, `embedded` for generated
32-pixel pictures or `imagenet` for a folder at 224 pixels (with folders by class for the probes).
The default profile is `embedded` for the toy and `imagenet` for the others.
--config.data.name=digits reads scikit-learn's digits instead; --config.data.name=tfds
--config.data.dir=FOLDER what TensorFlow Datasets prepared (cifar10, stl10, imagenet2012, ...).
"""

from jaxcomp.config import base_config, parse_args

SIZES = {
    "toy": {"width": 64, "depth": 3, "heads": 4},
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}

MODEL = {
    "mlp_ratio": 4.0,
    "positions": "learned",  # or "sincos"
    "rope": False,
    "layer_scale": 0.0,  # start of the gains; 0: none
    "drop_path": 0.0,
    "remat": False,  # less memory, one more forward pass
    "predictor_heads": 0,  # 0: 12 where that divides the width
    "predictor_mlp_ratio": 4.0,
    "fpn_level_dims": (),  # one width for each level instead of fpn_feature_dim
    "fpn_upsampling": "linear",  # or "learned"
    "fpn_bottom_up": False,  # a second path, from fine to coarse
    "pooling": "1d",  # of the list of tokens; "2d": of the image
    "target_norm": "none",  # or "token", "centred", "whitened"
    "init": "small",  # or "glorot"
    "compat": False,  # the original's arithmetic, flaws included
    "pretrained": "",  # hjepa.npz, a run directory, or the original's PyTorch weights
}

MASKING = {
    "kind": "multiblock",  # or "hierarchical", "random"
    "targets": 4,
    "target_scale": (0.15, 0.2),
    "target_aspect": (0.75, 1.5),
    "context_scale": (0.85, 1.0),
    "max_masked": 0.6,  # shares of the patches: static sizes of what is computed
    "max_context": 0.5,
}


def get_config(arg_string: str = ""):
    """The config of a size, a fusion and a profile."""
    args = parse_args(
        arg_string,
        fpn=("none", "add", "concat", "attention"),
        size=tuple(SIZES),
        profile=("default", "embedded", "imagenet"),
        feature_dim=0,
        levels=3,
        patch=0,
    )
    embedded = args.profile == "embedded" or (args.profile, args.size) == ("default", "toy")
    pyramid = {
        "num_hierarchies": args.levels,
        "use_fpn": args.fpn != "none",
        "fpn_feature_dim": args.feature_dim,  # 0: the width of the network
        "fpn_fusion_method": "add" if args.fpn == "none" else args.fpn,
    }
    model = {"patch": args.patch or (4 if embedded else 16), **SIZES[args.size], **MODEL, **pyramid}
    model["predictor_depth"] = 2 if args.size == "toy" else 6
    config = base_config(
        model=model,
        masking=MASKING,
        loss={
            "type": "smoothl1" if embedded else "mse",
            "delta": 1.0,
            "weights": (1.0, 0.5, 0.25) if args.fpn == "none" else (1.0, 0.7, 0.5),
            "normalise": False,
        },
        ema={"start": 0.98 if embedded else 0.996, "end": 1.0, "warmup_steps": 0,
             "shape": "linear"},
        augment={"crop": 0.6 if embedded else 0.3, "flip": 0.5, "jitter": 0.0 if embedded else 0.2},
        training={"decay_kernels_only": True, "weight_decay_end": 0.05, "betas": (0.9, 0.95)},
        alerts={"target_std": 0.05, "target_rankme": 3.0},
        data={"train_split": "", "val_split": "", "probe_split": ""},  # of TFDS; "": the usual
        evaluation={"pictures": 8, "probe_rows": 2000, "attentive_rows": 1000},
    )  # fmt: skip
    config.task = "jepa"
    config.profile = "embedded" if embedded else "imagenet"
    config.model.name = f"hjepa_{args.size}"
    config.alerts.grad_norm = 1000.0  # of a fresh network some tens are usual
    config.data.augment = True
    training = config.training
    training.rate_weight = 0.0
    training.early_stopping.patience = 0
    training.update(optimiser="adamw", weight_decay=0.05, clip_norm=3.0)
    training.lr_schedule.update(name="warmup_cosine", min_lr=1e-6)
    if embedded:
        # Without these two a small network learns where a patch is, and little else: docs/hjepa.md.
        config.model.update(target_norm="whitened", init="glorot", pooling="2d")
        config.data.update(name="textures", height=32, width=32, train_size=4000, val_size=1000)
        training.update(batch_size=64, epochs=6, learning_rate=2e-3)
        training.lr_schedule.update(warmup_epochs=1)
    else:
        config.data.update(name="pictures", height=224, width=224, train_size=0, val_size=0)
        config.data.update(num_threads=8)
        config.model.dtype = "bfloat16"
        training.update(batch_size=128, epochs=300, learning_rate=1.5e-4)
        training.lr_schedule.update(warmup_epochs=40)
    return config
