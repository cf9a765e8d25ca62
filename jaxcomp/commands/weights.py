"""`import-weights` and `export-weights`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxcomp.errors import ConfigError

OUT = {
    "faster_rcnn": "detector.npz", "face": "face_detector.npz", "mobilenet": "mobilenet.npz",
}  # fmt: skip


def add(commands: Any) -> None:
    """Adds the parsers."""
    bring = commands.add_parser(
        "import-weights",
        help="weights of PyTorch's Faster R-CNN, FeatherFace, RetinaFace or MobileNet -> .npz",
    )
    bring.add_argument("file", help="a .pth, .pt, .tar or .safetensors; PyTorch is not needed")
    bring.add_argument(
        "--model",
        choices=("faster_rcnn", "face", "mobilenet"),
        required=True,
        help="what it holds: torchvision's Faster R-CNN R50-FPN-v2; a FeatherFace or "
        "RetinaFace-0.25; the ImageNet MobileNetV1-0.25 that face detectors start from",
    )
    bring.add_argument(
        "--variant",
        help="of a face detector: v1_original, v1, v1_24, v2 or retinaface (default: told from the "
        "tensors)",
    )
    bring.add_argument(
        "--classes", help="names without the background, as Car,Pedestrian (default class_1,...)"
    )
    bring.add_argument(
        "--replace-head",
        action="store_true",
        help="draw a new predictor where the file has other classes; it must then be trained",
    )
    bring.add_argument("--seed", type=int, default=0, help="of the new predictor (default 0)")
    bring.add_argument(
        "--out", help="default: detector.npz, face_detector.npz or mobilenet.npz, by --model"
    )

    take = commands.add_parser(
        "export-weights", help="what import-weights made -> PyTorch's state dict"
    )
    take.add_argument("detector", help="an .npz of import-weights, or a detector's run directory")
    take.add_argument("out", help="the .pth, .pt or .safetensors to write")
    bring.set_defaults(run=run_import)
    take.set_defaults(run=run_export)


def run_import(args: argparse.Namespace) -> None:
    """Runs `import-weights`."""
    from jaxcomp.jobs import weights

    args.out = args.out or OUT[args.model]
    _check_options(args)
    if args.model != "faster_rcnn":
        if args.model == "face":
            found = weights.import_face(args.file, args.out, args.variant)
        else:
            found = weights.import_mobilenet(args.file, args.out)
        size = Path(args.out).stat().st_size / 1e6
        print(
            f"{args.out}: {found['variant']}, {found['parameters']} parameters, "
            f"{found['tensors']} tensors, {size:.1f} MB"
        )
        return
    classes = None if args.classes is None else [c.strip() for c in args.classes.split(",")]
    report = weights.import_detector(
        args.file, args.out, classes, replace_head=args.replace_head, seed=args.seed
    )
    size = Path(args.out).stat().st_size / 1e6
    print(f"{args.out}: {report.parameters} parameters, {report.tensors} tensors, {size:.1f} MB")
    if report.replaced:
        print(f"the predictor is new ({report.file_classes} classes in the file): train it first")


def _check_options(args: argparse.Namespace) -> None:
    """Options of one kind of file are errors with another."""
    given = {"--variant": args.variant, "--classes": args.classes}
    given["--replace-head"] = args.replace_head or None
    fitting = {"faster_rcnn": {"--classes", "--replace-head"}, "face": {"--variant"}}
    for name, value in given.items():
        if value is not None and name not in fitting.get(args.model, set()):
            raise ConfigError(f"{name} does not go with --model {args.model}; leave it out")


def run_export(args: argparse.Namespace) -> None:
    """Runs `export-weights`."""
    from jaxcomp.jobs import weights

    size = weights.export_detector(args.detector, args.out)
    print(f"{args.out}: {size / 1e6:.1f} MB")
