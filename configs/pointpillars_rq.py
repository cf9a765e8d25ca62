r"""Progressive residual quantisation of PointPillars' bird's-eye-view features: one run, all rates.

    python -m jaxcomp.main --config=configs/pointpillars_rq.py          # embedded lidar scenes
    python -m jaxcomp.main --config=configs/pointpillars_rq.py:kitti    # the document's recipe

    python -m jaxcomp.main --config=configs/pointpillars_rq.py --mode=eval --rq_ckpt=RUN_OR_FILE \
        --eval_num_codebooks=3 --eval_num_embeddings=64

The first takes 8.7 minutes on 2 idle cores of an AMD EPYC (14.8 minutes of processor time). On 60
held-out synthetic sweeps, 3-D AP is then 90.1 with all codebooks, 9.3 kB a sweep, and 85.1 with one
of 64 rows, 1.3 kB; with the features as they are, 3.7 MB, it is 89.2. The whole table stands in
docs/residual_codes.md. The second command was not run.

The `kitti` profile reads KITTI from --config.data.dir=FOLDER or KITTI_ROOT and quantises the
features of --config.detector.path (`epoch_160.pth`, a `pointpillars.npz` or a run directory). The
embedded profile takes the small detector that ships with the package.

Arguments: `embedded` (default) or `kitti`; `legacy` trains all codebooks of one size together, with
--config.rq_model.codebook_size rows. Other schedules, as (8, 16, 512), are typed arguments:

    --config=configs/pointpillars_rq.py:codebooks=3,stage_epochs=2
    --config.progressive_learning.embedding_schedule='(8,32,128)'    # as many sizes as before
"""

from jaxcomp.config import base_config, parse_args

CLASSES = ("Pedestrian", "Cyclist", "Car")
LOSS = {"class_weight": 1.0, "box_weight": 2.0, "direction_weight": 0.2}
LOSS |= {"alpha": 0.25, "gamma": 2.0, "beta": 1.0 / 9.0}


def get_config(arg_string: str = ""):
    """The config of a profile."""
    args = parse_args(
        arg_string, profile=("embedded", "kitti"), legacy=False, codebooks=5, stage_epochs=0
    )
    kitti = args.profile == "kitti"
    config = base_config(
        classes=CLASSES,
        model={"n_codebook": args.codebooks},
        progressive_learning={
            "enabled": not args.legacy,
            "embedding_schedule": (16, 32, 64, 128, 256) if kitti else (16, 64, 256),
            "embedding_stage_epochs": args.stage_epochs or (20 if kitti else 2),
            "warmup_epochs": 2 if kitti else 1,
            "previous": "matched",
        },
        rq_model={
            "codebook_size": 64,  # of the legacy mode
            "decay": 0.99 if kitti else 0.95,
            "revive": 0.02,
            "candidates": 4096,
            "train_head": False,
        },
        loss_weights={"vq_weight": 0.25, "codebook_weight": 0.1, "det_weight": 0.8},
        loss=LOSS,
        data={"beams": 40, "azimuths": 384, "pad_points": 40960 if kitti else 16384},
        logging={"ckpt_freq_epoch": 20 if kitti else 2, "save_stage_weights": True},
        evaluation={
            "pictures": 4,
            "rq_ckpt": "",  # codebooks to measure with --mode=eval; or --rq_ckpt
            "use_num_codebook": 0,  # 0: the whole grid; or --eval_num_codebooks
            "use_num_embedding": (0,),  # one number, or one for each codebook
            "stage_frames": 200 if kitti else 20,  # held-out sweeps, AP at the end of each stage
            "table_frames": 1000,  # training sweeps that tables are learned from
            "anchors": True,
        },
    )
    config.task = "residual_vq"
    config.profile = args.profile
    config.model.name = "pointpillars_rq"
    training, stages = config.training, config.progressive_learning
    training.rate_weight = 0.0
    training.lr_schedule.update(name="constant", min_lr=0.0)
    training.update(optimiser="adamw", weight_decay=0.01, learning_rate=1e-3, clip_norm=1.0)
    training.epochs = args.codebooks * len(stages.embedding_schedule)
    training.epochs *= stages.embedding_stage_epochs
    training.early_stopping.patience = 5 if kitti else 0  # of a stage; the embedded ones are short
    config.checkpoint.every_steps = 500
    if kitti:
        config.detector.path = "epoch_160.pth"
        config.data.update(name="kitti", train_size=0, val_size=0, max_boxes=96, num_threads=4)
        training.batch_size = 6
    else:
        config.data.update(train_size=160, val_size=60, max_boxes=32)
        training.update(batch_size=4, learning_rate=3e-3)
    if args.legacy:
        training.epochs = 100 if kitti else 12
        training.early_stopping.patience = 5
    return config
