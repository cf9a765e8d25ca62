"""One codec for one level of the feature pyramid: the main job.

    python -m jaxcomp.main --config=configs/fpn_level.py                  # embedded, level 2 (P4)
    python -m jaxcomp.main --config=configs/fpn_level.py:level=0          # P2
    python -m jaxcomp.main --config=configs/fpn_level.py:kitti,level=2    # the documents' recipe

The `kitti` profile reads KITTI from --config.data.dir=FOLDER or KITTI_ROOT, and needs a detector of
256 channels: what `configs/detector.py:kitti` left, or --config.detector.path=FILE_OR_RUN.

Arguments: `embedded` (default) or `kitti`; `level=0..4` is P2..P6. The cost and the results on
named hardware stand in README.md. The loss is MSE + rate_weight * bits per feature position, so a
larger `--config.training.rate_weight` gives fewer bits.
"""

from jaxcomp.config import codec_config, parse_args


def get_config(arg_string: str = ""):
    """The config of a profile and a level."""
    args = parse_args(arg_string, profile=("embedded", "kitti"), level=2)
    config = codec_config(args.profile)
    config.level = args.level
    config.model.name = "factorized_prior_specific_level"
    training = config.training
    training.rate_weight = 1e-3
    if args.profile == "kitti":
        training.update(batch_size=8, epochs=100, learning_rate=5e-5)
        training.lr_schedule.update(patience=8)
        training.early_stopping.update(patience=20)
    else:
        # Level 4 of a 128 x 416 image is 2 x 7: fewer strides leave the coarse levels some room.
        config.model.update(in_channels=64, n_hidden=64, n_channels=64, stages=2)
        training.update(batch_size=8, learning_rate=1e-3, rate_weight=1.5e-3)
        # A frame of a fine level holds many positions, so fewer passes over the frames do.
        training.prior_lr_factor = 10.0  # else the prior lags behind for hundreds of steps
        training.epochs = {0: 30, 1: 40}.get(args.level, 60)
        training.lr_schedule.update(name="cosine")
        training.early_stopping.patience = 0
    return config
