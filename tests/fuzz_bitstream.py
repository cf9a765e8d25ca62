"""Damaged bytes against everything that reads coded data: `python -m tests.fuzz_bitstream`.

Every truncation, random bit flips and random blobs go into every entry point. Allowed outcomes:

    refused   a `BitstreamError`
    same      nothing but exact results (of partial readers: of the chunks that are left)
    other     another result: only where no checksum stands before the entry point, that is for bare
              rANS payloads, and for files that were repaired, whose checksums were made right after
              the damage as an attacker would: nobody can notice those, but what comes out must have
              the shape that the file announces

Any other exception is a bug and ends the run with its trace. `other` in another row is one too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxcomp import codecs
from jaxcomp.codecs import bitstream, chunks, rans, rq_stream
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles
from jaxcomp.errors import BitstreamError
from jaxcomp.jobs import rq_files
from jaxcomp.loaders import LevelCodec

BATCH = 250  # bare payloads that are decoded in one call
FILES = 2  # files of `decompress_batch`
CHANNELS = 3
LIMITS = {"max_symbols": 5000, "max_values": 5000}
RQ_LIMITS = {"max_cells": 5000, "max_values": 20_000}
RQ_NAMES = ("0.000000008000", "0.08", "+0.8", "0.8 ", "0.٨", "0.-8", "0.9", "14.8", "", "x", "8")
GOLDEN = pathlib.Path(__file__).parent / "golden"


@dataclasses.dataclass
class Row:
    """Outcomes of one kind of damage at one entry point."""

    entry: str
    damage: str
    tried: int = 0
    refused: int = 0
    same: int = 0
    other: int = 0
    slowest: float = 0.0  # seconds of all processor cores

    def count(self, outcomes: list[str], seconds: float) -> None:
        """Adds the outcomes of cases that took so long together."""
        self.tried += len(outcomes)
        for outcome in outcomes:
            setattr(self, outcome, getattr(self, outcome) + 1)
        self.slowest = max(self.slowest, seconds / len(outcomes))

    @property
    def allowed(self) -> bool:
        """Whether nothing wrong was accepted."""
        unchecked = self.entry.startswith(("payload", "repaired"))
        return self.other == 0 or unchecked


@dataclasses.dataclass
class RqTarget:
    """The golden file of residual codes, which is what `prefix` and the decoders must give."""

    model: rq_stream.RqModel
    blob: bytes
    frame: rq_stream.Frame

    @classmethod
    def make(cls) -> RqTarget:
        """Read anew."""
        _, model, _ = rq_files.load_rq(GOLDEN / "residual_v1.npz")
        assert model is not None
        blob = (GOLDEN / "residual_v1.jxc").read_bytes()
        return cls(model, blob, rq_stream.decompress(blob, model))


@dataclasses.dataclass
class Target:
    """A small codec, a file of two levels of it, and bare payloads of both forms."""

    codec: FactorisedCodec
    variables: dict
    tables: codecs.CdfTables
    blob: bytes
    features: dict

    @classmethod
    def make(cls) -> Target:
        """Made anew every time; the same on one machine."""
        codec = FactorisedCodec(CHANNELS, 4, 5, stages=1)
        x = 20 * jax.random.normal(jax.random.key(1), (1, 12, 14, CHANNELS))
        variables = refresh_quantiles(jax.jit(codec.init)(jax.random.key(0), x))
        tables = codecs.build_tables(codec, variables)
        named = {"p2": x, "p3": x[:, :5, :6]}
        blob = codecs.compress(codec, variables, tables, named, {"size": [24, 28]})
        features = codecs.decompress(codec, variables, tables, blob)
        return cls(codec, variables, tables, blob, features)


def damaged(data: bytes, flips: int, blobs: int, seed: int) -> Iterator[tuple[str, list[bytes]]]:
    """(kind of damage, the damaged copies)."""
    rng = np.random.default_rng(seed)
    yield "truncated", [data[:size] for size in range(len(data))]
    yield "flipped", [_flipped(data, rng) for _ in range(flips)]
    # Half of the blobs begin like the real thing, to get past the first check.
    keep = [int(k) for k in rng.choice([0, 4, 13, 20], blobs)]
    sizes = rng.integers(0, 2 * len(data), blobs)
    yield "random", [data[:k] + rng.bytes(int(n)) for k, n in zip(keep, sizes, strict=True)]


def fuzz(flips: int, blobs: int, seed: int = 0) -> list[Row]:
    """Runs everything; see the module's description."""
    target = Target.make()
    rows: list[Row] = []
    for name, data, run in _entries(target):
        for damage, cases in damaged(data, flips, blobs, seed):
            row = Row(name, damage)
            for case in cases:
                start = time.process_time()
                row.count([_outcome(run, case)], time.process_time() - start)
            rows.append(row)
    for backend in rans.BACKENDS:
        rows += _repaired(target, backend, flips, seed)
        rows += _payloads(target, backend, flips, blobs, seed)
    return rows + fuzz_residual(flips, blobs, seed)


