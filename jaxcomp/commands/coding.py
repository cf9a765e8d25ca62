"""`compress` and `decompress`."""

from __future__ import annotations

import argparse
from typing import Any

from jaxcomp.commands import add_parser
from jaxcomp.compile_cache import keep_compiled
from jaxcomp.errors import DataError

BACKENDS = ("numba", "numpy", "jax")

_COMPRESS = """\
Images (through the detector's head) or feature files to .jxc streams, one a frame.

With the codebooks of a lidar detector as --codec, inputs are sweeps (.bin, x y z reflectance as
float32) or its features, and --codebooks and --embeddings choose the point.

Feature files are .npy, one level [H, W, C] or [1, H, W, C], or .npz, with the codec's level under
its name ("p4") or as the only array; any floating type. Of a folder, all images, .npy and .npz are
taken, with --recursive those of its subfolders too; other files are named and left out. Streams go
beside their sources, for folders below --out, where subfolders are kept.

A stream that is whole, newer than its source and made with the same codec is kept, so the same
command goes on where it was stopped. A file that cannot be coded is named, the others are made, and
the exit status is 1.
"""
_COMPRESS_EXAMPLES = """\
examples:
  python -m jaxcomp compress street.png --codec RUN_DIRECTORY
  python -m jaxcomp compress photos/ --recursive --codec RUN_DIRECTORY --out streams/
  python -m jaxcomp compress p4.npy --codec codec.npz --out p4.jxc
  python -m jaxcomp compress sweep.bin --codec RQ_RUN --codebooks 3 --embeddings 64
"""
_DECOMPRESS = """\
.jxc streams back to features: a .npz each, with float32 [1, H, W, C] under the level's name and,
as JSON text in the uint8 array __meta__, the codec's digest and the metadata of the stream.

Folders, --out, resuming and exit status are as for compress. With --partial the undamaged levels
of a damaged file are written (each is exact or missing), the damage is named, and the status is 1.
Of residual codes it writes the features of the codebooks before the damage.
"""
_DECOMPRESS_EXAMPLES = """\
examples:
  python -m jaxcomp decompress street.jxc --codec RUN_DIRECTORY --out street.npz
  python -m jaxcomp decompress streams/ --codec RUN_DIRECTORY --out features/ --partial
  python -m jaxcomp decompress sweep.jxc --codec RQ_RUN --codebooks 1
"""


def add(commands: Any) -> None:
    """Adds the parsers."""
    compress = add_parser(
        commands,
        "compress",
        help="images or features -> .jxc",
        description=_COMPRESS,
        epilog=_COMPRESS_EXAMPLES,
    )
    compress.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, .npy, .npz, lidar .bin or folder"
    )
    compress.add_argument("--codec", required=True, help="codec.npz, rq.npz or a run directory")
    compress.add_argument("--detector", help="detector.npz; default: the one that ships")
    compress.add_argument("--out", help="the .jxc, or a folder; default: beside the input")
    compress.add_argument(
        "--no-metadata",
        action="store_true",
        help="leave image size, scale and class names out: smaller streams, but boxes detected "
        "from them alone are in the network's pixels",
    )
    compress.add_argument(
        "--codebooks", type=_count, metavar="K", help="residual codes: the first K (default all)"
    )
    compress.add_argument(
        "--embeddings",
        type=_counts,
        metavar="N[,N...]",
        help="residual codes: the first N rows of every codebook, or of each (default all)",
    )
    add_file_options(compress)
    compress.set_defaults(run=run_compress)

    decompress = add_parser(
        commands,
        "decompress",
        help=".jxc -> .npz of features",
        description=_DECOMPRESS,
        epilog=_DECOMPRESS_EXAMPLES,
    )
    decompress.add_argument("inputs", nargs="+", metavar="INPUT", help=".jxc or folder")
    decompress.add_argument("--codec", required=True, help="codec.npz, rq.npz or a run directory")
    decompress.add_argument(
        "--codebooks",
        type=_count,
        metavar="K",
        help="residual codes: decode the first K alone (default all of the file)",
    )
    decompress.add_argument(
        "--out", help="the .npz, or a folder; default: NAME.features.npz beside the stream"
    )
    decompress.add_argument(
        "--partial", action="store_true", help="write what is undamaged of a damaged file"
    )
    add_file_options(decompress)
    add_limit(decompress)
    decompress.set_defaults(run=run_decompress)


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """The options of all commands that read streams or write many files."""
    parser.add_argument("--recursive", action="store_true", help="also look into subfolders")
    parser.add_argument(
        "--overwrite", action="store_true", help="make again what is there and up to date"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="numba",
        help="who runs the entropy coder; all give the same (default numba)",
    )


