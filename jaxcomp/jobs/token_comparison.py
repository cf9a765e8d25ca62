"""Codecs of tokens and anchors on the same held-out pictures: probe accuracy against bytes.

    kind       sent                                      received tokens
    learned    the `.jxc` file of the tokens' map        decoded
    feature    the tokens quantised (uniform-..., hevc)  decoded
    image      the picture as JPEG, WebP, AVIF, JPEG XL  the whole encoder on the decoded picture
    local      the mean of the tokens, quantised         that vector
               the class that the probe names            none

k-NN and the linear probe see the mean of the tokens received, the attentive probe all of them. Each
point is written when it is complete, so that an interrupted comparison goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp import weights_file
from jaxcomp.data.pictures import Pictures, load_pictures
from jaxcomp.errors import CheckpointError, ConfigError, DataError
from jaxcomp.evaluate.anchors import Anchor
from jaxcomp.evaluate.anchors_feature import BITS
from jaxcomp.evaluate.anchors_vector import VectorCoder
from jaxcomp.evaluate.probe import pool_tokens
from jaxcomp.evaluate.split import code_maps
from jaxcomp.jobs import token_codec, token_features
from jaxcomp.jobs.feature_codec import level_coder
from jaxcomp.jobs.jepa_figures import stacked
from jaxcomp.jobs.job import canvas_of
from jaxcomp.jobs.point_store import Fingerprint, PointStore, file_name
from jaxcomp.jobs.point_systems import CodecPoint, codec_files, find_points
from jaxcomp.jobs.rate_accuracy import Options, comparison_config, select_anchors
from jaxcomp.loaders.token_head import KIND, TokenHead, feature_name
from jaxcomp.report import token_comparison as report
from jaxcomp.workdir import provenance

LOCAL = ("vector", "label")
Maps = dict[str, np.ndarray]  # {"train", "validation"} -> [N, h, w, D] or [N, D]
Record = dict[str, Any]


def are_tokens(paths: Sequence[Path]) -> bool:
    """Whether the codecs below some folders are of tokens.

    Raises:
      ConfigError: some are and some are not.
      CheckpointError: no codec is there, or one is damaged.
    """
    kinds = {
        weights_file.load_npz(path)[1].get("detector_kind") == KIND for path in codec_files(paths)
    }
    if len(kinds) > 1:
        raise ConfigError("codecs of tokens and of detectors' features; compare them apart")
    return kinds == {True}


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """Pictures of a comparison and their uncoded tokens.

    Attributes:
      config: whose pictures.
      head: the frozen network.
      pictures: {"train", "validation"}, labelled.
      rows: which of them: training ones for the probes, held-out ones to be coded.
    """

    config: Any
    head: TokenHead
    pictures: Mapping[str, Pictures]
    rows: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, config: Any, head: TokenHead, count: int) -> Held:
        """The first `count` held-out pictures, 0 for all.

        Raises:
          DataError: they have no labels.
        """
        sets = load_pictures(config)
        if not sets["validation"].classes:
            raise DataError("the pictures have no labels: there is no accuracy to compare")
        train, rows = token_codec.probe_rows(config, sets)
        total = len(sets["validation"])
        held = np.arange(min(count or total, total))
        pictures = {"train": train, "validation": sets["validation"]}
        return cls(config, head, pictures, {"train": rows, "validation": held})

    @functools.cached_property
    def labels(self) -> Maps:
        """[N] by split."""
        return {k: self.pictures[k].labels[: len(rows)] for k, rows in self.rows.items()}

    @functools.cache  # noqa: B019 - one object for a process
    def maps(self, level: int) -> Maps:
        """Uncoded maps of a level."""
        return {
            name: token_features.token_maps(
                self.head, self.pictures[name], self.config, level, rows
            )
            for name, rows in self.rows.items()
        }

    def vectors(self, level: int) -> Maps:
        """The means over the tokens, [N, D]."""
        tokens = {name: token_codec.token_list(maps) for name, maps in self.maps(level).items()}
        return {name: pool_tokens(x) for name, x in tokens.items()}

    def image(self, name: str, row: int) -> np.ndarray:
        """A picture as the network sees it, uint8 [H, W, 3]."""
        return stacked(self.pictures[name], self.config, np.asarray([row]))[0]

    def fingerprint(self) -> Fingerprint:
        """What all points have in common."""
        prints = [self.pictures[k].fingerprint + str(len(rows)) for k, rows in self.rows.items()]
        digest = hashlib.sha256("".join(prints).encode()).hexdigest()
        held = self.pictures["validation"]
        return Fingerprint(self.head.digest, digest, len(self.rows["validation"]), held.classes)

    def score(self, level: int, after: Maps) -> Record:
        """Probes of decoded maps of a level, and their error over the variance of the tokens."""
        before, few = self.maps(level), self.config.evaluation.attentive_rows
        held, coded = before["validation"], after["validation"]
        centred = held - held.mean((0, 1, 2))
        error = np.square(held - coded, dtype=np.float64).mean()
        return {
            "level": level,
            "relative_mse": float(error / np.square(centred, dtype=np.float64).mean()),
            **token_codec.probe_scores(self.probes(level), after, self.labels, few),
        }

    @functools.cache  # noqa: B019
    def probes(self, level: int) -> token_codec.Judge:
        """Probes that have learned from uncoded tokens."""
        few = self.config.evaluation.attentive_rows
        return token_codec.fitted(self.maps(level)["train"], self.labels["train"], few)

    @functools.cache  # noqa: B019
    def uncoded_scores(self, level: int) -> dict[str, float]:
        """What they get right on uncoded tokens."""
        return self.probes(level)(self.maps(level)["validation"], self.labels["validation"])


# --- points ---------------------------------------------------------------------------------------


def measure_codec(point: CodecPoint, held: Held, folder: Path) -> tuple[Record, np.ndarray]:
    """(record, bytes of each held-out picture) of a trained codec, from files in `folder`."""
    level, maps = int(point.codec.meta["level"]), held.maps(int(point.codec.meta["level"]))
    decoded, metrics, arrays = code_maps(
        level_coder(point.codec), maps["validation"], folder, size=canvas_of(held.config)
    )
    train = token_codec.recoded(point.codec, maps["train"], held.config.training.batch_size)
    return {
        "system": point.system, "kind": "learned", "setting": point.rate_weight,
        "setting_name": "rate weight",
        "container_bytes": metrics["container_bytes_per_frame"],
        "payload_bytes": metrics["actual_bits"] / 8 / metrics["frames"],
        "estimated_bytes": metrics["estimated_bits"] / 8 / metrics["frames"],
        **{k: metrics[k] for k in ("encode_ms", "decode_ms")},
        **held.score(level, {"train": train, "validation": decoded}),
    }, arrays["frame_bytes"]  # fmt: skip


def measure_feature(anchor: Anchor, level: int, held: Held) -> tuple[Record, np.ndarray]:
    """The same of a coder of maps that needs no training."""
    name, after, sizes = feature_name(level), {}, {}
    for split, maps in held.maps(level).items():
        blobs = [anchor.encode({name: row[None]}) for row in maps]
        sizes[split] = [len(blob) for blob in blobs]
        after[split] = np.concatenate([anchor.decode(blob)[name] for blob in blobs])
    words = {"system": f"{anchor.name}, level {level}", "kind": "feature", "setting": anchor.point}
    named = {"setting_name": "QP" if anchor.name[:3] in ("hev", "vvc") else "bits"}
    return {**words, **named, **held.score(level, after)}, np.asarray(sizes["validation"])


def measure_image(anchor: Anchor, level: int, held: Held) -> tuple[Record, np.ndarray]:
    """The same of an image format, with the whole encoder behind it."""
    after, sizes, batch = {}, {}, held.config.training.batch_size
    for split, rows in held.rows.items():
        blobs = {int(row): anchor.encode(held.image(split, int(row))) for row in rows}
        sizes[split] = [len(blob) for blob in blobs.values()]

        def decoded(row: int, blobs: Mapping[int, bytes] = blobs) -> np.ndarray:
            return anchor.decode(blobs[row])

        after[split] = token_features.image_maps(held.head, decoded, level, rows, batch)
    words = {"system": anchor.name, "kind": "image", "setting": anchor.point}
    scores = held.score(level, after)
    return {**words, "setting_name": "quality", **scores}, np.asarray(sizes["validation"])


def measure_vector(bits: int, level: int, held: Held) -> tuple[Record, np.ndarray]:
    """The same of the mean over the tokens, `bits` a channel; a receiver has it for every token."""
    vectors, maps = held.vectors(level), held.maps(level)
    coder, after, sizes = VectorCoder.fit(vectors["train"], bits), {}, {}
    for split, rows in vectors.items():
        blobs = [coder.encode(row) for row in rows]
        sizes[split] = [len(blob) for blob in blobs]
        decoded = np.stack([coder.decode(blob) for blob in blobs])
        after[split] = np.broadcast_to(decoded[:, None, None], maps[split].shape)
    words = {"system": f"vector, level {level}", "kind": "local", "setting": bits}
    scores = held.score(level, after)
    return {**words, "setting_name": "bits", **scores}, np.asarray(sizes["validation"])


def measure_label(level: int, held: Held) -> tuple[Record, np.ndarray]:
    """The same of the class itself, named at the edge: a bound, as nothing else can be asked."""
    scores = held.uncoded_scores(level)
    size = max(1, -(-(len(held.pictures["validation"].classes) - 1).bit_length() // 8))
    record = {
        "system": f"label, level {level}", "kind": "local", "setting": None, "setting_name": "",
        "level": level, "relative_mse": None, **scores,
        **{f"refit_{name}": value for name, value in scores.items()},
    }  # fmt: skip
    return record, np.full(len(held.labels["validation"]), size)


# --- the comparison -------------------------------------------------------------------------------

Measure = Callable[[], tuple[Record, np.ndarray]]


def compare(paths: Sequence[Path], out: Path, options: Options) -> Record:
    """Measures what is missing and returns what `token_accuracy.json` holds.

    Args:
      paths: run directories, folders of them, or `codec.npz` files.
      out: the folder of the comparison.
      options: as of a comparison of detectors' codecs; its `detector` is the H-JEPA here, its
        anchors may also be "vector" and "label" ("detections" are both).

    Raises:
      CheckpointError: a codec is missing, damaged, or of another network; or a folder with points
        of other data.
      ConfigError: an unknown anchor, or runs of different data.
      DataError: the pictures cannot be read, or have no labels.
    """
    codecs = find_points(paths, None)
    config = comparison_config(codecs, options)
    head = token_features.frozen_head(options.detector or config.hjepa.path)
    for point in codecs:
        check_codec(point, head)
    held = Held.of(config, head, options.frames)
    store = PointStore(out, held.fingerprint())
    levels = sorted({int(point.codec.meta["level"]) for point in codecs})
    plans, missing = _plans(codecs, levels, options.anchors, held, out)
    return {
        "points": [_stored(store, name, measure) for name, measure in plans.items()],
        "uncoded": {
            str(level): {
                "bytes": 4.0 * held.maps(level)["validation"][0].size,
                **held.uncoded_scores(level),
            }
            for level in levels
        },
        "missing": missing,
        "frames": len(held.rows["validation"]),
        "training_pictures": len(held.rows["train"]),
        "classes": list(held.pictures["validation"].classes),
        "data": config.data.name,
        "image_size": list(canvas_of(config)),
        "hjepa_digest": head.digest,
        "command": options.command,
        **provenance(),
    }


def check_codec(point: CodecPoint, head: TokenHead) -> None:
    """Raises `CheckpointError` unless a codec is for the tokens of this network."""
    channels, where, cfg = point.codec.coder.channels, repr(str(point.path)), head.model.cfg
    if channels != cfg.width or int(point.codec.meta["level"]) >= cfg.num_hierarchies:
        raise CheckpointError(
            f"{where} codes level {point.codec.meta['level']} of {channels} channels, the network "
            f"has {cfg.num_hierarchies} levels of {cfg.width}; give its own by "
            "--detector"
        )
    try:
        point.codec.check_detector(head)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _plans(
    codecs: Sequence[CodecPoint], levels: Sequence[int], words: Sequence[str], held: Held, out: Path
) -> tuple[dict[str, Measure], dict[str, str]]:
    """({name of a point: what measures it}, {anchor: why it is missing}).

    Images and local inference are measured on the finest level alone.
    """
    part, plans = functools.partial, dict[str, Measure]()
    for point in codecs:
        folder = out / "streams" / point.name
        plans[point.name] = part(measure_codec, point, held, folder)
    chosen, missing = select_anchors([word for word in words if word not in LOCAL])
    for level in levels:
        for kind, anchor in chosen:
            if kind == "feature":
                name = file_name(anchor.label, f"t{level}")
                plans[name] = part(measure_feature, anchor, level, held)
    for kind, anchor in chosen:
        if kind == "image":
            plans[anchor.label] = part(measure_image, anchor, levels[0], held)
    for word in LOCAL:
        if word in words or "detections" in words:
            plans |= dict(_local(word, levels[0], held))
    return plans, missing


def _local(word: str, level: int, held: Held) -> Iterator[tuple[str, Measure]]:
    if word == "label":
        yield f"label_t{level}", functools.partial(measure_label, level, held)
        return
    for bits in sorted(BITS):
        yield f"vector-{bits}_t{level}", functools.partial(measure_vector, bits, level, held)


def _stored(store: PointStore, name: str, measure: Measure) -> Record:
    """A point as the folder has it, measured first if it is not there."""
    if not store.has(name):
        record, sizes = measure()
        record |= {"name": name, "bytes_per_picture": float(np.mean(sizes))}
        store.write(name, record, {"frame_bytes": sizes})
        print(report.line(record), flush=True)
    return store.read(name)[0]


def run(paths: Sequence[Path], out: Path, options: Options) -> None:
    """Measures, writes tables, figures and page, and prints where they are."""
    results = compare(paths, out, options)
    report.write(out, results)
    for name, why in results["missing"].items():
        print(f"not measured: {name} ({why})")
    print((out / report.TABLE).read_text(), end="")
    print(f"table: {out / report.TABLE}\npage:  {out / report.PAGE}")
