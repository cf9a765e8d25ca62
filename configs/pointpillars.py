"""PointPillars: the lidar detector whose bird's-eye-view features the residual quantiser sends.

    python -m jaxcomp.main --config=configs/pointpillars.py          # embedded lidar scenes
    python -m jaxcomp.main --config=configs/pointpillars.py:kitti    # the original's full size

The first takes 8.1 minutes on 2 idle cores of an AMD EPYC, making the scenes included (12.9 minutes
of processor time), and gives 88.0 % mean 3-D AP (moderate, 40 recalls; Car 89.1,
Pedestrian 80.7, Cyclist 94.2) on 150 held-out synthetic sweeps: the weights that ship with the
package. The second was run for a few steps only, see docs/lidar.md.

The `kitti` profile reads KITTI from --config.data.dir=FOLDER or KITTI_ROOT (sweeps in
velodyne_reduced or velodyne) and can start from --config.model.pretrained=FILE, the original's
`epoch_160.pth` or a `pointpillars.npz` of ours.

Arguments: `embedded` (default) or `kitti`. See docs/lidar.md.
"""

from jaxcomp.config import base_config, parse_args

CLASSES = ("Pedestrian", "Cyclist", "Car")

EMBEDDED_MODEL = {
    "low": (0.0, -12.8, -3.0),
    "high": (44.8, 12.8, 1.0),
    "cell": (0.2, 0.2, 4.0),
    "max_points": 16,
    "max_pillars": 4096,
    "max_pillars_eval": 4096,
    "encoder_features": 32,
    "block_features": (32, 64, 96),
    "block_convs": (1, 3, 3),
    "block_strides": (2, 2, 2),
    "neck_features": (32, 32, 32),
    "anchor_sizes": ((0.6, 0.75, 1.74), (0.6, 1.76, 1.75), (1.7, 4.1, 1.57)),
    "anchor_bottoms": (-1.9, -1.9, -1.95),
    "anchor_yaws": (0.0, 1.57),
    "positive_iou": (0.4, 0.45, 0.55),
    "negative_iou": (0.25, 0.3, 0.4),
    "candidates": 100,
    "score_threshold": 0.1,
    "nms_iou": 0.01,
    "max_detections": 50,
    "norm_momentum": 0.95,  # of a run of some thousand steps
}

KITTI_MODEL = {
    "low": (0.0, -39.68, -3.0),
    "high": (69.12, 39.68, 1.0),
    "cell": (0.16, 0.16, 4.0),
    "max_points": 32,
    "max_pillars": 16000,
    "max_pillars_eval": 40000,
    "encoder_features": 64,
    "block_features": (64, 128, 256),
    "block_convs": (3, 5, 5),
    "block_strides": (2, 2, 2),
    "neck_features": (128, 128, 128),
    "anchor_sizes": ((0.6, 0.8, 1.73), (0.6, 1.76, 1.73), (1.6, 3.9, 1.56)),
    "anchor_bottoms": (-0.6, -0.6, -1.78),
    "anchor_yaws": (0.0, 1.57),
    "positive_iou": (0.5, 0.5, 0.6),
    "negative_iou": (0.35, 0.35, 0.45),
    "candidates": 100,
    "score_threshold": 0.1,
    "nms_iou": 0.01,
    "max_detections": 50,
    "norm_momentum": 0.99,
}

LOSS = {"class_weight": 1.0, "box_weight": 2.0, "direction_weight": 0.2}
LOSS |= {"alpha": 0.25, "gamma": 2.0, "beta": 1.0 / 9.0}

# As data.lidar_augment.LidarAugmentation; its range is that of the model.
KITTI_AUGMENT = {
    "fill": (10, 10, 15),  # objects of each class that a sweep is filled up to
    "fill_points": (10, 10, 5),  # that an object needs for that
    "shift": (0.25, 0.25, 0.25),
    "object_turn": 0.15707963267,
    "tries": 100,
    "flip": 0.5,
    "turn": 0.7853981633974483,
    "scale": (0.95, 1.05),
}
EMBEDDED_AUGMENT = KITTI_AUGMENT | {
    "fill": (6, 6, 6),
    "shift": (0.2, 0.2, 0.05),
    "tries": 20,
    "turn": 0.15,
}


def get_config(arg_string: str = ""):
    """The config of a profile."""
    args = parse_args(arg_string, profile=("embedded", "kitti"))
    kitti = args.profile == "kitti"
    cycle = {"peak_at": 0.4, "start_div": 10.0, "end_div": 1e4}
    cycle |= {"high": 0.95, "low": 0.85025, "b2": 0.99}  # of Adam's decay rates
    config = base_config(
        classes=CLASSES,
        model=(KITTI_MODEL if kitti else EMBEDDED_MODEL) | {"pretrained": ""},
        loss=LOSS,
        augment=KITTI_AUGMENT if kitti else EMBEDDED_AUGMENT,
        data={"beams": 40, "azimuths": 384, "pad_points": 40960 if kitti else 16384},
        training={"one_cycle": cycle},
        evaluation={"pictures": 8},
    )
    config.task = "pointpillars"
    config.profile = args.profile
    config.model.name = "pointpillars" if kitti else "pointpillars_small"
    config.data.augment = True
    training = config.training
    training.rate_weight = 0.0
    training.early_stopping.patience = 0
    training.lr_schedule.update(name="one_cycle", min_lr=0.0)
    training.update(optimiser="adamw", weight_decay=0.01)
    if kitti:
        config.data.update(name="kitti", train_size=0, val_size=0, max_boxes=96, workers=4)
        training.update(batch_size=6, epochs=160, learning_rate=2.5e-3, clip_norm=0.0)
        config.alerts.grad_norm = 100.0  # some 30 at the start are usual
    else:
        config.data.update(train_size=1000, val_size=150, max_boxes=32)
        training.update(batch_size=4, epochs=5, learning_rate=2.5e-3, clip_norm=10.0)
    return config
