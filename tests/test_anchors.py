"""Anchors: round trips, sizes that count everything, damage, and what a machine may lack."""

import functools
import io
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxcomp.codecs.rans import write_varint
from jaxcomp.errors import (
    BitstreamError,
    CorruptStreamError,
    NonFiniteError,
    ShapeError,
    StreamTooLargeError,
    TruncatedStreamError,
    VersionError,
)
from jaxcomp.evaluate import anchors_boxes, anchors_feature, anchors_image, anchors_video
from jaxcomp.evaluate import anchors_stream as stream
from jaxcomp.evaluate.anchors import anchors
from jaxcomp.evaluate.anchors_image import AnchorUnavailable


def photo(height=61, width=83):
    """A smooth picture with edges and a little noise."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    planes = [120 + 90 * np.sin(x / 9), 2.0 * y, 200.0 * ((x // 16 + y // 16) % 2)]
    noisy = np.stack(planes, -1) + rng.normal(0, 4, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def pyramid(seed=0, channels=12, sizes=((16, 21), (8, 11), (4, 6), (2, 3), (1, 2))):
    """Smooth maps whose channels differ in spread and mean; one value far out."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(0, 1, channels))
    means = rng.normal(0, 1, channels)
    out = {}
    for i, (height, width) in enumerate(sizes):
        noise = rng.normal(size=(height + 4, width + 4, channels))
        smooth = sum(noise[a : a + height, a : a + width] for a in range(4)) / 2
        out[f"p{i + 2}"] = (means + scales * smooth)[None].astype(np.float32)
    out["p2"][0, 0, 0, 0] = 80.0
    return out


def error(a, b):
    return float(np.mean([np.mean((a[k] - b[k]) ** 2) for k in a]))


# --- images ------------------------------------------------------------------------------------

FORMATS = tuple(anchors_image.QUALITIES)


def needs(name):
    reason = anchors_image.missing_image_anchors().get(name)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("name", FORMATS)
def test_image_files_grow_and_improve_with_quality(name):
    needs(name)
    image = photo()
    blobs = [anchors_image.encode_image(name, q, image) for q in anchors_image.QUALITIES[name]]
    assert len(blobs) == 6
    decoded = [anchors_image.decode_image(name, blob) for blob in blobs]
    assert all(x.shape == image.shape and x.dtype == np.uint8 for x in decoded)
    errors = [np.mean((x.astype(float) - image) ** 2) for x in decoded]
    sizes = [len(blob) for blob in blobs]
    assert sizes == sorted(sizes)
    # Not step by step: JPEG XL looks at what is seen, not at squared errors.
    assert errors[-1] == min(errors) < np.var(image) / 20


@pytest.mark.parametrize("name", FORMATS)
def test_image_bytes_are_complete_files(name):
    needs(name)
    blob = anchors_image.encode_image(name, 50, photo())
    if name == "jpegxl":
        assert blob[:2] == b"\xff\x0a" or blob[4:8] == b"JXL "
        return
    with PIL.Image.open(io.BytesIO(blob)) as image:
        assert image.format == name.upper() and image.size == (83, 61)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_image_files_are_typed_errors(name):
    needs(name)
    blob = anchors_image.encode_image(name, 50, photo())
    for bad in (b"", b"nothing", blob[: len(blob) // 2], blob[len(blob) // 2 :]):
        with pytest.raises(CorruptStreamError, match=f"not a whole {name} file"):
            anchors_image.decode_image(name, bad)
    other = "webp" if name == "jpeg" else "jpeg"
    with pytest.raises(CorruptStreamError):
        anchors_image.decode_image(name, anchors_image.encode_image(other, 50, photo()))


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_size_of_image_comes_back(name, data):
    needs(name)
    shape = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), 3)
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert (
        anchors_image.decode_image(name, anchors_image.encode_image(name, 80, image)).shape == shape
    )


def test_what_is_no_image_is_refused():
    for bad in (photo().astype(np.float32), photo()[..., 0], photo()[..., :2], photo()[:0]):
        with pytest.raises(ShapeError, match=r"uint8 \[H, W, 3\]"):
            anchors_image.encode_image("jpeg", 50, bad)
    with pytest.raises(ShapeError, match="cannot hold"):
        anchors_image.encode_image("webp", 50, np.zeros((1, 17000, 3), np.uint8))
    with pytest.raises(ValueError, match="'gif'"):
        anchors_image.encode_image("gif", 50, photo())
    with pytest.raises(ValueError, match="quality 0"):
        anchors_image.encode_image("jpeg", 0, photo())


