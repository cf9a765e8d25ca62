"""FeatherFace: light face detectors with five landmarks, and V2 taught by V1.

    python -m jaxcomp.main --config=configs/featherface.py:v1
    python -m jaxcomp.main --config=configs/featherface.py:v2 --config.distil.teacher=RUN_OF_V1
    python -m jaxcomp inspect --config=configs/featherface.py:v2 --config.data.height=640

Arguments: the network, `v1` (default, 489,015 parameters), `v2` (256,156), `v1_original` (592,371),
`v1_24` (321,041: what "out_channel = 24" really gives) or `retinaface` (426,608); the profile,
`embedded` (default: procedural faces, 160x160) or `widerface` (--config.data.dir=FOLDER, 640x640,
the documents' 350 and 400 epochs).

The embedded V1 takes 5 minutes of one core of an AMD EPYC (7 the first time, with compiling) and
reaches a mean AP of 0.77; V2 4 (6) minutes, 0.56 with V1 as its teacher.

V2 learns from a teacher where --config.distil.teacher names one: a run directory, a
`face_detector.npz` or a PyTorch file. Without it V2 trains alone, as all others do. See
docs/faces.md for every key and the flags of the original's scripts.
"""

from jaxcomp.config import base_config, parse_args

VARIANTS = ("v1", "v2", "v1_original", "v1_24", "retinaface")
# As models.featherface_config.VARIANTS, whose defaults are V1.
PARTS = {
    "v1": {},
    "v1_original": {
        "features": 64, "cells": 3, "body_gates": "cbam", "pyramid_gates": "cbam",
        "mixer": "unshuffle_conv",
    },
    "v1_24": {"features": 24, "cells": 3, "body_gates": "cbam", "mixer": "shuffle"},
    "v2": {
        "features": 32, "pyramid": "bifpn_light", "body_gates": "shared",
        "pyramid_gates": "shared", "context": "grouped", "mixer": "shuffle_grouped",
    },
    "retinaface": {"features": 64, "pyramid": "fpn", "context": "plain", "mixer": "none"},
}  # fmt: skip
V1 = {
    "features": 56, "pyramid": "bifpn", "cells": 2, "body_gates": "none", "pyramid_gates": "none",
    "context": "deformable", "mixer": "unshuffle",
}  # fmt: skip
LOSS = {
    "box_weight": 2.0, "class_weight": 1.0, "landmark_weight": 1.0,
    "positive_iou": 0.35, "forced_iou": 0.2, "negatives": 7.0,
}  # fmt: skip
AUGMENT = {  # as data.face_augment.FaceAugmentation
    "scales": (0.3, 0.45, 0.6, 0.8, 1.0), "tries": 250, "colours": 0.5, "brightness": 32.0,
    "contrast": (0.5, 1.5), "hue": 18.0, "mirror": 0.5,
}  # fmt: skip
# Faces of the embedded images are 8 to 120 pixels high.
EMBEDDED_SIZES = ((12.0, 20.0), (32.0, 52.0), (80.0, 128.0))
SIZES = ((16.0, 32.0), (64.0, 128.0), (256.0, 512.0))


def get_config(arg_string: str = ""):
    """The config of a network and a profile."""
    args = parse_args(arg_string, variant=VARIANTS, profile=("embedded", "widerface"))
    wide, second = args.profile == "widerface", args.variant == "v2"
    sizes = {"min_sizes": SIZES if wide else EMBEDDED_SIZES, "steps": (8, 16, 32)}
    limits = {"score_threshold": 0.02, "nms_iou": 0.4, "candidates": 5000, "max_detections": 750}
    starts = {"pretrained": "", "body": "", "variances": (0.1, 0.2)}
    config = base_config(
        model=V1 | PARTS[args.variant] | sizes | limits | starts,
        loss=LOSS,
        augment=AUGMENT,
        data={"smallest": 8.0, "largest": 120.0},
        distil={
            "teacher": "", "alpha_initial": 0.8, "alpha_final": 0.5, "strategy": "cosine",
            "temperature": 4.0, "feature_weight": 0.1, "boxes": True, "body_only": False,
        },
        regularise={"mixup": 0.0, "cutmix": 0.0, "dropblock": 0.0, "block": 3},
        training={"monitor_gradients": True, "smart_stopping": {
            "patience": 0, "min_epoch": 100, "window_start": 100, "window_end": 120,
            "min_delta": 1e-4,
        }},
        evaluation={"pictures": 8, "ap_every": 0, "ap_images": 100, "protocol": "original",
                    "heights": (32.0, 16.0, 0.0)},
    )  # fmt: skip
    config.task = "face"
    config.profile = args.profile
    config.model.name = args.variant
    config.data.augment = True
    config.alerts.grad_norm = 1000.0  # of a fresh body some hundreds are usual
    training = config.training
    training.rate_weight = 0.0
    training.early_stopping.patience = 0
    training.update(optimiser="adamw", weight_decay=5e-4, learning_rate=1e-3)
    training.lr_schedule.update(name="warmup_cosine", min_lr=1e-6)
    if wide:
        config.data.update(name="widerface", train_size=0, val_size=0, height=640, width=640)
        config.data.update(max_boxes=256, workers=4)
        config.evaluation.update(protocol="vga640", heights=(50.0, 30.0, 10.0))
        training.update(batch_size=32, epochs=400 if second else 350, clip_norm=1.0)
        training.lr_schedule.warmup_epochs = 5
        training.smart_stopping.patience = 20 if second else 0
    else:
        # Many small steps: of so few images they teach more than few large ones, V2 above all.
        config.data.update(name="faces", train_size=1000, val_size=200, height=160, width=160)
        config.data.max_boxes = 64
        training.update(batch_size=4 if second else 8, epochs=8 if second else 10, clip_norm=5.0)
        training.learning_rate = 2e-3
        training.lr_schedule.warmup_epochs = 1
        training.smart_stopping.update(min_epoch=5, window_start=6, window_end=8)
    return config
