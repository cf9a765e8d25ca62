"""`detect`."""

from __future__ import annotations

import argparse
from typing import Any

from jaxcomp.commands import add_parser
from jaxcomp.commands.coding import (
    add_file_options,
    add_limit,
    residual_codec,
    run_jobs,
    weight_files,
)
from jaxcomp.compile_cache import keep_compiled
from jaxcomp.errors import DataError

_DESCRIPTION = """\
Boxes from images, from features (.npz) or from streams (.jxc). The levels of --stream files replace
those of the input, which may be left out where the streams hold all levels together; several codecs
are told apart by the digest in the streams.

Boxes are in pixels of the original image; streams carry its size, so it need not be there. Of a
folder, all images, .npz and .jxc are taken; --stream then names folders that hold NAME.jxc (or the
NAME.npz that decompress made of it) for each NAME. --out gets a JSON a frame and, for images, a
picture NAME_detections.png beside it. Both are kept where they are newer than what they are made of
and were made with the same detector, codecs and score.

With the codebooks of a lidar detector as --codec, inputs are streams, features or sweeps (.bin),
and boxes are in metres; a stream is enough, no sweep is needed. With --partial a stream that is cut
or damaged behind its first codebook is read as far as it goes: boxes are those of the codebooks
before the damage, which is named with their number, and the exit status is 1.
"""
_EXAMPLES = """\
examples:
  python -m jaxcomp detect street.png --out boxes.json
  python -m jaxcomp detect street.png --stream street.jxc --codec RUN_DIRECTORY --out boxes.json
  python -m jaxcomp detect photos/ --stream streams/ --codec RUN_DIRECTORY --out boxes/
  python -m jaxcomp detect features.npz --stream p4.jxc --codec RUN_DIRECTORY
  python -m jaxcomp detect --stream p2.jxc --stream p3.jxc … --codec RUN_2 --codec RUN_3 …
  python -m jaxcomp detect sweep.jxc --codec RQ_RUN --out boxes.json
  python -m jaxcomp detect cut.jxc --codec RQ_RUN --partial
"""


def add(commands: Any) -> None:
    """Adds the parser."""
    detect = add_parser(
        commands,
        "detect",
        help="images, features or streams -> boxes as JSON and on pictures",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    detect.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="image, .npz, .jxc or folder of them"
    )
    detect.add_argument(
        "--stream", action="append", default=[], metavar="PATH",
        help=".jxc or .npz of the frame, or a folder of them; may be repeated",
    )  # fmt: skip
    detect.add_argument(
        "--codec", action="append", default=[], metavar="PATH",
        help="codec.npz or a run directory, needed for streams; may be repeated",
    )  # fmt: skip
    detect.add_argument("--detector", help="detector.npz; default: the one that ships")
    detect.add_argument("--score", type=float, default=0.3, help="least score (default 0.3)")
    detect.add_argument(
        "--out", help="the .json, or a folder; default for one frame: print the boxes only"
    )
    detect.add_argument(
        "--partial", action="store_true",
        help="residual codes: use the whole codebooks of a cut or damaged stream",
    )  # fmt: skip
    detect.add_argument("--no-pictures", action="store_true", help="write no pictures")
    add_file_options(detect)
    add_limit(detect)
    detect.set_defaults(run=run_detect)


def run_detect(args: argparse.Namespace) -> int:
    """Runs `detect`."""
    inputs: list[str] = args.inputs
    streams: list[str] = args.stream
    if not inputs and not streams:
        raise DataError("detect needs an image, features or streams; see detect --help")
    if any(path.lower().endswith(".jxc") for path in streams) and not args.codec:
        raise DataError("--stream needs --codec, the model that made it")
    keep_compiled()
    from jaxcomp import loaders
    from jaxcomp.jobs import detecting_files, file_sets

    weights = weight_files(args)
    codes = residual_codec(args) if args.codec else None
    if args.partial and codes is None:
        raise DataError(
            "--partial is for residual codes; of other streams all levels are needed, "
            "decompress --partial writes those that are left"
        )
    endings: tuple[str, ...] = detecting_files.INPUTS
    if codes is not None:
        from jaxcomp.jobs import rq_coding

        endings = rq_coding.INPUTS
    if not inputs:  # the first streams name the frames
        inputs, streams, endings = streams[:1], streams[1:], file_sets.STREAMS
    selection = file_sets.find_inputs(inputs, endings, recursive=args.recursive, leave_out=args.out)
    frames = detecting_files.find_frames(
        selection, streams, args.out, pictures=not args.no_pictures, protected=weights
    )
    if codes is not None:
        own = rq_coding.Finder(codes, score=args.score, partial=args.partial)
        return run_jobs(args, selection, frames, own)
    codecs = [loaders.load_codec(path) for path in args.codec]
    kinds = [codec.meta.get("detector_kind", "faster_rcnn") for codec in codecs]
    finder = detecting_files.Finder(
        loaders.load_split_detector(args.detector, kinds[0] if kinds else "faster_rcnn"),
        codecs,
        score=args.score,
        backend=args.backend,
        max_symbols=args.max_symbols,
    )
    return run_jobs(args, selection, frames, finder)
