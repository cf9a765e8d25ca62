"""One codec shared by all levels of the feature pyramid, trained on a random level at each step.

    python -m jaxcomp.main --config=configs/fpn_random.py          # embedded
    python -m jaxcomp.main --config=configs/fpn_random.py:kitti    # document 000's recipe

Arguments: `embedded` (default) or `kitti`. Each level passes alone through the same network of 256
channels (4,617,600 parameters with `kitti`) and is a stream of its own in the file of a frame.

The loss is MSE + rate_weight * bits per feature position, normalised by the statistics of the
level. The documents draw a level for each sample; samples of different sizes do not form a batch,
so here all frames of a step have one level, drawn uniformly from the seed and the step. The
expected gradient is the same. The first steps compile the network once for each level, later ones
never. Validation takes all levels of every frame. The `kitti` profile needs a detector of 256
channels, see `configs/fpn_level.py`.
"""

from jaxcomp.config import codec_config, parse_args


def get_config(arg_string: str = ""):
    """The config of a profile."""
    args = parse_args(arg_string, profile=("embedded", "kitti"))
    config = codec_config(args.profile)
    config.level = 0  # of which `inspect` tells shapes and costs
    config.model.name = "factorized_prior_random_level"
    training = config.training
    if args.profile == "kitti":
        training.update(batch_size=4, epochs=100, learning_rate=5e-5, rate_weight=2.5e-4)
    else:
        config.model.update(in_channels=64, n_hidden=64, n_channels=64, stages=2)
        config.data.train_size = 900
        training.update(batch_size=2, epochs=8, learning_rate=2e-3, rate_weight=1e-2)
        training.prior_lr_factor = 10.0
        training.lr_schedule.update(name="cosine")
        training.early_stopping.patience = 0
    return config
