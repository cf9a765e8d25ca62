"""A codec for the tokens of an H-JEPA: probe accuracy against bytes per picture.

    python -m jaxcomp.main --config=configs/hjepa.py:fpn=none --workdir=RUN
    python -m jaxcomp.main --config=configs/hjepa_codec.py --config.hjepa.path=RUN
    python -m jaxcomp.main --config=configs/hjepa_codec.py:level=2 --config.hjepa.path=RUN
    python launch/sweep.py --config=configs/hjepa_codec_sweep.py:run=RUN      # curves and anchors

Arguments: `level=` of the tokens (default 0, the finest), `width=` of the network (default 64, the
toy), and a profile, `embedded` (default) or `imagenet` for a folder of pictures at 224 pixels. The
pictures (`data`) must be those of the run, whose held-out ones stay held out: what differs is a
warning.

The network is frozen; its target encoder makes the tokens, whose map goes through the codec of the
pyramids. Each held-out picture becomes a `.jxc` file; k-NN and a linear probe judge the mean of the
tokens read back, an attentive probe all of them, fitted on uncoded training features and on decoded
ones. `docs/hjepa.md` has results; `python -m jaxcomp evaluate RUNS --out=FOLDER` puts quantised
tokens, quantised vectors and image codecs beside it.
"""

from jaxcomp.config import base_config, parse_args

# Of the levels of the embedded network: 8 x 8, 4 x 4 and 2 x 2 tokens become one vector of latents.
STAGES = (3, 2, 1, 1)
RATE_WEIGHTS = (0.03, 0.01, 0.003, 0.003)


def get_config(arg_string: str = ""):
    """The config of a level, a width and a profile."""
    args = parse_args(arg_string, level=0, width=64, profile=("embedded", "imagenet"))
    embedded = args.profile == "embedded"
    config = base_config(
        hjepa={"path": ""},  # a run of configs/hjepa.py, or its hjepa.npz
        model={"straight_through": True, "initial": ""},
        data={
            "cache_features": embedded,
            "train_split": "", "val_split": "", "probe_split": "",  # of TFDS; "": the usual
        },
        training={
            "feature_weight": 1.0,  # of the squared error of the tokens
            "whitened_weight": 1.0,  # of the same with all directions at one variance
            "pooled_weight": 1.0,  # of the squared error of their mean
            "prior_lr_factor": 10.0,
        },
        evaluation={"pictures": 4, "probe_rows": 2000, "attentive_rows": 1000},
    )  # fmt: skip
    config.task = "token_codec"
    config.profile = args.profile
    config.level = args.level
    config.model.update(name="factorized_prior_tokens", in_channels=args.width)
    training = config.training
    training.lr_schedule.update(name="cosine")
    training.early_stopping.patience = 0
    if embedded:
        config.model.update(n_hidden=64, n_channels=64, stages=STAGES[min(args.level, 3)])
        config.data.update(name="textures", height=32, width=32, train_size=4000, val_size=1000)
        # With one layer each way the gains of the latents grow too slowly at 2e-3.
        single = config.model.stages == 1
        training.update(batch_size=200, epochs=60, learning_rate=1e-2 if single else 2e-3)
        training.rate_weight = RATE_WEIGHTS[min(args.level, 3)]
    else:
        config.model.update(n_hidden=128, n_channels=192, stages=3 if args.level == 0 else 2)
        config.data.update(name="pictures", height=224, width=224, train_size=0, val_size=0)
        config.data.num_threads = 8
        training.update(batch_size=128, epochs=10, learning_rate=1e-4, rate_weight=0.01)
    return config
