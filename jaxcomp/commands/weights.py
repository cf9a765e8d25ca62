"""`import-weights` and `export-weights`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Adds the parsers."""
    bring = commands.add_parser(
        "import-weights", help="torchvision's Faster R-CNN R50-FPN-v2 -> detector.npz"
    )
    bring.add_argument("file", help="a .pth, .pt or .safetensors; PyTorch is not needed")
    bring.add_argument("--model", choices=("faster_rcnn",), required=True, help="what it holds")
    bring.add_argument(
        "--classes", help="names without the background, as Car,Pedestrian (default class_1,...)"
    )
    bring.add_argument(
        "--replace-head",
        action="store_true",
        help="draw a new predictor where the file has other classes; it must then be trained",
    )
    bring.add_argument("--seed", type=int, default=0, help="of the new predictor (default 0)")
    bring.add_argument("--out", default="detector.npz", help="default: detector.npz")

    take = commands.add_parser("export-weights", help="detector.npz -> torchvision's state dict")
    take.add_argument("detector", help="detector.npz or a run directory")
    take.add_argument("out", help="the .pth, .pt or .safetensors to write")
    bring.set_defaults(run=run_import)
    take.set_defaults(run=run_export)


def run_import(args: argparse.Namespace) -> None:
    """Runs `import-weights`."""
    from jaxcomp.jobs import weights

    classes = None if args.classes is None else [c.strip() for c in args.classes.split(",")]
    report = weights.import_detector(
        args.file, args.out, classes, replace_head=args.replace_head, seed=args.seed
    )
    size = Path(args.out).stat().st_size / 1e6
    print(f"{args.out}: {report.parameters} parameters, {report.tensors} tensors, {size:.1f} MB")
    if report.replaced:
        print(f"the predictor is new ({report.file_classes} classes in the file): train it first")


def run_export(args: argparse.Namespace) -> None:
    """Runs `export-weights`."""
    from jaxcomp.jobs import weights

    size = weights.export_detector(args.detector, args.out)
    print(f"{args.out}: {size / 1e6:.1f} MB")
