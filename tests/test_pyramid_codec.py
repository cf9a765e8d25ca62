"""Pyramid codecs of every kind: round trips, sizes, damage, files, other processes."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyramid_toy as toy
import pytest

from jaxcomp import loaders, weights_file
from jaxcomp.codecs import bitstream, coding
from jaxcomp.codecs.pyramid import JOINT, JOINT_SIZED, SIZES, join_levels, split_levels
from jaxcomp.errors import (
    BitstreamError,
    CheckpointError,
    CorruptStreamError,
    NonFiniteError,
    ShapeError,
    TableMismatchError,
)
from jaxcomp.models.fpn import LEVELS
from jaxcomp.ops.resize import resize_bilinear

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("codecs")


@pytest.fixture(scope="module")
def kinds(folder):
    return {kind: toy.save(kind, folder / f"{kind}.npz") for kind in toy.KINDS}


@functools.partial(jax.jit, static_argnums=0)
def _decoded(codec, variables, x):
    return codec.apply(variables, x)["x_hat"]


def decoded(model, x):
    return _decoded(model.codec, model.variables, x)


def expected(codec, features):
    """What the models make of features without any bytes: {level: array}."""
    coder = codec.coder
    if not coder.joint:
        maps = coder.select(features)
        return {name: decoded(coder.models[name], x) for name, x in maps.items()}
    model = coder.models[JOINT]
    levels = [jnp.asarray(features[name]) for name in coder.levels]
    joint = decoded(model, join_levels(levels))
    sizes = [x.shape[1:3] for x in levels]
    return dict(zip(coder.levels, split_levels(joint, sizes), strict=True))


@pytest.mark.parametrize(
    ("kind", "sizes"), [*((k, toy.ODD) for k in toy.KINDS), ("joint", toy.LAWLESS)]
)
def test_bytes_give_what_the_model_makes(kinds, kind, sizes):
    codec, features = kinds[kind], toy.features(sizes)
    blob = codec.compress(features, {"note": 1})
    out = codec.decompress(blob)
    assert tuple(out) == codec.levels
    for name, x in expected(codec, features).items():
        assert out[name].shape == features[name].shape
        # Rounding the last bits of a latent the other way would show as a step, not as 1e-4.
        np.testing.assert_allclose(out[name], x, rtol=1e-4, atol=1e-4)
    container = bitstream.read(blob)
    assert container.digest == codec.coder.digests[0] and container.meta["note"] == 1
    streams = [stream.name for stream in container.streams]
    lawless = kind == "joint" and sizes is toy.LAWLESS
    assert streams == ([JOINT_SIZED] if lawless else list(codec.stream_names))
    assert (SIZES in container.meta) == lawless
    assert codec.decompress_partial(blob)[1] == []
    # Decoded features code to the same bytes again only by luck; the same features always do.
    assert codec.compress(features, {"note": 1}) == blob


@pytest.mark.parametrize("kind", toy.KINDS)
def test_batches(kinds, kind):
    coder, features = kinds[kind].coder, toy.features(toy.ODD, frames=3)
    blobs = coder.compress_batch(features)
    files = coder.decompress_batch(blobs)
    whole = expected(kinds[kind], features)
    for i, out in enumerate(files):
        for name in coder.levels:
            np.testing.assert_allclose(out[name], whole[name][i : i + 1], rtol=1e-4, atol=1e-4)
    bits = coder.ideal_bits(features)
    assert tuple(bits) == coder.stream_names and all(b.shape == (3, 4) for b in bits.values())
    with pytest.raises(ShapeError, match="takes one"):
        coder.compress(features)


# Stands for the receiver: it has the codecs' files and the coded frames, nothing else.
RECEIVER = """
import pathlib, sys
import numpy as np
from jaxcomp.codecs import bitstream
from jaxcomp.loaders import load_codec
folder = pathlib.Path(sys.argv[1])
for kind in sys.argv[2:]:
    codec = load_codec(folder / f"{kind}.npz")
    for file in sorted(folder.glob(f"{kind}_*.jxc")):
        blob = file.read_bytes()
        streams = bitstream.read(blob).streams
        integers = codec.coder.decode_streams(streams)
        named = {f"stream_{s.name}": x for s, x in zip(streams, integers, strict=True)}
        np.savez(file.with_suffix(".out.npz"), **codec.decompress(blob), **named)
