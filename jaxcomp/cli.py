"""The command line beside training: `python -m jaxcomp <command> --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcomp import config as config_lib
from jaxcomp.errors import DataError, JaxcompError
from jaxcomp.workdir import atomic_write, json_text

DESCRIPTION = """\
Split inference and learned feature compression. Training is `python -m jaxcomp.main --help`.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m jaxcomp", description=DESCRIPTION)
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    commands = parser.add_subparsers(dest="command", required=True)

    inspect = commands.add_parser(
        "inspect", help="parameters and MACs of a config; contents of a .npz, .jxc or run directory"
    )
    inspect.add_argument("file", nargs="?", help="a .npz, a .jxc, or a run directory")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    compress = commands.add_parser("compress", help="image -> features -> .jxc")
    compress.add_argument("image")
    compress.add_argument("--codec", required=True, help="codec.npz or a run directory")
    compress.add_argument("--detector", help="detector.npz; default: the one that ships")
    compress.add_argument("--out", help="the .jxc to write; default: beside the image")

    decompress = commands.add_parser("decompress", help=".jxc -> .npz of features")
    decompress.add_argument("stream")
    decompress.add_argument("--codec", required=True, help="codec.npz or a run directory")
    decompress.add_argument("--out", help="the .npz to write; default: beside the stream")

    detect = commands.add_parser(
        "detect", help="image (and the .jxc of one level) -> boxes as JSON and on a picture"
    )
    detect.add_argument("image", help="gives the levels that the stream does not hold")
    detect.add_argument("--stream", help="a .jxc whose level replaces the image's own")
    detect.add_argument("--codec", help="codec.npz or a run directory; needed with --stream")
    detect.add_argument("--detector", help="detector.npz; default: the one that ships")
    detect.add_argument("--score", type=float, default=0.3, help="least score (default 0.3)")
    detect.add_argument(
        "--out", help="a .json to write; the picture NAME_detections.png goes beside it"
    )

    report = commands.add_parser("report", help="pages and a table from run directories")
    report.add_argument("dirs", nargs="+", help="run directories, or folders of runs")
    report.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    report.add_argument("--out", type=Path, help="also write a page that compares them")
    _kitti_parser(commands)
    _weight_parsers(commands)
    return parser


def _kitti_parser(commands: Any) -> None:
    kitti = commands.add_parser(
        "kitti-eval",
        help="KITTI's AP (2-D, BEV, 3-D) and orientation from folders of its text files",
        description="KITTI's average precision at 40 and 11 recalls for easy, moderate and hard "
        "objects, in the image (2d), from above (bev) and in 3-D (3d), and the average orientation "
        "similarity (aos). DIR holds one FRAME.txt for each frame, empty if nothing was detected.",
    )
    kitti.add_argument("--labels", required=True, metavar="DIR", help="label_2, the ground truth")
    kitti.add_argument(
        "--results", required=True, metavar="DIR", help="detections: a label's columns and a score"
    )
    kitti.add_argument(
        "--classes", default="Car,Pedestrian,Cyclist", help="default: Car,Pedestrian,Cyclist"
    )
    kitti.add_argument(
        "--overlaps", help="as Car=0.5,Cyclist=0.25 (default 0.7 for Car, 0.5 for all others)"
    )
    kitti.add_argument(
        "--frames", metavar="FILE", help="frames to evaluate, one a line, as ImageSets/val.txt"
    )
    kitti.add_argument("--json", metavar="FILE", help="also write everything, with the curves")
    kitti.add_argument(
        "--bootstrap", type=int, default=0, metavar="N",
        help="95%% intervals from N resampled sets of frames, say 1000 (default 0: none)",
    )  # fmt: skip
    kitti.add_argument("--seed", type=int, default=0, help="of the resampling (default 0)")


