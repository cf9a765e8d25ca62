"""Train a workload and measure it: `python -m jaxcomp.main --config=configs/fpn_level.py`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcomp import config as config_lib
from jaxcomp.errors import ConfigError, JaxcompError
from jaxcomp.memory import keep_memory

HELP = """\
Trains one workload, evaluates it with real bytes, and writes a report.

  --config=FILE[:ARGS]     a file of configs/, with its typed arguments: fpn_level.py:level=0
  --config.KEY=VALUE       changes one value, as in --config.training.rate_weight=5e-4
                           (a larger rate weight gives fewer bits)
  --workdir=DIR            this run directory, not a new one below checkpoints/
  --mode=train|eval        eval: measure the trained state of --workdir again; of a folder of runs,
                           every codec in it beside the anchors (`python -m jaxcomp evaluate`)
  --coordinator=HOST:PORT  one of several processes: where process 0 listens, or "auto" on a TPU
                           pod, under Slurm, Open MPI or Kubernetes
  --processes=N --process_id=I   how many there are, and which one this is (not with "auto")
  --config.mesh.fsdp=N     share each copy of the train state out among N devices, for models that
                           are too large for one; a run may go on with another N
  --rq_ckpt=FILE --eval_num_codebooks=K --eval_num_embeddings=N    with --mode=eval: measure
                           saved codebooks of pointpillars_rq.py at a point (N may be 256,256,16)
  --help                   this text; with --config=FILE also what the file says of itself
  --debug                  show the whole trace of an error

Run the same command again after a crash or a kill: the run continues where it was.

examples:
  python -m jaxcomp.main --config=configs/fpn_level.py
  python -m jaxcomp.main --config=configs/fpn_level.py:level=0 --config.training.epochs=5
  python -m jaxcomp.main --config=configs/detector.py
  KITTI_ROOT=FOLDER python -m jaxcomp.main --config=configs/detector.py:kitti
"""

CODES = {
    "--rq_ckpt": "evaluation.rq_ckpt",
    "--eval_num_codebooks": "evaluation.use_num_codebook",
    "--eval_num_embeddings": "evaluation.use_num_embedding",
}


def parse(argv: Sequence[str]) -> tuple[str | None, list[str], argparse.Namespace]:
    """(config file with arguments, overrides, other flags) of a command line."""
    parser = argparse.ArgumentParser(
        "python -m jaxcomp.main", usage=HELP, add_help=False, allow_abbrev=False
    )
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--workdir", default="")
    parser.add_argument("--mode", choices=("train", "eval"), default="train")
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process_id", type=int, default=0)
    for flag in CODES:  # of configs/pointpillars_rq.py
        parser.add_argument(flag, default="")
    parser.add_argument("--debug", action="store_true")
    spec, overrides, rest = config_lib.split_argv(argv)
    args = parser.parse_args(rest)
    named = ((key, getattr(args, flag.removeprefix("--"))) for flag, key in CODES.items())
    return spec, [*overrides, *(f"{key}={value}" for key, value in named if value)], args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status. Bad input is one line on stderr and status 1."""
    started = time.time()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        spec, overrides, args = parse(argv)
        alone = not args.help and not args.coordinator
        if alone and args.mode == "eval" and _compare(args.workdir, spec, overrides):
            return 0
        if args.help or spec is None:
            print(HELP, end="", file=sys.stdout if args.help else sys.stderr)
            if spec:
                print(f"\n{spec}:\n\n{config_lib.description(spec)}")
            return 0 if args.help else 2
        config = config_lib.load_config(spec, overrides)
        _join(args)
        run(config, argv, workdir=args.workdir, mode=args.mode, started=started)
    except (JaxcompError, OSError) as error:
        _tell_failure(error)
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 128 + error.signum if hasattr(error, "signum") else 1
    except KeyboardInterrupt:
        if debug:
            raise
        print("error: interrupted; run the same command again to go on.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _compare(workdir: str, spec: str | None, overrides: Sequence[str]) -> bool:
    """Compares the codecs of a folder of runs; False if it is something else."""
    from jaxcomp.jobs import comparing

    if not workdir or not comparing.holds_codecs(Path(workdir)):
        return False
    comparing.run_folder(Path(workdir), config=spec, overrides=overrides)
    return True


def _join(args: argparse.Namespace) -> None:
    """Meets the other processes, if there are any."""
    if args.processes > 1 and not args.coordinator:
        raise ConfigError("--processes needs --coordinator=HOST:PORT, that of process 0")
    if args.coordinator:
        from jaxcomp import processes

        processes.join(args.coordinator, args.processes, args.process_id)


def _tell_failure(error: BaseException) -> None:
    """Lets the other processes, if there are any, know why this one ends."""
    if "jaxcomp.processes" in sys.modules:
        sys.modules["jaxcomp.processes"].tell_failure(error)


def run(config: Any, argv: Sequence[str], *, workdir: str, mode: str, started: float) -> Any:
    """Trains (or only evaluates) a validated config; returns the summary."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxcomp import processes
    from jaxcomp.jobs import check_training, evaluate_saved, runner

    if mode == "train":
        check_training(config)
    elif processes.from_primary(
        lambda: evaluate_saved(config, workdir), "measurement of saved weights"
    ):
        return None
    return runner.run(config, argv, workdir=workdir, mode=mode, started=started)


if __name__ == "__main__":
    keep_memory()
    try:
        status = main()
    except Exception as unforeseen:
        traceback.print_exc()
        _tell_failure(unforeseen)
        status = 1
    if "jaxcomp.processes" in sys.modules:
        sys.modules["jaxcomp.processes"].end(status)
    sys.exit(status)