def fuzz_residual(flips: int, blobs: int, seed: int = 0) -> list[Row]:
    """The rows of residual codes."""
    target = RqTarget.make()
    rows: list[Row] = []
    readers = _rq_readers(target)
    for name, run in readers.items():
        for damage, cases in damaged(target.blob, flips, blobs, seed):
            row = Row(f"residual, {name}", damage)
            for case in cases:
                start = time.process_time()
                row.count([_outcome(run, case)], time.process_time() - start)
            rows.append(row)
    for damage in ("in streams", "in shapes", "in names", "in metadata", "anywhere"):
        rng = np.random.default_rng(seed)
        row = Row("repaired, residual", damage)
        turns = itertools.cycle(readers.values())
        for _ in range(flips):
            blob, run = _repair(_damage(target.blob, damage, rng)), next(turns)
            start = time.process_time()
            row.count([_outcome(run, blob)], time.process_time() - start)
        rows.append(row)
    return rows


def report(rows: list[Row]) -> str:
    """A table of counts."""
    head = f"{'entry point':<28}{'damage':<11}{'tried':>7}{'refused':>9}{'same':>6}{'other':>7}"
    lines = [head + f"{'slowest ms':>12}"]
    for r in rows:
        counts = f"{r.tried:>7}{r.refused:>9}{r.same:>6}{r.other:>7}{1e3 * r.slowest:>12.1f}"
        lines.append(f"{r.entry:<28}{r.damage:<11}{counts}")
    return "\n".join(lines)


def _entries(target: Target) -> Iterator[tuple[str, bytes, Callable[[bytes], bool]]]:
    """(name, undamaged bytes, reader that says whether the result is the undamaged one)."""
    tables, blob = target.tables, target.blob
    whole = bitstream.read(blob)

    def read(data: bytes) -> bool:
        return bitstream.read(data, channels=tables.channels) == whole

    def salvage(data: bytes) -> bool:
        found, errors = bitstream.salvage(data, channels=tables.channels)
        if len(found.streams) < len(whole.streams) or found.meta != whole.meta:
            assert errors, "something is missing and nothing was said"
        # What was found must be exact, with the header of the file behind it.
        return (
            (found.kind, found.digest) == (whole.kind, whole.digest) or not found.streams
        ) and all(stream in whole.streams for stream in found.streams)

    def blob_of_tables(data: bytes) -> bool:
        read_tables = codecs.CdfTables.from_bytes(data)
        return bitstream.read(blob, digest=read_tables.digest) == whole

    yield "bitstream.read", blob, read
    yield "bitstream.salvage", blob, salvage
    yield "CdfTables.from_bytes", tables.to_bytes(), blob_of_tables
    for backend in rans.BACKENDS:

        def decompress(data: bytes, backend: str = backend) -> bool:
            out = codecs.decompress(
                target.codec, target.variables, tables, data, backend=backend, **LIMITS
            )
            return out.keys() == target.features.keys() and all(
                np.array_equal(out[k], target.features[k]) for k in out
            )

        yield f"decompress, {backend}", blob, decompress


def _repaired(target: Target, backend: str, tries: int, seed: int) -> Iterator[Row]:
    """Damaged files whose checksums were made right again, so that the damage gets through.

    Each row has `tries` files, of which each reader gets its share.
    """
    for damage in ("in streams", "in shapes", "in metadata", "anywhere"):
        rng = np.random.default_rng(seed)
        row = Row(f"repaired, {backend}", damage)
        readers = itertools.cycle(_readers(target, backend))
        for _ in range(tries):
            blob, run = _repair(_damage(target.blob, damage, rng)), next(readers)
            start = time.process_time()
            row.count([_outcome(run, blob)], time.process_time() - start)
        yield row