# --- detections --------------------------------------------------------------------------------


def detections(count, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-5, 1200, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 90, (count, 2))], 1)
    return {"boxes": boxes, "scores": rng.random(count), "labels": rng.integers(1, 91, count)}


@given(st.integers(0, 60), st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_detections_come_back_to_an_eighth_of_a_pixel(count, seed):
    found = detections(count, seed)
    blob = anchors_boxes.encode_detections(found)
    back = anchors_boxes.decode_detections(blob)
    order = np.argsort(-found["scores"], kind="stable")
    np.testing.assert_allclose(back["boxes"], found["boxes"][order], atol=0.125 + 1e-4)
    np.testing.assert_allclose(back["scores"], found["scores"][order], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(back["labels"], found["labels"][order])
    assert len(blob) <= 10 + 11 * count
    # What was decoded is coded without a further change.
    again = anchors_boxes.decode_detections(anchors_boxes.encode_detections(back))
    for key in back:
        np.testing.assert_array_equal(again[key], back[key])


def test_padding_is_not_sent():
    found = detections(5)
    padded = {
        k: np.concatenate([v, np.zeros((3, *v.shape[1:]), v.dtype)])[None] for k, v in found.items()
    }
    padded["valid"] = (np.arange(8) < 5)[None]
    assert anchors_boxes.encode_detections(padded) == anchors_boxes.encode_detections(found)


def test_damaged_detections_are_typed_errors():
    blob = anchors_boxes.encode_detections(detections(20))
    for i in range(len(blob)):
        damaged = blob[:i] + bytes([blob[i] ^ 0x21]) + blob[i + 1 :]
        for bad in (damaged, blob[:i]):
            with pytest.raises(BitstreamError):
                anchors_boxes.decode_detections(bad)


@given(st.binary(max_size=60), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_detection_body_decodes_or_is_a_typed_error(body, packed):
    body = zlib.compress(body) if packed else body
    data = anchors_boxes.MAGIC + bytes([packed]) + body
    blob = data + struct.pack("<I", zlib.crc32(data))
    try:
        found = anchors_boxes.decode_detections(blob)
    except BitstreamError:
        return
    assert found["boxes"].shape == (len(found["scores"]), 4)


def detection_file(numbers, *, packed=False, cut=0):
    body = b"".join(map(write_varint, numbers))
    body = zlib.compress(body)[: -cut or None] if packed else body
    data = anchors_boxes.MAGIC + bytes([packed]) + body
    return data + struct.pack("<I", zlib.crc32(data))


def test_detections_that_contradict_themselves_are_typed_errors():
    whole = [1, 2, 55, 8, 8, 16, 16]
    for packed in (False, True):
        back = anchors_boxes.decode_detections(detection_file(whole, packed=packed))
        assert back["boxes"].tolist() == [[1, 1, 3, 3]] and back["labels"].tolist() == [2]
        assert back["scores"][0] == pytest.approx(200 / 255)
    for numbers, message in (
        ([*whole, 0], "1 bytes follow"),
        ([1, 2, 256, 8, 8, 16, 16], "below 0"),
        ([1 << 20, *whole], "1048576 detections announced"),
    ):
        with pytest.raises(CorruptStreamError, match=message):
            anchors_boxes.decode_detections(detection_file(numbers))
    with pytest.raises(CorruptStreamError, match="do not end"):
        anchors_boxes.decode_detections(detection_file(whole, packed=True, cut=2))
    with pytest.raises(VersionError, match="begins with"):
        anchors_boxes.decode_detections(b"JXA" + detection_file(whole)[3:])


def test_what_are_no_detections_is_refused():
    good = detections(3)
    for key, value, kind in (
        ("boxes", good["boxes"][:2], ShapeError),
        ("boxes", good["boxes"] * np.nan, NonFiniteError),
        ("boxes", good["boxes"] * 1e9, ShapeError),
        ("scores", good["scores"] + 1, ShapeError),
        ("labels", good["labels"] - 99, ShapeError),
        ("valid", np.ones(2, bool), ShapeError),
    ):
        with pytest.raises(kind):
            anchors_boxes.encode_detections({**good, key: value})


# --- the file of the feature anchors -----------------------------------------------------------

floats = st.floats(-(2.0**100), 2.0**100, width=32)
maps = hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=floats)


@given(maps, st.booleans())
@settings(max_examples=100, deadline=None)
def test_ranges_hold_all_values_and_are_read_as_they_were_found(x, per_channel):
    low, high = stream.find_ranges(x, 100.0, per_channel=per_channel)
    slack = 2e-5 * max(np.abs(low).max(), np.abs(high).max())
    assert (x >= low - slack).all() and (x <= high + slack).all()
    blob = stream._write_ranges(low, high, per_channel)
    assert len(blob) == (4 + 2 * x.shape[2] if per_channel else 8)
    got = stream._read_ranges(blob, 0, x.shape[2], per_channel)
    for found, read in zip((low, high), got[:2], strict=True):
        np.testing.assert_allclose(read, found, rtol=1e-6)


def test_a_channel_range_is_at_most_a_twelfth_of_an_octave_too_wide():
    x = np.exp(np.random.default_rng(0).normal(0, 1, (9, 9, 200))).astype(np.float32)
    high = stream.find_ranges(x, 100.0, per_channel=True)[1]
    assert (high / x.max((0, 1)) < 2 ** (1 / 8) + 1e-3).all()


def test_one_extreme_value_does_not_set_the_range():
    x = np.random.default_rng(0).normal(size=(64, 64, 4)).astype(np.float32)
    x[0, 0, 0] = 1e4
    for per_channel in (False, True):
        low, high = stream.find_ranges(x, 99.9, per_channel=per_channel)
        assert (high < 6).all() and (low > -6).all() and (high > 2).all()


def test_ranges_end_at_values_of_the_map_outwards():
    x = np.array([1.0, 2, 3, 4], np.float32).reshape(2, 2, 1)
    low, high = stream.find_ranges(x, 60.0, per_channel=False)
    assert (low, high) == (2, 3)
    assert stream.find_ranges(x, 99.0, per_channel=False) == (1, 4)


def test_maps_that_no_anchor_takes_are_refused():
    good = pyramid()
    cases = [
        ({}, ShapeError),
        ({"p2": good["p2"][0]}, ShapeError),
        ({"p2": np.zeros((2, 3, 3, 4))}, ShapeError),
        ({"p2": np.zeros((1, 0, 3, 4))}, ShapeError),
        ({"p2": good["p2"] * np.nan}, NonFiniteError),
        ({"p2": np.full((1, 2, 2, 2), 1e200)}, NonFiniteError),
        ({"p2": np.broadcast_to(np.float32(0), (1, 1 << 14, 1 << 13, 1))}, StreamTooLargeError),
    ]
    for bad, kind in cases:
        with pytest.raises(kind):
            stream.check_pyramid(bad)


def sample_file(method="zstd", **changes):
    fields = {"name": "p2", "shape": (2, 3, 1), "parameter": 8, "payload": b"abc"}
    one = np.array([1.0], np.float32)
    level = stream.Level(low=-one, high=one, **{**fields, **changes})
    return stream.write(method, [level], per_channel=False)


def sealed(data):
    return data + struct.pack("<I", zlib.crc32(data))


def test_the_container_says_what_is_wrong():
    good = sample_file()
    assert stream.read(good)[0] == "zstd"
    with pytest.raises(VersionError, match="begins with"):
        stream.read(b"JXC" + good[3:])
    with pytest.raises(TruncatedStreamError):
        stream.read(good[:6])
    with pytest.raises(CorruptStreamError, match="cut short"):
        stream.read(good[:-1])
    with pytest.raises(VersionError, match="method 9"):
        stream.read(sealed(good[:4] + b"\x09" + good[5:-4]))
    with pytest.raises(CorruptStreamError, match="follow"):
        stream.read(sealed(good[:-4] + b"x"))
    with pytest.raises(TruncatedStreamError):
        stream.read(sealed(good[:-6]))
    with pytest.raises(CorruptStreamError, match="twice"):
        stream.read(sealed(good[:5] + b"\x02" + good[6:-4] * 2))
    one = np.ones(1, np.float32)
    for low, high in ((one, -one), (-one, one * np.nan), (-one * np.inf, one)):
        bad = stream.Level("p2", (2, 3, 1), 8, low, high, b"abc")
        with pytest.raises(CorruptStreamError, match="range that is not finite or upside down"):
            stream.read(stream.write("zstd", [bad], per_channel=False))
    with pytest.raises(CorruptStreamError, match="empty map"):
        stream.read(sample_file(shape=(2, 0, 1)))
    with pytest.raises(StreamTooLargeError, match="values, 67108864 are allowed"):
        stream.read(sample_file(shape=(1 << 20, 1 << 20, 256)))
    with pytest.raises(StreamTooLargeError, match="values, 5 are allowed"):
        stream.read(good, max_values=5)


@given(st.binary(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_container_reads_or_is_a_typed_error(body):
    try:
        stream.read(sealed(stream.MAGIC + body))
    except BitstreamError:
        pass


# --- uniform quantisation ----------------------------------------------------------------------


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)),
    st.sampled_from(anchors_feature.BITS),
)
@settings(max_examples=60, deadline=None)
def test_packing_is_exact_and_as_long_as_announced(symbols, bits):
    symbols = symbols & (2**bits - 1)
    data = anchors_feature.pack(symbols, bits)
    assert len(data) == anchors_feature.packed_size(symbols.shape, bits)
    np.testing.assert_array_equal(anchors_feature.unpack(data, symbols.shape, bits), symbols)


@given(maps, st.sampled_from(anchors_feature.BITS), st.booleans())
@settings(max_examples=100, deadline=None)
def test_values_inside_the_range_are_off_by_half_a_step(x, bits, per_channel):
    low, high = stream.find_ranges(x, 100.0, per_channel=per_channel)
    symbols = anchors_feature.quantise(x, low, high, bits)
    back = anchors_feature.dequantise(symbols, low, high, bits)
    step = (high.astype(float) - low) / (2**bits - 1)
    slack = 3e-5 * np.abs([low, high]).max()
    assert (np.abs(back.astype(float) - x) <= step / 2 + slack).all()
    # Values that were decoded quantise to the symbols they came from.
    wide = step > 1e-4 * np.abs([low, high]).max()
    again = anchors_feature.quantise(back, low, high, bits)
    np.testing.assert_array_equal(np.where(wide, again, 0), np.where(wide, symbols, 0))


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_pyramids_come_back(per_channel):
    pytest.importorskip("zstandard")
    features = pyramid()
    sizes, errors = [], []
    for bits in anchors_feature.BITS:
        blob = anchors_feature.encode_quantised(features, bits, per_channel=per_channel)
        decoded = anchors_feature.decode_quantised(blob)
        for level, symbols in anchors_feature.decode_symbols(blob):
            x = features[level.name][0]
            expected = anchors_feature.quantise(x, level.low, level.high, bits)
            np.testing.assert_array_equal(symbols, expected)
            assert decoded[level.name].dtype == np.float32
            assert decoded[level.name].shape == features[level.name].shape
        sizes.append(len(blob))
        clean = {k: v for k, v in features.items() if k != "p2"}
        errors.append(error(clean, decoded))
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)


