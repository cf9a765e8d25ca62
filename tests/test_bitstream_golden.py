"""Golden files of every version: decoded by all implementations and by a stranger."""

import json
import pathlib
import subprocess
import sys
import types

import coding_toy
import numpy as np
import pytest
import stranger_decoder

from jaxcomp import codecs
from jaxcomp.codecs import bitstream, coding, rans
from jaxcomp.codecs.tables import CdfTables

FOLDER = pathlib.Path(__file__).parent / "golden"
VERSIONS = ["v1"]


@pytest.fixture(scope="module", params=VERSIONS)
def golden(request):
    path = FOLDER / f"streams_{request.param}.json"
    expected = json.loads(path.read_text(encoding="utf-8"))
    return expected, path.with_suffix(".jxc").read_bytes(), path.with_suffix(".jxt").read_bytes()


@pytest.mark.parametrize("backend", rans.BACKENDS)
def test_goldens_decode_and_encode_again(golden, backend):
    expected, blob, serialised = golden
    tables = CdfTables.from_bytes(serialised)
    box = bitstream.read(blob, digest=tables.digest, channels=tables.channels)
    assert box.meta == expected["meta"]
    assert {s.name: list(s.shape) for s in box.streams} == {
        name: shape for name, (shape, _, _) in expected["streams"].items()
    }
    assert [s.lanes for s in box.streams] == [2, rans.SHORT, 64, 4]
    for stream in box.streams:
        _, size, symbols = expected["streams"][stream.name]
        assert [*stream.latent_shape, tables.channels] == size
        out = rans.decode(stream.payload, len(symbols), tables, stream.lanes, backend=backend)
        np.testing.assert_array_equal(out, symbols)
        lanes = None if stream.lanes == rans.SHORT else stream.lanes
        again = rans.encode(np.reshape(symbols, size), tables, lanes, backend=backend)
        assert again == (stream.payload, stream.lanes)
    assert bitstream.write("factorised", tables.digest, box.streams, box.meta) == blob
    assert tables.to_bytes() == serialised


def test_a_stranger_decodes_the_goldens_from_the_page(golden):
    expected, blob, serialised = golden
    meta, streams = stranger_decoder.read(blob, serialised)
    assert meta == expected["meta"]
    plain = {name: [list(a), list(b), c] for name, (a, b, c) in streams.items()}
    assert plain == expected["streams"]


def test_a_stranger_decodes_a_new_file_to_the_integers_of_the_network(tmp_path, monkeypatch):
    """Files of today name the whole model in their header, not the tables alone."""
    detector = types.SimpleNamespace(digest="")
    monkeypatch.setattr(coding_toy.loaders, "load_detector", lambda: detector)
    coding_toy.make_codec(tmp_path / "codec2.npz", 2, 0)
    codec = coding_toy.loaders.load_codec(tmp_path / "codec2.npz")
    model = (codec.codec, codec.variables, codec.tables)
    x = np.random.default_rng(0).normal(size=(2, 1, 12, 9, 64)).astype(np.float32)
    maps = {"p4": 30 * x[0], "p5": x[1, :, :5, :7]}
    blob = codecs.compress(*model, maps, {"k": 1})
    assert int.from_bytes(blob[4:12], "little") != codec.tables.digest
    meta, streams = stranger_decoder.read(blob, codec.tables.to_bytes())
    assert meta == {"k": 1} and list(streams) == list(maps)
    escapes = []
    for name, (shape, size, symbols) in streams.items():
        assert shape == maps[name].shape[1:3]
        sent = np.asarray(coding.encode_symbols(*model, maps[name], name))
        np.testing.assert_array_equal(np.reshape(symbols, (1, *size)), sent)
        beyond = codec.tables.offset + codec.tables.length
        escapes.append(((sent < codec.tables.offset) | (sent >= beyond)).any())
    assert any(escapes)


def test_the_stranger_knows_nothing_of_the_package_and_is_short():
    path = pathlib.Path(stranger_decoder.__file__)
    imported = [s for s in path.read_text().splitlines() if s.startswith(("import", "from"))]
    assert sorted(imported) == [f"import {m}" for m in ("json", "struct", "sys", "zlib")]
    assert len(path.read_text().splitlines()) <= 105
    files = [str(FOLDER / f"streams_v1.{end}") for end in ("jxc", "jxt")]
    run = [sys.executable, "-I", "-S", str(path), *files]
    assert json.loads(subprocess.run(run, capture_output=True, check=True).stdout)["meta"]
