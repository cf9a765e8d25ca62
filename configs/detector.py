"""Faster R-CNN with a feature pyramid: the network whose features the codecs send.

    python -m jaxcomp.main --config=configs/detector.py          # embedded scenes
    python -m jaxcomp.main --config=configs/detector.py:kitti    # the documents' full size

The `kitti` profile reads KITTI from --config.data.dir=FOLDER or KITTI_ROOT and can start from
torchvision's weights, --config.model.pretrained=FILE.pth.

Arguments: `embedded` (default) or `kitti`. See README.md for the cost and the accuracy.
"""

from jaxcomp.config import base_config, parse_args

CLASSES = ("Car", "Pedestrian", "Cyclist")

EMBEDDED_MODEL = {
    "num_classes": 4,
    "stem_features": 24,
    "stage_blocks": (1, 2, 2, 1),
    "stage_features": (32, 48, 96, 128),
    "bottleneck": False,
    "fpn_features": 64,
    "anchor_sizes": (12.0, 24.0, 48.0, 96.0, 160.0),
    "anchor_ratios": (0.5, 1.0, 2.0),
    "rpn_convs": 1,
    "rpn_pre_nms": 200,
    "rpn_post_nms": 100,
    "rpn_pre_nms_train": 200,
    "rpn_post_nms_train": 128,
    "rpn_iou": 0.7,
    "pool_size": 7,
    "canonical_size": 56.0,
    "box_convs": 1,
    "box_conv_features": 64,
    "box_fc": 128,
    "score_threshold": 0.05,
    "detection_iou": 0.5,
    "max_detections": 50,
}

KITTI_MODEL = {
    "num_classes": 3,
    "stem_features": 64,
    "stage_blocks": (3, 4, 6, 3),
    "stage_features": (256, 512, 1024, 2048),
    "bottleneck": True,
    "fpn_features": 256,
    "anchor_sizes": (32.0, 64.0, 128.0, 256.0, 512.0),
    "anchor_ratios": (0.5, 1.0, 2.0),
    "rpn_convs": 2,
    "rpn_pre_nms": 1000,
    "rpn_post_nms": 1000,
    "rpn_pre_nms_train": 2000,
    "rpn_post_nms_train": 2000,
    "rpn_iou": 0.7,
    "pool_size": 7,
    "canonical_size": 224.0,
    "box_convs": 4,
    "box_conv_features": 256,
    "box_fc": 1024,
    "score_threshold": 0.05,
    "detection_iou": 0.5,
    "max_detections": 100,
}


START = {
    "pretrained": "",  # .pth, .safetensors, detector.npz or a run directory
    "frozen_stages": 0,  # of the body: 1 the stem, 2 with the first stage, ..., 5 all of it
    "freeze_norm": False,  # True: batch normalisation keeps its statistics
}


def get_config(arg_string: str = ""):
    """The config of a profile."""
    args = parse_args(arg_string, profile=("embedded", "kitti"))
    kitti = args.profile == "kitti"
    sampling = {"anchors": 256, "regions": 512} if kitti else {"anchors": 128, "regions": 64}
    config = base_config(
        classes=CLASSES[:2] if kitti else CLASSES,
        model=(KITTI_MODEL if kitti else EMBEDDED_MODEL) | START,
        sampling=sampling,
        evaluation={"pictures": 8, "pictures_every": 0},
    )
    config.task = "detect"
    config.profile = args.profile
    config.model.name = "faster_rcnn_resnet50_fpn_v2" if kitti else "faster_rcnn_small_fpn_v2"
    config.model.in_channels = 3
    config.data.augment = True
    training = config.training
    training.rate_weight = 0.0
    training.weight_decay = 1e-4
    training.early_stopping.patience = 0
    if kitti:
        # 800 and 1333 are torchvision's; every KITTI frame then fits 416 x 1344.
        config.data.update(name="kitti", dir="", train_size=0, val_size=0)
        config.data.update(resize="shortest", height=416, width=1344, max_boxes=64)
        config.evaluation.pictures_every = 1
        training.update(optimiser="sgd", batch_size=16, epochs=20, learning_rate=0.002)
        training.update(accumulation=2, clip_norm=0.0)
        training.early_stopping.update(patience=7, min_delta=1e-4)
        training.lr_schedule.update(name="warmup_cosine", warmup_epochs=2, min_lr=1e-6)
    else:
        config.data.update(train_size=2000)
        training.update(optimiser="adamw", batch_size=8, epochs=10, learning_rate=1e-3)
        training.update(clip_norm=5.0)
        training.lr_schedule.update(name="warmup_cosine", warmup_epochs=1, min_lr=1e-6)
    return config