def add_limit(parser: argparse.ArgumentParser) -> None:
    """The option of all commands that decode streams."""
    parser.add_argument(
        "--max-symbols",
        type=_count,
        metavar="N",
        help="refuse a stream that announces more latents than N, before memory or time is spent "
        "on it (default 16777216; with --backend numpy, which is slow, 524288 after one another)",
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def residual_codec(args: argparse.Namespace) -> Any:
    """The codec of residual codes that --codec means, None if it means another.

    Raises:
      CheckpointError: its file cannot be read.
      DataError: options contradict each other.
    """
    from jaxcomp.jobs.rq_files import residual_file

    given = args.codec if isinstance(args.codec, list) else [args.codec]
    files = [residual_file(path) for path in given]
    own = [name for name in ("codebooks", "embeddings") if getattr(args, name, None)]
    if not any(files):
        if own:
            raise DataError(f"--{own[0]} is for residual codes; {given[0]!r} is another codec")
        return None
    if len(files) > 1:
        raise DataError("residual codes hold all features: give one --codec alone")
    if getattr(args, "max_symbols", None) or args.backend != "numba":
        raise DataError("--backend and --max-symbols are not for residual codes; leave them out")
    if getattr(args, "partial", False) and own:
        raise DataError("give --partial or --codebooks, not both")
    from jaxcomp.jobs.rq_codec import load_residual_codec

    return load_residual_codec(str(files[0]), getattr(args, "detector", None))


def run_compress(args: argparse.Namespace) -> int:
    """Runs `compress`."""
    keep_compiled()
    from jaxcomp import loaders
    from jaxcomp.jobs import coding_files, file_sets

    codes = residual_codec(args)
    if codes is not None:
        from jaxcomp.jobs import rq_coding

        endings = (*rq_coding.SWEEPS, *file_sets.FEATURES)
        selection, items = _items(args, endings, ".jxc")
        maker = rq_coding.Compressor(codes, args.codebooks, args.embeddings)
        return run_jobs(args, selection, items, maker)
    endings = (*file_sets.IMAGES, *file_sets.FEATURES)
    selection, items = _items(args, endings, ".jxc")
    worker = coding_files.Compressor(
        loaders.load_codec(args.codec),
        args.detector,
        metadata=not args.no_metadata,
        backend=args.backend,
    )
    return run_jobs(args, selection, items, worker)


def run_decompress(args: argparse.Namespace) -> int:
    """Runs `decompress`."""
    keep_compiled()
    from jaxcomp import loaders
    from jaxcomp.jobs import coding_files, file_sets

    ending = ".npz" if args.out else ".features.npz"  # never over the .npz that was compressed
    codes = residual_codec(args)
    selection, items = _items(args, file_sets.STREAMS, ending)
    if codes is not None:
        from jaxcomp.jobs import rq_coding

        reader = rq_coding.Decompressor(codes, partial=args.partial, codebooks=args.codebooks)
        return run_jobs(args, selection, items, reader)
    worker = coding_files.Decompressor(
        loaders.load_codec(args.codec),
        partial=args.partial,
        backend=args.backend,
        max_symbols=args.max_symbols,
    )
    return run_jobs(args, selection, items, worker)


def run_jobs(args: argparse.Namespace, selection: Any, jobs: Any, worker: Any) -> int:
    """Runs a worker over its jobs as the options say; returns the exit status."""
    from jaxcomp.jobs import file_runs

    return file_runs.run_files(
        jobs,
        worker,
        up_to_date=(lambda _: False) if args.overwrite else worker.up_to_date,
        junk=selection.junk,
        single=selection.single,
    )


def weight_files(args: argparse.Namespace) -> list[Any]:
    """The weights that a command reads, found before anything is loaded.

    Raises:
      CheckpointError: there are none at a path.
    """
    from jaxcomp import loaders
    from jaxcomp.jobs.rq_files import residual_file
    from jaxcomp.loaders_lidar import LIDAR_DETECTOR_FILE

    given = args.codec if isinstance(args.codec, list) else [args.codec]
    codes = [residual_file(path) for path in given if path]
    found = [
        file or loaders.find_file(path, loaders.CODEC_FILE)
        for path, file in zip(filter(None, given), codes, strict=True)
    ]
    if getattr(args, "detector", None):
        name = LIDAR_DETECTOR_FILE if any(codes) else loaders.DETECTOR_FILE
        found.append(loaders.find_file(args.detector, name))
    return found


def _items(args: argparse.Namespace, endings: Any, ending: str) -> tuple[Any, Any]:
    from jaxcomp.jobs import file_sets

    weights = weight_files(args)
    selection = file_sets.find_inputs(
        args.inputs, endings, recursive=args.recursive, leave_out=args.out
    )
    return selection, file_sets.place_outputs(selection, args.out, ending, weights)
