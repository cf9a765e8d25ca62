"""Feature codecs as two graphs: symbols and features are those of JAX; odd sizes; the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coding_toy import make_codec

from jaxcomp import cli, loaders
from jaxcomp.codecs.factorised import FactorisedCodec, refresh_quantiles
from jaxcomp.codecs.identity import Model
from jaxcomp.errors import NonFiniteError
from jaxcomp.interop.onnx_codec import decoder_onnx, encoder_onnx
from jaxcomp.jobs import exporting_codec

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("codec") / "codec.npz"
    make_codec(path, 2, 3)
    return path


def test_two_graphs_agree_with_jax(file, tmp_path, monkeypatch):
    rows = exporting_codec.export_codec(loaders.load_codec(file), tmp_path, [(9, 14)])
    assert rows[0]["symbols"] == 4 * 5 * 7 and rows[0]["max_difference"] <= 1e-4
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"encoder_p4.onnx", "decoder_p4.onnx", "tables_p4.bin", "codec.json"}
    assert len(json.loads((tmp_path / "codec.json").read_text())["digest"]) == 64
    monkeypatch.setattr(exporting_codec, "TOLERANCE", -1.0)
    with pytest.raises(NonFiniteError, match="nothing is written"):
        exporting_codec.export_codec(loaders.load_codec(file), tmp_path / "new", [(9, 14)])
    assert not (tmp_path / "new").exists()


def test_the_command(file, tmp_path, capsys):
    assert cli.main(["export", str(file), f"--out={tmp_path / 'graphs'}"]) == 0
    assert "p4" in capsys.readouterr().out
    assert np.fromfile(tmp_path / "graphs" / "tables_p4.bin", np.uint8).size > 10


@pytest.mark.parametrize("limit", [0.0, 2.0])
def test_deep_transforms_with_their_normalisation(limit):
    codec = FactorisedCodec(in_channels=6, n_hidden=8, n_channels=5, stages=3, limit=limit)
    x = jnp.zeros((1, 16, 16, 6))
    variables = jax.jit(codec.init)(jax.random.key(0), x)
    spread = lambda a: a + 0.1 * jax.random.uniform(jax.random.key(1), a.shape)  # noqa: E731
    variables = jax.tree.map(spread, refresh_quantiles(variables))
    model = Model(codec, variables, None)
    graphs = {
        "encoder": encoder_onnx(codec, variables).SerializeToString(),
        "decoder": decoder_onnx(codec, variables).SerializeToString(),
    }
    row = exporting_codec._check("p4", model, graphs, (21, 40))
    assert row["symbols"] == 5 * 3 * 5 and row["max_difference"] <= 1e-5
