"""`export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxcomp.commands import add_parser
from jaxcomp.workdir import json_text

_DESCRIPTION = """\
A face detector, or a feature codec, for runtimes without JAX.

onnx       one file for every batch, height and width: input `input` [batch, 3, height, width] BGR
           minus (104, 117, 123); outputs bbox_regressions, classifications, landmarks, or with
           --decode boxes, landmarks, scores, batch_index in pixels. Nothing is written unless
           onnxruntime agrees with JAX to 1e-4 at every size of --sizes.
stablehlo  the network for the first of --sizes, as jax.export writes it

--package=FOLDER writes a folder to ship instead: both ONNX files, preprocessing and thresholds as
JSON, a runnable example that imports neither jaxcomp nor JAX, a README, checksums. --int8 adds a
file of 8-bit integers and measures it beside the other on procedural images.

Of a codec.npz (or the run directory of one), --out names a folder: for each network an encoder from
features to int32 symbols, a decoder back, and the integer tables of the entropy coder.

pip install 'jaxcomp[export]' brings onnx and onnxruntime.
"""
_EXAMPLES = """\
examples:
  python -m jaxcomp export RUN_DIRECTORY --out=face.onnx
  python -m jaxcomp export mobilenet0.25_Final.pth --out=v1.onnx --sizes=320,480x640 --decode
  python -m jaxcomp export face_detector.npz --package=deployment --int8 --calibration=PHOTOS
  python -m jaxcomp export face_detector.npz --format=stablehlo --sizes=640 --out=v1.stablehlo
  python -m jaxcomp export codec.npz --out=codec_graphs
"""


def add(commands: Any) -> None:
    """Adds the parser."""
    export = add_parser(
        commands,
        "export",
        help="a face detector -> ONNX, StableHLO, or a folder to ship; a codec -> two graphs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    export.add_argument(
        "weights",
        help="face_detector.npz, a run directory, a PyTorch face detector, or a codec.npz",
    )
    export.add_argument("--format", choices=("onnx", "stablehlo"), default="onnx")
    export.add_argument("--out", type=Path, help="default: face.onnx, face.stablehlo or codec_onnx")
    export.add_argument(
        "--sizes", default="320,416,640,832,480x640",
        help="sides or ROWSxCOLUMNS, multiples of 32, at which it is checked; none for no check",
    )  # fmt: skip
    export.add_argument("--batch", type=int, default=1, help="of StableHLO (default 1)")
    export.add_argument("--decode", action="store_true", help="decode and suppress in the graph")
    export.add_argument("--package", type=Path, metavar="FOLDER", help="write a folder to ship")
    export.add_argument("--int8", action="store_true", help="with --package: add 8-bit integers")
    export.add_argument(
        "--calibration", type=Path, metavar="FOLDER", help="photos for --int8 (default: procedural)"
    )
    export.add_argument("--json", type=Path, metavar="FILE", help="also write the check as JSON")
    export.set_defaults(run=run_export)


def _is_codec(weights: str) -> bool:
    """Whether this is a codec's file or the directory of one."""
    from jaxcomp import weights_file
    from jaxcomp.errors import CheckpointError
    from jaxcomp.loaders import CODEC_FILE

    path = Path(weights)
    path = path / CODEC_FILE if path.is_dir() else path
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        return weights_file.load_npz(path)[1].get("kind") == "codec"
    except CheckpointError:
        return False  # the loader says what is wrong


def _export_codec(args: argparse.Namespace) -> None:
    from jaxcomp.errors import ConfigError
    from jaxcomp.jobs import exporting_codec
    from jaxcomp.loaders import load_codec

    if args.format != "onnx" or args.package or args.decode:
        raise ConfigError("of a codec there are ONNX graphs only, in the folder of --out")
    folder = args.out or Path("codec_onnx")
    rows = exporting_codec.export_codec(load_codec(args.weights), folder)
    print(exporting_codec.text_table(rows), end="")
    print(folder)
    if args.json:
        from jaxcomp.workdir import atomic_write

        atomic_write(args.json, json_text(rows))


def run_export(args: argparse.Namespace) -> None:
    """Runs `export`."""
    from jaxcomp.errors import ConfigError
    from jaxcomp.jobs import deploying, exporting
    from jaxcomp.loaders_face import load_face_detector

    sizes = exporting.parse_sizes(args.sizes)
    if args.int8 and not args.package:
        raise ConfigError("--int8 belongs to a --package=FOLDER")
    if args.package and args.format != "onnx":
        raise ConfigError("a --package holds ONNX files; leave --format=stablehlo out")
    if args.batch < 1:
        raise ConfigError(f"--batch={args.batch} is not positive")
    if _is_codec(args.weights):
        _export_codec(args)
        return
    detector = load_face_detector(args.weights)
    if args.package:
        config = deploying.write_package(
            detector, args.package, sizes=sizes, int8=args.int8, calibration=args.calibration
        )
        rows = config["checked_against_jax"]
        if "int8" in config:
            print(json_text(config["int8"]), end="")
        where = args.package
    elif args.format == "stablehlo":
        if len(sizes) < 1:
            raise ConfigError("--format=stablehlo needs a size, as --sizes=640")
        where = args.out or Path("face.stablehlo")
        rows = [exporting.export_stablehlo(detector, where, sizes[0], args.batch)]
        rows[0]["anchors"] = len(exporting.face_priors(sizes[0], detector.model.cfg))
    else:
        where = args.out or Path("face.onnx")
        rows = exporting.export_onnx(detector, where, sizes=sizes, decode=args.decode)
    print(exporting.text_table(rows), end="")
    print(where)
    if args.json:
        from jaxcomp.workdir import atomic_write

        atomic_write(args.json, json_text(rows))