FEATURE_ENCODERS = [
    pytest.param(package, functools.partial(encode, per_channel=per_channel), id=f"{name}-{ranges}")
    for ranges, per_channel in (("level", False), ("channel", True))
    for name, package, encode in (
        ("zstd", "zstandard", functools.partial(anchors_feature.encode_quantised, bits=4)),
        ("hevc", "av", functools.partial(anchors_video.encode_video, qp=30)),
    )
]


def decode(blob):
    method = stream.read(blob)[0]
    form = anchors_feature.decode_quantised if method == "zstd" else anchors_video.decode_video
    return form(blob)


@pytest.mark.parametrize(("package", "encode"), FEATURE_ENCODERS)
def test_a_joint_file_is_the_sum_of_its_levels_and_one_header(package, encode):
    pytest.importorskip(package)
    features = pyramid()
    joint = encode(features)
    alone = {name: encode({name: x}) for name, x in features.items()}
    saved = (len(alone) - 1) * stream.AROUND
    assert len(joint) == sum(map(len, alone.values())) - saved
    together = decode(joint)
    assert list(together) == list(features)
    for name, blob in alone.items():
        np.testing.assert_array_equal(decode(blob)[name], together[name])


@pytest.mark.parametrize(("package", "encode"), FEATURE_ENCODERS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 5, 3, 2), (1, 1, 40, 7), (1, 24, 78, 3)])
def test_odd_shapes_and_constant_maps_come_back(package, encode, shape):
    pytest.importorskip(package)
    constant = {"x": np.full(shape, -2.5, np.float32), "zero": np.zeros(shape)}
    back = decode(encode(constant))
    np.testing.assert_array_equal(back["x"], constant["x"])
    np.testing.assert_array_equal(back["zero"], constant["zero"])


