"""Real bytes and real accuracy of every point of a set of codebooks, beside the anchors."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.codecs import bitstream, rq_stream
from jaxcomp.codecs.rq_stream import Frame, Point, RqModel
from jaxcomp.data.lidar_records import LidarRecords
from jaxcomp.evaluate.anchors_lidar import lidar_anchors
from jaxcomp.jobs.lidar_scores import LidarScores, flat_scores
from jaxcomp.jobs.rq_codec import Quantiser
from jaxcomp.log import LOG
from jaxcomp.workdir import atomic_write, json_text

UNCOMPRESSED = "features as they are"
COLUMNS = (
    *("system", "codebooks", "embeddings", "bytes", "map_3d_moderate_r40", "map_bev_moderate_r40"),
    *("occupancy_bytes", "index_bytes", "order_0_bytes", "saved", "dense_bytes", "ratio"),
    *("encode_ms", "decode_ms"),
)
Row = dict[str, Any]


def point_name(point: Point) -> str:
    """3x64 for three codebooks of 64 rows; 256-256-16 for a mixed point."""
    same = len(set(point)) == 1
    return f"{len(point)}x{point[0]}" if same else "-".join(map(str, point))


def grid_points(codebooks: int, sizes: Sequence[int]) -> list[Point]:
    """(n, ..., n) for every number of codebooks and every size."""
    return [(n,) * k for k in range(1, codebooks + 1) for n in sizes]


def _rows(count: int, limit: int) -> np.ndarray:
    """Up to `limit` rows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))


def learn_model(
    quantiser: Quantiser, records: LidarRecords, sizes: Sequence[int], limit: int
) -> tuple[RqModel, dict[tuple[int, int], np.ndarray]]:
    """Learns the tables of the map and of every (codebook, size) from training sweeps.

    Args:
      quantiser: of the codebooks.
      records: training sweeps, as they are.
      sizes: of the points (n, ..., n) that shall have tables.
      limit: sweeps that are looked at.

    Returns:
      (the coder, how often each row was chosen by (codebook, size)).
    """
    rows = np.asarray(quantiser.rows)
    frames: dict[int, list[Frame]] = {n: [] for n in sizes}
    for row in _rows(len(records), limit):
        vectors = quantiser.vectors(records.sweep(int(row)))
        for n in sizes:
            frames[n].append(quantiser.frame(vectors, (n,) * len(rows)))
    classes = rq_stream.row_classes(rows)
    tables, counts = {}, {}
    for n in sizes:
        tables |= rq_stream.fit_indices(frames[n], classes)
        for k in range(len(rows)):
            chosen = np.concatenate([f.indices[k] for f in frames[n]])
            counts[k, n] = np.bincount(chosen, minlength=n)
    occupancy = rq_stream.fit_occupancy(frames[sizes[0]])
    return RqModel(rows, classes, occupancy, tables), counts


class _Point:
    """Sums over the frames of one point."""

    def __init__(self, point: Point):
        self.point = point
        self.bytes: list[int] = []
        self.parts: list[list[int]] = []
        self.times: list[tuple[float, float]] = []
        self.order_0 = 0.0

    def code(self, frame: Frame, model: RqModel) -> tuple[np.ndarray, bytes]:
        """The decoded canvas of the frame's bytes, which are counted."""
        began = time.perf_counter()
        blob = rq_stream.compress(frame, model)
        between = time.perf_counter()
        decoded = rq_stream.decompress(blob, model)
        self.times.append((between - began, time.perf_counter() - between))
        if not (decoded.dense() == frame.dense()).all():
            raise AssertionError(f"point {self.point}: the file does not give its indices back")
        self.bytes.append(len(blob))
        self.parts.append([len(s.payload) for s in bitstream.read(blob).streams])
        return rq_stream.features(decoded, model.rows), blob

    def row(self, shape: tuple[int, int], known: bool) -> Row:
        """What the table says of the point."""
        size = float(np.mean(self.bytes))
        index = float(np.mean([sum(p[1:]) for p in self.parts]))
        dense = shape[0] * shape[1] * sum(np.log2(n) for n in self.point) / 8
        order_0 = self.order_0 / 8 / len(self.bytes)
        encode, decode = (1e3 * float(np.median(t)) for t in zip(*self.times, strict=True))
        return {
            "system": "residual codes",
            "name": point_name(self.point),
            "codebooks": len(self.point),
            "embeddings": self.point[0] if len(set(self.point)) == 1 else list(self.point),
            "bytes": size,
            "occupancy_bytes": float(np.mean([p[0] for p in self.parts])),
            "index_bytes": index,
            "order_0_bytes": order_0 if known else None,
            "saved": 1 - index / order_0 if known and order_0 else None,
            "dense_bytes": float(dense),
            "ratio": float(dense / size),
            "encode_ms": encode,
            "decode_ms": decode,
        }