"""


def test_another_process_decodes_exactly_what_was_coded(kinds, folder):
    """The pyramid of 375 x 1242 pixels, one frame alone and two together, by every kind."""
    sent, alone = {}, toy.features(toy.KITTI, frames=1)
    assert [toy.KITTI[i] for i in (0, 1, 4)] == [(94, 311), (47, 156), (6, 20)]
    both = {name: np.concatenate([x, x[:, ::-1]]) for name, x in alone.items()}
    for kind, codec in kinds.items():
        blobs = [codec.compress(alone), *codec.coder.compress_batch(both)]
        sent |= {f"{kind}_{i}": (codec, blob) for i, blob in enumerate(blobs)}
    for name, (_, blob) in sent.items():
        (folder / f"{name}.jxc").write_bytes(blob)
        streams = bitstream.read(blob).streams
        payload = sum(len(stream.payload) for stream in streams)
        assert payload > 1000 and 0 < len(blob) - payload < 24 + 16 * len(streams)
    argv = [sys.executable, "-c", RECEIVER, str(folder), *kinds]
    subprocess.run(argv, check=True, cwd=ROOT)
    for name, (codec, blob) in sent.items():
        with np.load(folder / f"{name}.out.npz") as theirs:
            mine = codec.decompress(blob)
            assert set(mine) == {key for key in theirs if not key.startswith("stream_")}
            for level, x in mine.items():
                assert x.shape[1:3] == toy.KITTI[LEVELS.index(level)]
                np.testing.assert_array_equal(theirs[level], x)
            _same_integers(codec, alone if name.endswith("_0") else both, theirs, name)


def _same_integers(codec, features, found, name):
    """What was read back are the integers of the encoder, not others that look alike."""
    maps, _ = codec.coder._streams(features, None)
    row = max(int(name[-1]) - 1, 0)
    for stream, x in maps.items():
        model = codec.coder.models[stream]
        np.testing.assert_array_equal(
            found[f"stream_{stream}"], coding.encode_symbols(*model, x, stream)[row]
        )


def test_streams_of_the_kinds_are_not_mixed_up(kinds):
    features = toy.features(toy.ODD)
    blobs = {kind: codec.compress(features) for kind, codec in kinds.items()}
    assert len({codec.tables.digest for codec in kinds.values()}) == len(kinds)
    for kind, blob in blobs.items():
        for other, codec in kinds.items():
            if other != kind:
                with pytest.raises(TableMismatchError):
                    codec.decompress(blob)


def test_an_assembled_pyramid_does_what_its_parts_do(kinds, folder):
    features, codec = toy.features(toy.ODD), kinds["assembled"]
    streams = {s.name: s for s in bitstream.read(codec.compress(features)).streams}
    restored = codec.decompress(codec.compress(features))
    for i, name in enumerate(LEVELS):
        part = toy.save_level(i, folder / f"part{i}.npz")
        blob = part.compress(features)
        (own,) = bitstream.read(blob).streams
        assert own.payload == streams[name].payload
        np.testing.assert_array_equal(part.decompress(blob)[name], restored[name])


def test_parts_must_belong_together(folder):
    one, two = (toy.save_level(i, folder / f"belong{i}.npz") for i in (0, 1))
    with pytest.raises(CheckpointError, match="give one a level"):
        loaders.assemble_pyramid([one, one], folder / "x.npz")
    two.meta["detector_digest"] = "other"
    with pytest.raises(CheckpointError, match="different detectors"):
        loaders.assemble_pyramid([one, two], folder / "x.npz")


@pytest.mark.parametrize("kind", toy.KINDS)
def test_damaged_streams(kinds, kind):
    codec, features = kinds[kind], toy.features(toy.LAWLESS)
    blob = bytearray(codec.compress(features, {"a": "b"}))
    blob[-1] ^= 0x40
    with pytest.raises(BitstreamError):
        codec.decompress(bytes(blob))
    kept, errors = codec.decompress_partial(bytes(blob))
    assert errors and tuple(kept) == codec.levels[: -1 if len(codec.stream_names) > 1 else 0]
    for end in (0, 5, 20, len(blob) // 2, len(blob) - 1):
        with pytest.raises(BitstreamError):
            codec.decompress(bytes(blob[:end]))


def test_lost_or_wrong_sizes_of_a_joint_stream(kinds):
    codec, features = kinds["joint"], toy.features(toy.LAWLESS)
    blob = codec.compress(features)
    (stream,) = bitstream.read(blob).streams
    good = [list(size) for size in toy.LAWLESS]
    bad = [None, {}, {SIZES: 3}, {SIZES: good[:4]}, {SIZES: [*good[:4], [1, 10**9]]},
           {SIZES: [*good[:4], [0, 1]]}, {SIZES: [*good[:4], [1.0, 1]]}, {SIZES: [[1, 1]] * 5},
           {SIZES: [*good[:4], [1]]}, {SIZES: [*good[:4], [True, 1]]}, [good]]  # fmt: skip
    for meta in bad:
        forged = bitstream.write("factorised", codec.tables.digest, [stream], meta)
        with pytest.raises(CorruptStreamError, match="sizes"):
            codec.decompress(forged)
        assert codec.decompress_partial(forged)[0] == {}
    damaged = bytearray(blob)
    damaged[20] ^= 1  # in the metadata
    kept, errors = codec.decompress_partial(bytes(damaged))
    assert not kept and len(errors) == 2


def test_a_file_that_lacks_streams_is_refused(kinds):
    coder, features = kinds["random"].coder, toy.features(toy.ODD)
    part = {name: features[name] for name in LEVELS[:2]}
    with pytest.raises(CorruptStreamError, match="p4 p5 p6"):
        coder.decompress(coding.compress_with(coder.models, part))


@pytest.mark.parametrize("kind", toy.KINDS)
def test_bad_features(kinds, kind):
    codec, good = kinds[kind], toy.features(toy.ODD)
    with pytest.raises(ShapeError, match="lack"):
        codec.compress({k: v for k, v in good.items() if k != "p4"})
    with pytest.raises(ShapeError, match=r"takes \[B, H, W, 6\]"):
        codec.compress({**good, "p4": good["p4"][..., :5]})
    with pytest.raises(NonFiniteError):
        codec.compress({**good, "p4": good["p4"] * np.nan})
    if kind != "level":
        with pytest.raises(ShapeError, match="by name"):
            codec.compress(good["p4"])
        with pytest.raises(ShapeError, match="frames"):
            codec.coder.compress_batch({**good, "p4": np.repeat(good["p4"], 2, 0)})
    if kind == "joint":
        with pytest.raises(ShapeError, match="none may be larger"):
            codec.compress({**good, "p3": np.zeros((1, 14, 11, 6), np.float32)})


@pytest.mark.parametrize("kind", toy.KINDS)
def test_damaged_codec_files_are_refused(kinds, kind, folder, tmp_path):
    tree, meta = weights_file.load_npz(folder / f"{kind}.npz")
    records = [meta | {"treatment": "new"}, meta | {"model": None, "parts": None}]
    if kind != "level":
        records += [meta | {"levels": levels} for levels in ([], ["p2", "p2"], ["p9"], ["p2"] * 5)]
    for i, record in enumerate(records):
        weights_file.export_npz(tmp_path / f"{i}.npz", tree, record)
        with pytest.raises(CheckpointError):
            loaders.load_codec(tmp_path / f"{i}.npz")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (5, 3), (26, 84), (7, 40)])
def test_bilinear_resizing_is_that_of_pytorch(size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 13, 21, 3)).astype("f4")
    there = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))), size=size,
        mode="bilinear", align_corners=False, antialias=False,
    )  # fmt: skip
    ours = resize_bilinear(jnp.asarray(x), *size)
    np.testing.assert_allclose(ours, there.numpy().transpose(0, 2, 3, 1), atol=2e-6)