@pytest.mark.parametrize(("package", "encode"), FEATURE_ENCODERS)
def test_every_damaged_byte_of_a_feature_file_is_noticed(package, encode):
    pytest.importorskip(package)
    blob = encode({"p5": pyramid()["p5"]})
    for i in range(0, len(blob), 3):
        for bad in (blob[:i] + bytes([blob[i] ^ 0x41]) + blob[i + 1 :], blob[:i]):
            with pytest.raises(BitstreamError):
                decode(bad)


def with_payload(blob, change, **fields):
    """The same file with the payloads of its levels changed, and a right checksum."""
    method, levels = stream.read(blob)
    one = levels[0]
    changed = stream.Level(
        one.name, fields.get("shape", one.shape), fields.get("parameter", one.parameter),
        one.low, one.high, change(one.payload),
    )  # fmt: skip
    return stream.write(method, [changed], per_channel=len(one.low) > 1)


def test_hostile_quantised_files_are_typed_errors():
    zstandard = pytest.importorskip("zstandard")
    blob = anchors_feature.encode_quantised({"p3": pyramid()["p3"]}, 6, per_channel=False)
    bomb = with_payload(blob, lambda _: zstandard.ZstdCompressor().compress(bytes(10_000_000)))
    with pytest.raises(CorruptStreamError, match="unpacks to 10000000 bytes instead of"):
        anchors_feature.decode_quantised(bomb)  # known before it is unpacked
    beyond = zstandard.ZstdCompressor().compress(bytes([64]) * pyramid()["p3"].size)
    for bad in (
        with_payload(blob, lambda p: b""),
        with_payload(blob, lambda p: p[:-9]),
        with_payload(blob, lambda p: p[:30] + bytes(len(p) - 30)),
        with_payload(blob, lambda p: beyond),
        with_payload(blob, lambda p: p, shape=(7, 11, 12)),
        with_payload(blob, lambda p: p, parameter=4),
        with_payload(blob, lambda p: p, parameter=33),
    ):
        with pytest.raises(CorruptStreamError):
            anchors_feature.decode_quantised(bad)


