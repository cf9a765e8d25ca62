"""Latency, peak memory and file size of the light face detectors on the CPU.

    python benchmarks/faces.py                                   # random weights, procedural images
    python benchmarks/faces.py --weights v1=V1.pth --weights retinaface=R.pth --photos PHOTOS

One image of --size pixels a side, from the network's input to its raw outputs: no reading, no
decoding of boxes. JAX, and ONNX in onnxruntime in single precision and in 8-bit integers, on one
and two threads, beside RetinaFace-0.25 in the same run. Every case is a process of its own that is
bound to as many cores as it has threads; the table holds the medians of all its calls, in rounds
that go through all cases, so that a slow moment of the machine hits all. Peak memory is that of the
whole process, libraries included, for JAX also the compiler. Processor time is what a call costs
whatever else runs on the machine; on one thread of a quiet machine it is the latency.

With --photos the 8-bit files are calibrated on a part of them, and their detections compared with
those of single precision on the others: average precision at overlaps of 0.5 and 0.75, the latter
being the truth from a score of 0.5 on. Random weights find nothing, so that needs --weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common

PEER = "retinaface"
RUNTIMES = ("jax", "onnx", "int8")
WORDS = {"jax": "JAX", "onnx": "ONNX fp32", "int8": "ONNX int8"}
NETWORKS = ("v1_original", "v1", "v1_24", "v2", PEER)
CALIBRATION = 32  # photos
TRUTH = 0.5  # score from which a detection of single precision is an object


def main() -> int:
    """Prints both tables; exit status 1 if a case fails."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--networks", default=",".join(NETWORKS), help=f"default {','.join(NETWORKS)}"
    )
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NETWORK=FILE",
        help="face_detector.npz or .pth of a network; the others get random weights",
    )  # fmt: skip
    parser.add_argument("--photos", metavar="FOLDER", help="for the 8-bit files, see above")
    parser.add_argument("--size", type=int, default=640, help="multiple of 32 (default 640)")
    parser.add_argument("--threads", default="1,2", help="default 1,2")
    parser.add_argument("--rounds", type=int, default=3, help="through all cases (default 3)")
    parser.add_argument("--repeats", type=int, default=10, help="calls in a round (default 10)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(_run_case(json.loads(args.case))))
        return 0
    records, table = _measure(args)
    common.finish(records, args.json)
    print(f"\nload average {os.getloadavg()[0]:.2f} at the end, {args.rounds * args.repeats} calls")
    print("\n" + table)
    return 0


def _measure(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    networks = [name.strip() for name in args.networks.split(",")]
    given = dict(word.split("=", 1) for word in args.weights)
    if not {*networks, *given} <= set(NETWORKS):
        raise SystemExit(f"networks are {', '.join(NETWORKS)}")
    threads = [int(n) for n in args.threads.split(",")]
    with tempfile.TemporaryDirectory() as place:
        files, agreement = {}, {}
        for name in networks:
            files[name], agreement[name] = _files(name, given.get(name), args, Path(place, name))
        cases = [
            {"network": name, "runtime": runtime, "threads": n, "file": str(files[name][runtime]),
             "size": args.size, "repeats": args.repeats}
            for name in networks for runtime in RUNTIMES for n in threads
        ]  # fmt: skip
        found: list[list[dict[str, Any]]] = [[] for _ in cases]
        for _ in range(args.rounds):
            for i, case in enumerate(cases):
                found[i].append(_start(case))
        sizes = {(n, r): p.stat().st_size for n, own in files.items() for r, p in own.items()}
    rows = [{**case, **_together(runs)} for case, runs in zip(cases, found, strict=True)]
    return _records(rows, sizes, agreement), _markdown(rows, sizes, agreement, threads)


def _together(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    ms, cpu = (statistics.median(t for run in runs for t in run[k]) for k in ("ms", "cpu_ms"))
    return {"ms": ms, "cpu_ms": cpu, "peak_mib": max(run["peak_mib"] for run in runs)}


def _start(case: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case['network']} {case['runtime']}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _bind(threads: int) -> None:
    """Gives this process so many cores, as far as there are; XLA then starts as many threads."""
    with contextlib.suppress(AttributeError):  # not on macOS
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _run_case(case: Mapping[str, Any]) -> dict[str, Any]:
    """{"ms": times of the calls, "peak_mib"}, in this process."""
    _bind(case["threads"])
    rng = np.random.default_rng(0)
    x = rng.uniform(-120, 130, (1, 3, case["size"], case["size"])).astype(np.float32)
    call = (_jax_call if case["runtime"] == "jax" else _onnx_call)(case, x)
    for _ in range(3):
        call()
    times, work = [], []
    for _ in range(case["repeats"]):
        start = time.process_time()
        times.append(1e3 * common.seconds(call))
        work.append(1e3 * (time.process_time() - start))
    return {"ms": times, "cpu_ms": work, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    """The most memory that this program had; Linux counts in `ru_maxrss` who started it too."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _jax_call(case: Mapping[str, Any], x: np.ndarray) -> Any:
    import jax

    from jaxcomp.jobs.exporting import raw_outputs
    from jaxcomp.loaders_face import load_face_detector
    from jaxcomp.ops.compiling import inference_options

    detector = load_face_detector(case["file"])
    run = jax.jit(raw_outputs, static_argnums=0, compiler_options=inference_options())
    return lambda: jax.block_until_ready(run(detector.model, detector.variables, x))


def _onnx_call(case: Mapping[str, Any], x: np.ndarray) -> Any:
    import onnxruntime  # not through jaxcomp, whose imports would count as its memory

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = case["threads"]
    one = onnxruntime.InferenceSession(case["file"], options, providers=["CPUExecutionProvider"])
    return lambda: one.run(None, {"input": x})


def _files(
    name: str, weights: str | None, args: argparse.Namespace, folder: Path
) -> tuple[dict[str, Path], dict[str, float]]:
    """({runtime: its file}, agreement of the 8-bit file) of a network."""
    from jaxcomp.interop.onnx_face import face_onnx
    from jaxcomp.jobs import deploying
    from jaxcomp.jobs.exporting import sample_input, to_input
    from jaxcomp.loaders_face import load_face_detector

    folder.mkdir()
    files = {"jax": folder / "face_detector.npz", "onnx": folder / "fp32.onnx"}
    files["int8"] = folder / "int8.onnx"
    _write_weights(name, weights, files["jax"])
    detector = load_face_detector(files["jax"])
    content = face_onnx(detector.variables, detector.model.cfg).SerializeToString()
    files["onnx"].write_bytes(content)
    photos, others = _photos(args.photos, args.size)
    inputs = [to_input(image, 32) for image in photos[:CALIBRATION]]
    quantised = deploying.quantise(content, inputs or [sample_input((160, 160))])
    files["int8"].write_bytes(quantised)
    found = _agreement(content, quantised, detector.model.cfg, others) if weights else {}
    return files, found


def _write_weights(name: str, weights: str | None, path: Path) -> None:
    import dataclasses

    import flax.traverse_util
    import jax

    from jaxcomp import weights_file
    from jaxcomp.interop.featherface_names import abstract_variables
    from jaxcomp.loaders_face import FACE_KIND, load_face_detector
    from jaxcomp.models.featherface import FaceDetector, face_config

    cfg = face_config(name)
    if weights:
        detector = load_face_detector(weights)
        known = {k: getattr(detector.model.cfg, k) for k in ("features", "pyramid", "context")}
        if known != {k: getattr(cfg, k) for k in known}:
            raise SystemExit(f"{weights} is no {name} ({known})")
        cfg, tree = detector.model.cfg, jax.device_get(detector.variables)
    else:
        rng, flat = np.random.default_rng(0), {}
        for key, leaf in abstract_variables(FaceDetector(cfg)).items():
            x = 0.1 * rng.standard_normal(leaf.shape)
            positive = key.endswith(("var", "scale", "_weights"))
            flat[key] = (1 + x if positive else x).astype(np.float32)
        tree = flax.traverse_util.unflatten_dict(flat, sep="/")
    weights_file.export_npz(path, tree, {"kind": FACE_KIND, "model": dataclasses.asdict(cfg)})


def _photos(folder: str | None, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photos to calibrate with and others to compare on, shrunk to the size where larger."""
    if not folder:
        return [], []
    from jaxcomp.data.images import read_image
    from jaxcomp.data.photos import held_out, on_canvas, photo_files

    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for path in photo_files(folder):
        image, (rows, columns) = on_canvas(read_image(path), size, size)
        parts[held_out(path.name, 1 / 3)].append(image[:rows, :columns])
    return parts


def _agreement(
    content: bytes, quantised: bytes, cfg: Any, images: Iterable[np.ndarray]
) -> dict[str, float]:
    """{"ap50", "ap75"} of the 8-bit file, and how many "faces" single precision finds."""
    from jaxcomp.evaluate.detection import Frame, voc_metrics
    from jaxcomp.jobs.exporting import OnnxFaceDetector, session

    exact, coarse = (OnnxFaceDetector(session(c), cfg) for c in (content, quantised))
    frames = []
    for image in images:
        truth, found = exact.detect(image), coarse.detect(image)
        objects = truth["boxes"][truth["scores"] >= TRUTH]
        ones, labels = (np.ones(len(x), np.int32) for x in (found["boxes"], objects))
        frames.append(Frame(found["boxes"], found["scores"], ones, objects, labels))
    if not frames:
        return {}
    rows = {n: voc_metrics(frames, ("Face",), n / 100)[f"map{n}_allpoint"] for n in (50, 75)}
    return {"ap50": rows[50], "ap75": rows[75], "faces": sum(len(f.truth_boxes) for f in frames)}


def _records(
    rows: Sequence[Mapping[str, Any]], sizes: Mapping[Any, int], agreement: Mapping[str, Any]
) -> list[dict[str, Any]]:
    peers = {(r["runtime"], r["threads"]): r for r in rows if r["network"] == PEER}
    records = []
    for row in rows:
        peer = peers.get((row["runtime"], row["threads"]))
        name = f"{row['network']} {row['runtime']} {row['threads']} thread(s)"
        for key, what, unit in (
            ("ms", "latency", "ms"), ("cpu_ms", "processor time", "ms"),
            ("peak_mib", "peak memory", "MiB"),
        ):  # fmt: skip
            records.append(
                common.record(
                    f"{name} {what}", row[key], unit,
                    peer="RetinaFace-0.25" if peer else None, peer_value=peer and peer[key],
                )
            )  # fmt: skip
    for (network, runtime), size in sizes.items():
        records.append(common.record(f"{network} {runtime} file", size, "bytes"))
    for network, found in agreement.items():
        for key, value in found.items():
            records.append(common.record(f"{network} int8 agreement {key}", value, ""))
    return records


def _markdown(
    rows: Sequence[Mapping[str, Any]],
    sizes: Mapping[Any, int],
    agreement: Mapping[str, Mapping[str, float]],
    threads: Sequence[int],
) -> str:
    """A row for each network and runtime; milliseconds and MiB by number of threads."""
    heads = ["network", "runtime", "file, kB"]
    heads += [f"ms, {n} thread{'s' * (n > 1)}" for n in threads]
    heads += [f"processor ms, {threads[0]} thread{'s' * (threads[0] > 1)}", "of RetinaFace's"]
    heads += ["peak MiB", "AP50 / AP75 beside fp32"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    by_case = {(r["network"], r["runtime"], r["threads"]): r for r in rows}
    for network, runtime in dict.fromkeys((r["network"], r["runtime"]) for r in rows):
        own = [by_case[network, runtime, n] for n in threads]
        peers = [by_case.get((PEER, runtime, n)) for n in threads]
        ratio = f"{own[0]['cpu_ms'] / peers[0]['cpu_ms']:.2f}" if peers[0] else ""
        found = agreement.get(network, {}) if runtime == "int8" else {}
        accuracy = f"{found['ap50']:.3f} / {found['ap75']:.3f}" if found else ""
        cells = [f"`{network}`", WORDS[runtime], f"{sizes[network, runtime] / 1e3:,.0f}"]
        cells += [f"{r['ms']:.1f}" for r in own]
        cells += [f"{own[0]['cpu_ms']:.1f}", ratio]
        cells += [f"{max(r['peak_mib'] for r in own):.0f}", accuracy]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