def measure(
    quantiser: Quantiser,
    model: RqModel,
    records: LidarRecords,
    points: Sequence[Point],
    *,
    counts: Mapping[tuple[int, int], np.ndarray] | None = None,
    anchors: bool = True,
    folder: Path | None = None,
    keep: Callable[[int, str, Mapping[str, Any]], None] = lambda *_: None,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[list[Row], dict[str, Any]]:
    """Codes every held-out sweep at every point, decodes it, and finds objects in it.

    Args:
      quantiser: of the model's codebooks.
      model: the coder.
      records: held-out sweeps.
      points: what to measure.
      counts: of the training indices, for what one table per codebook would cost.
      anchors: measure the anchors too.
      folder: gets result files in the official form and the files of the first sweep.
      keep: called with (row, name of the system, its detections) for pictures.
      progress: called with the number of frames done.

    Returns:
      (a row of the table for each system, KITTI's scores by system).
    """
    detector, scores = quantiser.detector, LidarScores(records.frames, quantiser.detector.classes)
    coded = {point: _Point(point) for point in points}
    others = _Anchors(anchors)

    def found(name: str, row: int, canvas: Any) -> None:
        boxes = {k: v[0] for k, v in detector.tail(canvas).items()}
        scores.add(name, row, boxes)
        keep(row, name, boxes)

    for row in range(len(records)):
        sweep = records.sweep(row)
        vectors = quantiser.vectors(sweep)
        canvas = np.asarray(detector.head(sweep)["bev"])
        found(UNCOMPRESSED, row, canvas)
        for point, one in coded.items():
            frame = quantiser.frame(vectors, point)
            decoded, blob = one.code(frame, model)
            if counts is not None:
                one.order_0 += _order_0(frame, counts)
            found(point_name(point), row, decoded[None])
            if folder is not None and row == 0:
                atomic_write(folder / f"{point_name(point)}.jxc", blob)
        for name, kind, content in others.code(sweep, canvas[0]):
            seen = detector.head(content)["bev"] if kind == "points" else content[None]
            found(name, row, seen)
        progress(row + 1)
    kitti = scores.finish(None if folder is None else folder.parent / "results")
    table = [one.row(quantiser.shape, counts is not None) for one in coded.values()]
    table += others.rows()
    channels = int(np.prod([*quantiser.shape, model.rows.shape[2]]))
    table.append({"system": UNCOMPRESSED, "name": UNCOMPRESSED, "bytes": 4.0 * channels})
    for entry in table:
        entry |= flat_scores(kitti[entry["name"]])
    return table, kitti


def _order_0(frame: Frame, counts: Mapping[tuple[int, int], np.ndarray]) -> float:
    """Bits of the indices with one learned table per codebook."""
    bits = 0.0
    for k, n in enumerate(frame.point):
        seen = counts[k, n]
        p = (seen + 1 / n) / (seen.sum() + 1)
        bits -= float(np.log2(p[frame.indices[k]]).sum())
    return bits


class _Anchors:
    """Bytes of the anchors over the frames."""

    def __init__(self, wanted: bool):
        found, missing = lidar_anchors()
        self._anchors = found if wanted else []
        self._bytes: dict[str, list[int]] = {a.name: [] for a in self._anchors}
        for name, why in missing.items() if wanted else ():
            LOG.info("anchor %s is left out: %s", name, why)

    def code(
        self, sweep: np.ndarray, canvas: np.ndarray
    ) -> Iterator[tuple[str, str, np.ndarray]]:  # fmt: skip
        """(name, what it sends, what arrives) of each."""
        for anchor in self._anchors:
            blob = anchor.encode(sweep if anchor.sends == "points" else canvas)
            self._bytes[anchor.name].append(len(blob))
            yield anchor.name, anchor.sends, anchor.decode(blob)

    def rows(self) -> list[Row]:
        """Of the table."""
        return [
            {"system": name, "name": name, "bytes": float(np.mean(sizes))}
            for name, sizes in self._bytes.items()
        ]


# --- tables ---------------------------------------------------------------------------------------


def write_table(folder: Path, table: Sequence[Row]) -> None:
    """`grid.json`, `grid.csv` and `grid.md` of a run."""
    atomic_write(folder / "grid.json", json_text({"rows": list(table)}))
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in table:
        mixed = row.get("embeddings")
        writer.writerow({**row, "embeddings": json.dumps(mixed) if mixed else ""})
    atomic_write(folder / "grid.csv", out.getvalue())
    atomic_write(folder / "grid.md", markdown(table))


def markdown(table: Iterable[Row]) -> str:
    """The table for people: bytes a sweep, AP (moderate, 40 recalls), what contexts saved."""
    heading = ("system", "bytes/sweep", "3-D AP", "BEV AP", "map", "indices", "contexts save",
               "dense / file", "encode / decode ms")  # fmt: skip
    lines = [heading, ("---", *["---:"] * (len(heading) - 1))]
    for row in sorted(table, key=lambda r: r["bytes"]):
        code = row["system"] == "residual codes"
        name = f"{row['name']} codes" if code else row["name"]
        times = f"{_words(row, 'encode_ms', '.1f')} / {_words(row, 'decode_ms', '.1f')}"
        saved = row.get("saved")
        lines.append(
            (
                *(name, _words(row, "bytes", ",.0f"), _words(row, "map_3d_moderate_r40", ".2f")),
                *(
                    _words(row, "map_bev_moderate_r40", ".2f"),
                    _words(row, "occupancy_bytes", ",.0f"),
                ),
                *(_words(row, "index_bytes", ",.0f"), f"{saved:.1%}" if saved is not None else ""),
                *(_words(row, "ratio", ".1f"), times if code else ""),
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _words(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    return f"{value:{form}}" if isinstance(value, int | float) else ""