# --- video ---------------------------------------------------------------------------------------


@given(
    hnp.arrays(
        np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
        elements=st.integers(0, 1023),
    ),
    st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_tiling_is_exact(symbols, data):
    columns = data.draw(st.integers(1, symbols.shape[2]))
    plane = anchors_video.tile(symbols, columns)
    assert plane.shape == anchors_video.plane_size(symbols.shape, columns)
    np.testing.assert_array_equal(anchors_video.untile(plane, symbols.shape, columns), symbols)


def test_the_grid_is_about_square():
    assert anchors_video.grid((96, 320, 256)) == (29, 9)
    assert anchors_video.grid((10, 10, 256)) == (16, 16)
    assert anchors_video.grid((3, 500, 4)) == (4, 1)


@pytest.mark.parametrize("per_channel", [False, True])
def test_video_files_shrink_and_worsen_with_qp(per_channel):
    pytest.importorskip("av")
    features = pyramid()
    blobs = [
        anchors_video.encode_video(features, qp, per_channel=per_channel)
        for qp in (0, *anchors_video.QPS)
    ]
    sizes = [len(blob) for blob in blobs]
    errors = [error(pyramid(1) | features, anchors_video.decode_video(b)) for b in blobs]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 4 * sizes[-1]
    assert errors[1:] == sorted(errors[1:])


@pytest.mark.parametrize("pixel_format", ["gray10le", "yuv420p10le"])
def test_the_plane_survives_almost_without_loss_at_qp_0(pixel_format):
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    plane = np.clip(512 + np.cumsum(rng.normal(0, 20, (34, 50)), 1), 0, 1023).astype(np.uint16)
    payload = anchors_video._encode_plane(av, "hevc", plane, 0, pixel_format)
    back = anchors_video._decode_plane(av, "hevc", payload, plane.shape)
    assert np.abs(back.astype(int) - plane).max() <= 2


def test_the_same_features_give_the_same_bytes():
    pytest.importorskip("av")
    first, second = (anchors_video.encode_video(pyramid(), 32) for _ in range(2))
    assert first == second


def test_hostile_video_files_are_typed_errors():
    av = pytest.importorskip("av")
    blob = anchors_video.encode_video({"p3": pyramid()["p3"]}, 27)
    zeros = np.zeros((640, 640), np.uint16)
    large = anchors_video._encode_plane(av, "hevc", zeros, 40, "gray10le")
    with pytest.raises(CorruptStreamError) as refused:
        anchors_video.decode_video(with_payload(blob, lambda _: large))
    assert "it holds" not in str(refused.value)  # refused before a frame was made
    for bad in (
        with_payload(blob, lambda p: b""),
        with_payload(blob, lambda p: b"\0" * 40),
        with_payload(blob, lambda p: p[:40]),
        with_payload(blob, lambda p: p + p),
        with_payload(blob, lambda p: p, shape=(9, 11, 12)),
        with_payload(blob, lambda p: p, parameter=0),
        with_payload(blob, lambda p: p, parameter=13),
    ):
        with pytest.raises(CorruptStreamError):
            anchors_video.decode_video(bad)


def test_decoders_refuse_each_others_files():
    pytest.importorskip("av")
    pytest.importorskip("zstandard")
    features = {"p5": pyramid()["p5"]}
    with pytest.raises(CorruptStreamError, match="method hevc"):
        anchors_feature.decode_quantised(anchors_video.encode_video(features, 30))
    with pytest.raises(CorruptStreamError, match="method zstd"):
        anchors_video.decode_video(anchors_feature.encode_quantised(features, 4, per_channel=True))
    with pytest.raises(ValueError, match="QP 60"):
        anchors_video.encode_video(features, 60)
    with pytest.raises(ValueError, match="5 bits"):
        anchors_feature.encode_quantised(features, 5, per_channel=True)


# --- the list ------------------------------------------------------------------------------------

INPUTS = {"image": photo, "feature": pyramid, "detections": lambda: detections(9)}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_anchor_on_offer_works_and_gets_larger_by_its_points(kind):
    offer, given_ = anchors(kind), INPUTS[kind]()
    sizes = {}
    for anchor in offer.anchors:
        blob = anchor.encode(given_)
        assert isinstance(blob, bytes)
        sizes.setdefault(anchor.name, []).append(len(blob))
        back = anchor.decode(blob)
        if kind == "feature":
            assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in given_.items()}
        assert anchor.label == (f"{anchor.name}-{anchor.point}" if anchor.point else "boxes")
    assert all(values == sorted(values) for values in sizes.values())
    assert not set(sizes) & set(offer.missing)


