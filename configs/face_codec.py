"""A codec for the pyramid of a face detector, on a folder of photos.

    python -m jaxcomp.main --config=configs/face_codec.py
        --config.data.dir=PHOTOS --config.detector.path=mobilenet0.25_Final.pth
    python -m jaxcomp.main --config=configs/face_codec.py:v1
        --config.data.dir=PHOTOS --config.detector.path=RUN_OF_V1

Arguments: the width of the detector's pyramid, `retinaface` (64 channels, default), `v1` (56),
`v1_original` (64), `v1_24` (24) or `v2` (32); the treatment of its three levels, `joint` (default:
one map, one stream), `random` (one codec for each level in turn) or `level` (one alone:
--config.level=1, 2, 3 is P3, P4, P5).

The detector is frozen. Photos need no labels: the codec learns from what the detector's tail makes
of the decoded features, and is judged by how far its detections agree with those of the uncoded
features (from `evaluation.truth_score` on). A third of the photos, told by their names, is held
out; of the crops of the others, those with a detection (from `data.found_score` on) are used and as
many without (`data.balanced`; not with `level`, which sees one level alone). `data.around` adds so
many crops around each detection in the photos to train on. Features beyond `model.limit` scales are
cut. The learning rate rises for an epoch: --config.training.epochs=1 takes
--config.training.lr_schedule.warmup_epochs=0 with it. docs/faces.md has results; `python
-m jaxcomp evaluate RUN --out=FOLDER` puts image codecs beside it.
"""

from jaxcomp.config import codec_config, parse_args

CHANNELS = {"retinaface": 64, "v1": 56, "v1_original": 64, "v1_24": 24, "v2": 32}
MODELS = {
    "joint": "factorized_prior_joint",
    "random": "factorized_prior_random_level",
    "level": "factorized_prior_specific_level",
}


def get_config(arg_string: str = ""):
    """The config of a detector and a treatment."""
    args = parse_args(arg_string, variant=tuple(CHANNELS), treatment=tuple(MODELS))
    config = codec_config(
        "face",
        detector={"kind": "face"},
        model={"levels": ("p3", "p4", "p5")},
        data={"crop": 256, "crops": 20, "balanced": True, "around": 48, "found_score": 0.3},
        evaluation={"truth_score": 0.5},
        training={"level_weights": "elements"},
    )
    config.level = 1  # P3: the sizes of the codec's map
    config.model.name = MODELS[args.treatment]
    config.model.update(in_channels=CHANNELS[args.variant], n_hidden=64, n_channels=64, stages=2)
    config.model.update(straight_through=True, limit=12.0)
    config.data.update(name="photos", train_size=0, val_size=0, val_share=1 / 3)
    config.data.update(height=640, width=640, resize="none")
    training = config.training
    training.update(batch_size=2, epochs=24, learning_rate=2e-3, rate_weight=6e-4, clip_norm=5.0)
    training.update(task_weight=100.0, feature_weight=0.03, prior_lr_factor=10.0)
    # Without a warm-up the tail of V1 drives the first decoded features to a thousand times their
    # scale, from where training does not return.
    training.lr_schedule.update(name="warmup_cosine", warmup_epochs=1)
    training.early_stopping.patience = 0
    return config