def _readers(target: Target, backend: str) -> list[Callable[[bytes], bool]]:
    """All that make features from a file; each says whether they are the undamaged ones."""
    model = (target.codec, target.variables, target.tables)
    level = LevelCodec(*model, {"level": 0, "digest": ""})  # of "p2" alone
    one = {"p2": target.features["p2"]}
    limits = {**LIMITS, "backend": backend}

    def whole(data: bytes) -> bool:
        return _checked(data, codecs.decompress(*model, data, **limits), target.features)

    def partial(data: bytes) -> bool:
        out, errors = codecs.decompress_partial(*model, data, **limits)
        if len(out) < chunks.read_head(data).count:
            assert errors, "something is missing and nothing was said"
        return _checked(data, out, {k: target.features[k] for k in out if k in target.features})

    def batch(data: bytes) -> bool:
        outs = codecs.decompress_batch(*model, [target.blob, *[data] * (FILES - 1)], **limits)
        assert _checked(target.blob, outs[0], target.features), "a file changed its neighbour"
        return all(_checked(data, out, target.features) for out in outs[1:])

    def of_level(data: bytes) -> bool:
        return _checked(data, level.decompress(_only(data, "p2"), **limits), one)

    def of_level_partial(data: bytes) -> bool:
        out = level.decompress_partial(_only(data, "p2"), **limits)[0]
        return _checked(data, out, {k: one[k] for k in out})

    return [whole, partial, batch, of_level, of_level_partial]


def _rq_readers(target: RqTarget) -> dict[str, Callable[[bytes], bool]]:
    """All that take a file of residual codes; each says whether the result is undamaged."""
    model, whole = target.model, target.frame

    def decompress(data: bytes) -> bool:
        frame = rq_stream.decompress(data, model, **RQ_LIMITS)
        assert len(frame.point) == chunks.read_head(data).count - 1
        return _rq_checked(data, frame, target, len(whole.point))

    def decode_prefix(data: bytes) -> bool:
        frame, errors = rq_stream.decode_prefix(data, model, **RQ_LIMITS)
        k = len(frame.point)
        if k < chunks.read_head(data).count - 1 and not errors:
            # Only a name that is none of the next codebook's ends the prefix without an error.
            missing = bitstream.salvage(data)[0].streams[k + 1].name
            assert missing not in {f"{j}.{n}" for j, n in model.tables if j == k}, "nothing said"
        return _rq_checked(data, frame, target, len(frame.point))

    def prefix(data: bytes) -> bool:
        small = rq_stream.prefix(data, model, 2, **RQ_LIMITS)
        assert bitstream.read(small).streams == bitstream.read(data).streams[:3]
        return small == rq_stream.prefix(target.blob, model, 2)

    return {"decompress": decompress, "decode_prefix": decode_prefix, "prefix": prefix}


def _rq_checked(data: bytes, frame: rq_stream.Frame, target: RqTarget, count: int) -> bool:
    """Whether a frame is the first codebooks of the expected one; its shape must be announced."""
    first = bitstream.salvage(data)[0].streams[0]
    assert frame.occupied.shape == first.shape, f"{frame.occupied.shape}, announced {first.shape}"
    assert frame.indices.shape == (len(frame.point), frame.occupied.sum())
    assert all(((0 <= i) & (i < n)).all() for i, n in zip(frame.indices, frame.point, strict=True))
    canvas = rq_stream.features(frame, target.model.rows)
    assert canvas.shape == (*first.shape, target.model.rows.shape[2])
    assert np.isfinite(canvas).all()
    expected = target.frame.prefix(count)
    return frame.point == expected.point and np.array_equal(frame.dense(), expected.dense())


def _only(data: bytes, name: str) -> bytes:
    """A file of this stream alone; as it is if it cannot be taken apart."""
    with contextlib.suppress(BitstreamError):
        box = bitstream.read(data)
        kept = [stream for stream in box.streams if stream.name == name] or box.streams
        return bitstream.write(box.kind, box.digest, kept[:1], box.meta)
    return data


def _checked(data: bytes, out: Any, expected: dict) -> bool:
    """Whether features are the expected ones; they must have the shapes that the file announces."""
    out = out if isinstance(out, dict) else {"": out}
    announced = {s.name: (1, *s.shape) for s in bitstream.salvage(data)[0].streams}
    for name, x in out.items():
        wanted = (*announced[name], CHANNELS)
        assert x.shape == wanted, f"{name!r}: {x.shape}, announced {wanted}"
        assert x.dtype == np.float32
    return out.keys() == expected.keys() and all(np.array_equal(out[k], expected[k]) for k in out)


Parts = list[tuple[bytes, bytes]]  # file header first, then (header, body) of each chunk


