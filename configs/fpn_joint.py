"""One codec for the whole feature pyramid: all levels resized to P2 and concatenated.

    python -m jaxcomp.main --config=configs/fpn_joint.py          # embedded
    python -m jaxcomp.main --config=configs/fpn_joint.py:kitti    # the documents' recipe

Arguments: `embedded` (default) or `kitti`. The five levels are enlarged bilinearly to the size of
P2, coded as one map (5 x 256 channels: 11,172,224 parameters with `kitti`), and reduced again.

The loss is MSE + rate_weight * bits per feature position, the positions being those of all levels.
`--config.training.level_weights=elements` (default) weighs every value alike, so that P2 has three
quarters of the error; `equal` weighs every level alike. The `kitti` profile needs a detector of 256
channels, see `configs/fpn_level.py`.
"""

from jaxcomp.config import codec_config, parse_args


def get_config(arg_string: str = ""):
    """The config of a profile."""
    args = parse_args(arg_string, profile=("embedded", "kitti"))
    config = codec_config(args.profile, training={"level_weights": "elements"})
    config.level = 0  # the sizes of the codec's map are those of P2
    config.model.name = "factorized_prior_joint"
    training = config.training
    if args.profile == "kitti":
        training.update(batch_size=4, epochs=100, learning_rate=5e-5, rate_weight=2.5e-4)
    else:
        config.model.update(in_channels=64, n_hidden=64, n_channels=96, stages=2)
        config.data.train_size = 900
        training.update(batch_size=2, epochs=4, learning_rate=2e-3, rate_weight=1e-2)
        training.prior_lr_factor = 10.0
        training.lr_schedule.update(name="cosine")
        training.early_stopping.patience = 0
    return config
