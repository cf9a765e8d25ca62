"""Probe accuracy against bytes: token codecs of an H-JEPA at several rates, beside the anchors.

    python launch/sweep.py --config=configs/hjepa_codec_sweep.py:run=RUN          # three levels
    python launch/sweep.py --config=configs/hjepa_codec_sweep.py:run=RUN --only=level2
    python launch/sweep.py --config=configs/hjepa_codec_sweep.py:smoke,run=RUN    # to try it

RUN is a run of configs/hjepa.py. It ends with ROOT_report/: token_accuracy.md, figures/*.svg and
index.html. Started again, it goes on where it was interrupted.

The runs of a member are a chain: the smallest rate weight trains from scratch, each further one
from the codec before it, for a share of the epochs.
"""

from jaxcomp.config import base_config, parse_args

ANCHORS = ("image", "uniform-level", "uniform-channel", "detections")


def _member(level, rate_weights, overrides=(), epochs=()):
    return {
        "config": f"configs/hjepa_codec.py:level={level}",
        "rate_weights": rate_weights,
        "overrides": overrides,
        "levels": (),
        "epochs": epochs,
        "chained_epochs": 0.4,
        "after": "",
    }


def get_config(arg_string: str = ""):
    """The sweep of a profile."""
    args = parse_args(arg_string, profile=("embedded", "smoke"), run="")
    smoke = args.profile == "smoke"
    if smoke:
        small = ("model.n_hidden=8", "model.n_channels=8", "training.batch_size=16",
                 "data.train_size=64", "data.val_size=48")  # fmt: skip
        members = {"level2": _member(2, (0.01, 0.1), small, (1,))}
    else:
        members = {f"level{i}": _member(i, RATES[i], (), (EPOCHS[i],)) for i in range(3)}
    config = base_config(
        sweep={
            "root": "checkpoints/hjepa_codec_sweep" + ("_smoke" if smoke else ""),
            "overrides": (f"hjepa.path={args.run}",),
            "store_features": False,
            "anchors": ANCHORS,
            "members": members,
        }
    )
    config.task = "sweep"
    config.profile = args.profile
    return config


# Per token, so that a finer level's are larger for the same bytes per picture.
RATES = {
    0: (0.01, 0.03, 0.1, 0.3),
    1: (0.003, 0.01, 0.03, 0.1),
    2: (0.001, 0.004, 0.015, 0.06, 0.25),
}
EPOCHS = {0: 40, 1: 60, 2: 60}
