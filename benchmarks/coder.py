"""The entropy coder against `constriction` and CompressAI's, on the same tables and symbols.

    pip install 'jaxcomp[bench]'
    python benchmarks/coder.py                      # P2..P6 of a 416x1344 image, at three rates
    python benchmarks/coder.py --levels p2,p6 --rates 1.5 --repeats 5 --json coder.json
    pip install --no-deps --target DIR compressai; PYTHONPATH=DIR python benchmarks/coder.py

The latents are those of a 192-channel codec with four stride-2 stages: Laplacian symbols, their
scales spread over the channels, drawn from the densities that the tables were made from. A turn
codes eight different frames, one by one (of a single one the processor would learn the branches by
heart), and takes the best of two rounds. The coders take turns, of which the medians are shown. All
run on one thread.

Ours is `rans.encode` and `rans.decode`, symbols to payload and back, lanes chosen as always.
"In one call" is `rans.decode_each`: four streams of equal length take their steps together.
constriction gets its fastest form: a fixed model per channel, made before the clock starts, and
symbols sorted by channel beforehand. CompressAI is `EntropyBottleneck.compress` and `decompress`,
as its users call it, with our tables put in; it is imported without its other parts, which need
torchvision. Whatever is not installed is left out with a line that says so.

Goals: encode at least 1.3 and decode 3 times constriction's speed, both 20 times CompressAI's; at
most 0.1 % over the ideal code length for streams above 4 kB; at most 24 bytes of header for a file
of one stream; no pause above 1 s when the first stream is coded.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import common
from jaxcomp.codecs import bitstream, rans, rans_numba
from jaxcomp.codecs.tables import CdfTables, tables_from_pmfs

CHANNELS, FRAMES = 192, 8
LEVELS = {"p2": (104, 336), "p3": (52, 168), "p4": (26, 84), "p5": (13, 42), "p6": (7, 21)}
STAGES = 4
FIRST_CALL = """
import sys, time
import numpy as np
from jaxcomp.codecs import rans
from jaxcomp.codecs.tables import tables_from_pmfs
tables = tables_from_pmfs([[0.5, 0.5]])
start = time.perf_counter()
payload, lanes = rans.encode(np.zeros((9, 1), np.int32), tables)
middle = time.perf_counter()
rans.decode(payload, 9, tables, lanes)
print([middle - start, time.perf_counter() - middle])
"""

Timer = Callable[[], float]


@dataclasses.dataclass
class Latents:
    """Symbols [h, w, M] of each frame, the tables, and what an ideal coder spends on a frame.

    The ideal knows the exact densities, so that rounding the tables is part of the overhead.
    """

    frames: list[np.ndarray]
    tables: CdfTables
    ideal_bytes: float


def main() -> None:
    """Measures and prints."""
    parser = common.parser(__doc__)
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--rates", default="0.3,1.5,4", help="bits per symbol, about")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", default="1,8,64", help="of the JAX coder; empty: leave it out")
    args = parser.parse_args()
    levels = args.levels.split(",")
    if unknown := set(levels) - set(LEVELS):
        sys.exit(f"coder: unknown levels {sorted(unknown)}; choose from {', '.join(LEVELS)}")
    peers = {"constriction": constriction_peer(), "CompressAI": compressai_peer()}
    peers = {name: peer for name, peer in peers.items() if peer is not None}
    records = first_call()
    for rate, level in itertools.product(map(float, args.rates.split(",")), levels):
        records += one_level(level, rate, peers, args.repeats)
    for batch in (int(b) for b in args.batches.split(",") if b):
        records += jax_batch(batch, 5)
    common.finish(records, args.json)


def one_level(level: str, rate: float, peers: dict[str, Any], repeats: int) -> list[dict]:
    """Records of one level at one rate."""
    latents = make(LEVELS[level], rate)
    frames, tables = latents.frames, latents.tables
    coded, size = rans.encode_batch(frames, tables), frames[0].size
    payload, lanes = coded[0]
    name = f"{level}, {rate:g} bit/symbol, {size} symbols"
    sides = {"ours": ours(frames, tables)}
    sides |= {peer: start(frames, tables) for peer, start in peers.items()}
    payloads, used = zip(*coded, strict=True)

    def together() -> float:
        return seconds(lambda: rans.decode_each(payloads, [size] * FRAMES, tables, used))

    timers = [t for pair in sides.values() for t in pair]
    times = common.interleave([*timers, together], repeats)
    speed = {s: FRAMES * size / np.array(times[2 * i :][:2]) / 1e6 for i, s in enumerate(sides)}
    records = []
    goals = {"constriction": (1.3, 3.0), "CompressAI": (20.0, 20.0)}
    for j, direction in enumerate(("encode", "decode")):
        for peer in peers:
            value, other = float(speed["ours"][j]), float(speed[peer][j])
            records.append(
                common.record(
                    f"{direction}, {name}",
                    value,
                    "Msymbol/s",
                    peer=peer,
                    peer_value=other,
                    goal=goals[peer][j],
                    higher_is_better=True,
                )
            )
    if "constriction" in peers:
        value, other = FRAMES * size / times[-1] / 1e6, float(speed["constriction"][1])
        what = f"decode {FRAMES} in one call, {name}"
        options: dict[str, Any] = {"peer": "constriction", "peer_value": other, "goal": 3.0}
        records.append(common.record(what, value, "Msymbol/s", higher_is_better=True, **options))
    over = 100 * (sum(len(p) for p, _ in coded) / FRAMES / latents.ideal_bytes - 1)
    goal = 0.1 if len(payload) > 4000 else None
    what = f"overhead, {name}, {len(payload)} bytes, {lanes or 'short form,'} lanes"
    records.append(common.record(what.replace(", lanes", ""), float(over), "%", goal=goal))
    stream = bitstream.Stream("", LEVELS[level], STAGES, lanes, payload)
    header = len(bitstream.write("factorised", tables.digest, [stream])) - len(payload)
    records.append(common.record(f"header, {name}", header, "bytes", goal=24))
    if level == "p6":
        both = 1e6 * (times[0] + times[1]) / FRAMES
        records.append(common.record(f"latency both ways, {name}", both, "us"))
    if level == "p2":
        kept, derived = len(tables.to_bytes()), rans_numba.table_bytes(tables)
        records.append(common.record(f"tables, {name}", kept / 1024, "KB in a checkpoint"))
        records.append(common.record(f"tables, {name}", derived / 1024, "KB of look-ups"))
    return records


def make(shape: tuple[int, int], rate: float) -> Latents:
    """Laplacian latents of about `rate` bits per symbol."""
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(0, 0.8, CHANNELS))
    scale = next(s for s in np.geomspace(0.02, 50, 400) if _entropy(s * spread) >= rate) * spread
    reach = (14 * scale).astype(int) + 2
    pmfs = [_laplace(s, r) for s, r in zip(scale, reach, strict=True)]
    escape = [max(0.0, 1 - p.sum()) for p in pmfs]
    tables = tables_from_pmfs(pmfs, offset=-reach, escape=escape)
    size = [-(-n // 2**STAGES) for n in shape]
    symbols = np.empty((FRAMES, *size, CHANNELS), np.int32)
    bits = 0.0
    for m, p in enumerate(pmfs):
        index = rng.choice(len(p), (FRAMES, *size), p=p / p.sum())
        symbols[..., m] = index - reach[m]
        bits -= np.log2(p[index]).sum()
    return Latents(list(symbols), tables, float(bits) / 8 / FRAMES)


def ours(frames: list[np.ndarray], tables: CdfTables) -> tuple[Timer, Timer]:
    """Timers of encoding and of decoding all frames."""
    coded, size = rans.encode_batch(frames, tables), frames[0].size

    def encode() -> list:
        return [rans.encode(symbols, tables) for symbols in frames]

    def decode() -> list:
        return [rans.decode(payload, size, tables, lanes) for payload, lanes in coded]

    assert all(np.array_equal(a, b.ravel()) for a, b in zip(decode(), frames, strict=True))
    return lambda: seconds(encode), lambda: seconds(decode)


def constriction_peer() -> Any:
    """Makes timers like `ours`, or None."""
    if importlib.util.find_spec("constriction") is None:
        print("coder: constriction is not installed (pip install 'jaxcomp[bench]'); left out")
        return None
    from constriction import stream

    def start(frames: list[np.ndarray], tables: CdfTables) -> tuple[Timer, Timer]:
        count, models = frames[0][..., 0].size, []
        for m, n in enumerate(tables.length):
            width = np.diff(tables.cdf[m, : n + 2].astype(np.int64))
            models.append(stream.model.Categorical(width / width.sum(), perfect=False))
        sorted_frames = [
            [np.ascontiguousarray(f[..., m].ravel() - tables.offset[m]) for m in range(CHANNELS)]
            for f in frames
        ]

        def encode() -> list[np.ndarray]:
            out = []
            for columns in sorted_frames:
                coder = stream.stack.AnsCoder()
                for column, model in zip(reversed(columns), reversed(models), strict=True):
                    coder.encode_reverse(column, model)
                out.append(coder.get_compressed())
            return out

        coded = encode()

        def decode() -> list[list[np.ndarray]]:
            coders = map(stream.stack.AnsCoder, coded)
            return [[coder.decode(model, count) for model in models] for coder in coders]

        for out, columns in zip(decode(), sorted_frames, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(out, columns, strict=True))
        return lambda: seconds(encode), lambda: seconds(decode)

    return start


def compressai_peer() -> Any:
    """Makes timers like `ours`, or None."""
    found = importlib.util.find_spec("compressai")
    if found is None or importlib.util.find_spec("torch") is None:
        print("coder: compressai or torch is not installed (see --help); left out")
        return None
    # The package's own __init__ imports everything; its entropy models need little.
    package = types.ModuleType("compressai")
    package.__path__ = list(found.submodule_search_locations or ())
    package.available_entropy_coders = lambda: ["ans"]  # type: ignore[attr-defined]
    package.get_entropy_coder = lambda: "ans"  # type: ignore[attr-defined]
    sys.modules["compressai"] = package
    try:
        import torch
        from compressai.entropy_models import EntropyBottleneck
    except ImportError as error:
        print(f"coder: compressai cannot be imported ({error}); left out")
        return None
    torch.set_num_threads(1)

    def start(frames: list[np.ndarray], tables: CdfTables) -> tuple[Timer, Timer]:
        model = EntropyBottleneck(CHANNELS).eval()
        # 15 bits to the 16 of its coder; the layout with the escape last is the same.
        model._quantized_cdf = torch.tensor(tables.cdf.astype(np.int32) << 16 - tables.precision)
        model._cdf_length = torch.tensor(tables.length + 2)
        model._offset = torch.tensor(tables.offset)
        ys = [torch.tensor(f.transpose(2, 0, 1)[None].astype(np.float32)) for f in frames]

        @torch.no_grad()
        def encode() -> list[list[bytes]]:
            return [model.compress(y) for y in ys]

        coded = encode()

        @torch.no_grad()
        def decode() -> list[Any]:
            return [model.decompress(strings, ys[0].shape[2:]) for strings in coded]

        assert all(torch.equal(a, b) for a, b in zip(decode(), ys, strict=True))

        return lambda: seconds(encode), lambda: seconds(decode)

    return start


def jax_batch(batch: int, repeats: int) -> list[dict]:
    """Records of the JAX coder on a batch of P2 latents, automatic lanes and 64."""
    import jax

    latents = make(LEVELS["p2"], 1.5)
    streams = [latents.frames[i % FRAMES] for i in range(batch)]
    tables, records = latents.tables, []
    for lanes in (None, 64):
        coded = rans.encode_batch(streams, tables, lanes, backend="jax")
        payloads, used = zip(*coded, strict=True)
        counts = [x.size for x in streams]

        def encode(lanes: int | None = lanes) -> list:
            return rans.encode_batch(streams, tables, lanes, backend="jax")

        def decode(payloads: Any = payloads, used: Any = used, counts: Any = counts) -> list:
            return rans.decode_each(payloads, counts, tables, used, backend="jax")

        assert all(np.array_equal(a, b.ravel()) for a, b in zip(decode(), streams, strict=True))
        for name, run in (("encode", encode), ("decode", decode)):
            (took,) = common.interleave([lambda run=run: seconds(run)], repeats)
            what = f"jax {name} on {jax.default_backend()}, batch {batch}, {used[0] or 1} lanes"
            records.append(common.record(what, sum(counts) / took / 1e6, "Msymbol/s"))
    return records


def first_call() -> list[dict]:
    """Records of the first stream in a new process, before and after anything was compiled."""
    records = []
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
        for state in ("nothing compiled yet", "compiled before"):
            runs = [sys.executable, "-c", FIRST_CALL]
            out = subprocess.run(runs, env=env, capture_output=True, text=True, check=True)
            for name, value in zip(("encode", "decode"), json.loads(out.stdout), strict=True):
                what = f"first {name} of a process, {state}"
                records.append(common.record(what, value, "s", goal=1.0))
    return records


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes: the best of two."""
    return min(common.seconds(run) for _ in range(2))


def _laplace(scale: float, reach: int) -> np.ndarray:
    """Probabilities of the integers from -reach to reach."""
    edges = np.arange(-reach, reach + 2) - 0.5
    tails = 0.5 * np.exp(-np.abs(edges) / scale)
    # On either side the difference of the tails keeps its digits; zero has both.
    out = np.abs(np.diff(tails))
    out[reach] = 1 - tails[reach] - tails[reach + 1]
    return out


def _entropy(scales: np.ndarray) -> float:
    """Mean bits per symbol of rounded Laplacians."""
    total = 0.0
    for s in scales:
        p = _laplace(s, int(14 * s) + 2)
        total -= (p * np.log2(p + 1e-300)).sum()
    return total / len(scales)


if __name__ == "__main__":
    main()