def _weight_parsers(commands: Any) -> None:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status. Bad input is one line on stderr and status 1."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv  # before or behind the command's name
    argv = [word for word in argv if word != "--debug"]
    try:
        spec, overrides, rest = config_lib.split_argv(argv)
        args = _parser().parse_args(rest)
        COMMANDS[args.command](args, spec, overrides)
    except (JaxcompError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _inspect(args: argparse.Namespace, spec: str | None, overrides: list[str]) -> None:
    if (spec is None) == (args.file is None):
        raise DataError("inspect needs either --config=FILE[:ARGS] or a file to look at")
    from jaxcomp import complexity, inspecting

    if spec is None:
        print(json.dumps(inspecting.describe_file(Path(args.file)), indent=2))
        return
    description = inspecting.describe_config(config_lib.load_config(spec, overrides))
    print(json.dumps(description, indent=2) if args.json else complexity.text_table(description))


def _output(out: str | Path, args: argparse.Namespace) -> Path:
    """The path to write, refused where it is one of the files that the command reads."""
    from jaxcomp import loaders

    inputs = [getattr(args, name, None) for name in ("image", "stream")]
    weights = (("codec", loaders.CODEC_FILE), ("detector", loaders.DETECTOR_FILE))
    for name, file in weights:
        given = getattr(args, name, None)
        inputs.append(loaders.find_file(given, file) if given else None)
    if any(name and Path(name).resolve() == Path(out).resolve() for name in inputs):
        raise DataError(f"{str(out)!r} is an input; choose another --out")
    return Path(out)


def _compress(args: argparse.Namespace, *_: Any) -> None:
    from jaxcomp import loaders

    codec, detector = loaders.load_codec(args.codec), loaders.load_detector(args.detector)
    codec.check_detector(detector)
    image, meta = detector.prepare(args.image)
    plain = {name: value[0].tolist() for name, value in meta.items()}
    features = detector.get_fpn_features(image)
    blob = codec.compress(features, {**plain, "classes": list(detector.classes)})
    out = _output(args.out or Path(args.image).with_suffix(".jxc"), args)
    atomic_write(out, blob)
    raw = features[codec.level].nbytes
    print(f"{out}: {len(blob)} bytes for {codec.level} ({raw} bytes raw, {raw / len(blob):.0f}x)")


def _decompress(args: argparse.Namespace, *_: Any) -> None:
    import io

    import numpy as np

    from jaxcomp import loaders

    codec = loaders.load_codec(args.codec)
    features = codec.decompress(Path(args.stream).read_bytes())
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(value) for name, value in features.items()})
    default = Path(args.stream).with_suffix(".features.npz")
    out = _output(args.out or default, args)
    atomic_write(out, buffer.getvalue())
    print(f"{out}: " + ", ".join(f"{k} {tuple(v.shape)}" for k, v in features.items()))


def _detect(args: argparse.Namespace, *_: Any) -> None:
    from jaxcomp import loaders
    from jaxcomp.data.images import read_image
    from jaxcomp.evaluate.pictures import draw_detections

    if args.stream and not args.codec:
        raise DataError("--stream needs --codec, the model that made it")
    detector = loaders.load_detector(args.detector)
    if args.out:
        _output(args.out, args)
    image, meta = detector.prepare(args.image)
    features = detector.get_fpn_features(image)
    if args.stream:
        codec = loaders.load_codec(args.codec)
        codec.check_detector(detector)
        features = {**features, **codec.decompress(Path(args.stream).read_bytes())}
    found = detector.detect_from_features(features, meta)
    rows = [
        {"label": detector.classes[label - 1], "score": float(score), "box": box.tolist()}
        for box, score, label in zip(
            found["boxes"][0], found["scores"][0], found["labels"][0], strict=True
        )
        if label > 0 and score >= args.score
    ]
    for row in rows:
        box = " ".join(f"{v:.1f}" for v in row["box"])
        print(f"{row['label']:<12} {row['score']:.3f}  {box}")
    print(f"{len(rows)} detections with a score of at least {args.score}")
    if args.out:
        atomic_write(args.out, json.dumps(rows, indent=2) + "\n")
        picture = Path(args.out).with_name(f"{Path(args.out).stem}_detections.png")
        found = [(row["label"], row["score"], row["box"]) for row in rows]
        drawn = draw_detections(read_image(args.image), found)
        atomic_write(_output(picture, args), drawn)


def _report(args: argparse.Namespace, *_: Any) -> None:
    from jaxcomp.report import __main__ as report

    report.run([Path(d) for d in args.dirs], markdown=args.markdown, out=args.out)


def _kitti_eval(args: argparse.Namespace, *_: Any) -> None:
    from jaxcomp.evaluate.kitti import text_table
    from jaxcomp.jobs import kitti_eval

    result = kitti_eval.evaluate_folders(
        args.labels,
        args.results,
        args.frames,
        classes=[name.strip() for name in args.classes.split(",")],
        overlaps=kitti_eval.parse_overlaps(args.overlaps),
        bootstrap=args.bootstrap,
        seed=args.seed,
    )
    print(text_table(result), end="")
    if args.json:
        atomic_write(args.json, json_text(result))


def _import_weights(args: argparse.Namespace, *_: Any) -> None:
    from jaxcomp.jobs import weights

    classes = None if args.classes is None else [c.strip() for c in args.classes.split(",")]
    report = weights.import_detector(
        args.file, args.out, classes, replace_head=args.replace_head, seed=args.seed
    )
    size = Path(args.out).stat().st_size / 1e6
    print(f"{args.out}: {report.parameters} parameters, {report.tensors} tensors, {size:.1f} MB")
    if report.replaced:
        print(f"the predictor is new ({report.file_classes} classes in the file): train it first")


def _export_weights(args: argparse.Namespace, *_: Any) -> None:
    from jaxcomp.jobs import weights

    size = weights.export_detector(args.detector, args.out)
    print(f"{args.out}: {size / 1e6:.1f} MB")


COMMANDS = {
    "inspect": _inspect,
    "compress": _compress,
    "decompress": _decompress,
    "detect": _detect,
    "report": _report,
    "kitti-eval": _kitti_eval,
    "import-weights": _import_weights,
    "export-weights": _export_weights,
}