def test_all_names_are_offered_or_missing_with_a_reason():
    images, features = anchors("image"), anchors("feature")
    assert {a.name for a in images.anchors} | set(images.missing) == set(FORMATS)
    names = {f"{a}-{b}" for a in ("uniform", "hevc", "vvc") for b in ("level", "channel")}
    assert {a.name for a in features.anchors} | set(features.missing) == names
    assert all(features.missing.values())
    with pytest.raises(ValueError, match="'audio'"):
        anchors("audio")


def test_missing_packages_are_named(monkeypatch):
    for package in ("zstandard", "av", "imagecodecs"):
        monkeypatch.setitem(sys.modules, package, None)
    assert anchors("feature").anchors == ()
    missing = anchors("feature").missing | anchors("image").missing
    for name, package in (
        ("uniform-level", "zstandard"), ("hevc-channel", "av"), ("jpegxl", "imagecodecs"),
    ):  # fmt: skip
        assert f"package {package}: pip install 'jaxcomp[anchors]'" in missing[name]
    with pytest.raises(AnchorUnavailable, match="imagecodecs"):
        anchors_image.encode_image("jpegxl", 50, photo())
    with pytest.raises(AnchorUnavailable, match="zstandard"):
        anchors_feature.encode_quantised(pyramid(), 4, per_channel=True)
    with pytest.raises(AnchorUnavailable, match="av"):
        anchors_video.encode_video(pyramid(), 30)