def _damage(blob: bytes, where: str, rng: np.random.Generator) -> Parts:
    """The parts of a file, some changed."""
    whole = bitstream.read(blob)
    streams = list(whole.streams)
    if where == "in shapes":
        i = int(rng.integers(len(streams)))
        streams[i] = _mutated(streams[i], rng)
        if whole.kind == rq_stream.KIND and rng.random() < 0.7:  # one shape is theirs
            streams = [dataclasses.replace(s, shape=streams[i].shape) for s in streams]
    elif where == "in names":
        i = int(rng.integers(len(streams)))
        names = (*RQ_NAMES, *(stream.name for stream in streams))
        streams[i] = dataclasses.replace(streams[i], name=names[rng.integers(len(names))])
    parts: Parts = [(blob[:13], b"")]
    parts.append((b"", _body(chunks.write_meta(b"", whole.meta))))
    for stream in streams:
        data = chunks.write_stream(b"", stream)
        own = chunks.read_stream_header(data, 0)[-1]
        parts.append((data[:own], stream.payload))
    if where == "in streams":
        i = 2 + int(rng.integers(len(streams)))
        parts[i] = (parts[i][0], _flipped(parts[i][1], rng))
    elif where == "in metadata":
        body = parts[1][1]
        parts[1] = (b"", rng.bytes(int(rng.integers(40))) if rng.random() < 0.3 else body)
        parts[1] = (b"", _flipped(parts[1][1] or b" ", rng))
    elif where == "anywhere":
        i = int(rng.integers(len(parts)))
        own, body = parts[i]
        if own and rng.random() < 0.7:
            parts[i] = (_flipped(own, rng), body)
        else:
            parts[i] = (own, _flipped(body, rng) if body else body)
    return parts


def _body(chunk: bytes) -> bytes:
    size, position = rans.read_varint(chunk, 0)
    return chunk[position + 4 : position + 4 + size]


def _repair(parts: Parts) -> bytes:
    """The file with every checksum right."""
    (head, _), *rest = parts
    out = head
    for own, body in rest:
        own = own + rans.write_varint(len(body))
        out += own + struct.pack("<I", zlib.crc32(head + own + body)) + body
    return out


def _payloads(target: Target, backend: str, flips: int, blobs: int, seed: int) -> Iterator[Row]:
    """Bare payloads, with no checksum before them, of the short form and of four lanes."""
    rng = np.random.default_rng(seed)
    tables = target.tables
    symbols = np.round(rng.laplace(size=(8, 8, tables.channels)) * 3).astype(np.int32)
    symbols[0, 0, 0] = 10**6
    inside = symbols.clip(tables.offset, tables.offset + tables.length - 1)
    for wanted, sent in ((None, inside), (4, symbols)):
        payload, lanes = rans.encode(sent, tables, wanted)
        for damage, cases in damaged(payload, flips, blobs, seed):
            row = Row(f"payload, {lanes} lanes, {backend}", damage)
            for first in range(0, len(cases), BATCH):
                part, start = cases[first : first + BATCH], time.process_time()
                n = len(part)
                decoded = rans.decode_each(
                    part, [sent.size] * n, tables, [lanes] * n, backend=backend
                )
                outcomes = [_payload_outcome(out, sent) for out in decoded]
                row.count(outcomes, time.process_time() - start)
            yield row


def _payload_outcome(out: np.ndarray | BitstreamError, sent: np.ndarray) -> str:
    if isinstance(out, BitstreamError):
        return "refused"
    assert out.shape == (sent.size,)
    assert out.dtype == np.int32
    return "same" if np.array_equal(out, sent.ravel()) else "other"


def _outcome(run: Callable, case: object) -> str:
    try:
        return "same" if run(case) else "other"
    except BitstreamError:
        return "refused"


def _flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """One bit flipped, or several at once."""
    out = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 8]))):
        out[rng.integers(len(out))] ^= 1 << rng.integers(8)
    return data[:-1] if bytes(out) == data else bytes(out)


def _mutated(stream: bitstream.Stream, rng: np.random.Generator) -> bitstream.Stream:
    """A stream with one field changed."""
    change = int(rng.integers(4))
    # Some fit the latents there are: 12 x 14 with one stage has those of 11 x 13.
    size = int(rng.choice([1, 3, 11, 12, 13, 14, 42, 1 << 16, (1 << 35) - 1]))
    if change == 0:
        return dataclasses.replace(stream, shape=(size, stream.shape[1]))
    if change == 1:
        return dataclasses.replace(stream, shape=(stream.shape[0], size))
    if change == 2:
        return dataclasses.replace(stream, stages=int(rng.integers(16)))
    return dataclasses.replace(stream, lanes=int(rng.choice([0, 1, 8])))


def main() -> None:
    """Prints the counts; exits 1 if anything wrong was accepted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=10_000, help="flips per entry point")
    parser.add_argument("--blobs", type=int, default=10_000, help="random blobs per entry point")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = fuzz(args.flips, args.blobs, args.seed)
    print(report(rows))
    raise SystemExit(not all(row.allowed for row in rows))


if __name__ == "__main__":
    main()
