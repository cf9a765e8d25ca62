"""Feature codecs for other runtimes: an encoder to integers, a decoder from them, the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcomp.codecs.quantise import symbols
from jaxcomp.errors import NonFiniteError
from jaxcomp.interop.onnx_codec import decoder_onnx, encoder_onnx
from jaxcomp.jobs.exporting import session
from jaxcomp.loaders import PyramidCodec
from jaxcomp.workdir import atomic_write, json_text

TOLERANCE = 1e-4  # of the restored features, in units of their scale or of the largest of them
ROUNDED = 1e-3  # share of symbols that may fall on the other side of a half


def export_codec(
    codec: PyramidCodec, folder: Path, sizes: Sequence[tuple[int, int]] = ((32, 48), (25, 39))
) -> list[dict[str, Any]]:
    """Writes encoder, decoder and tables of each network of a codec, if they agree with JAX.

    Args:
      codec: as `load_codec` gives it.
      folder: gets `encoder_NAME.onnx`, `decoder_NAME.onnx`, `tables_NAME.bin` (see
        docs/bitstream.md) and `codec.json`.
      sizes: (rows, columns) of features at which the graphs are checked.

    Returns:
      [{"name", "height", "width", "symbols", "other_symbols", "max_difference"}]; differences of
      symbols by one are those of rounding.

    Raises:
      ConfigError: a package is not installed.
      NonFiniteError: a graph does not agree with JAX.
    """
    rows: list[dict[str, Any]] = []
    contents: dict[str, bytes] = {}
    for name, model in codec.coder.models.items():
        graphs = {
            kind: write(model.codec, model.variables).SerializeToString()
            for kind, write in (("encoder", encoder_onnx), ("decoder", decoder_onnx))
        }
        rows += [_check(name, model, graphs, size) for size in sizes]
        contents |= {f"{kind}_{name}.onnx": graph for kind, graph in graphs.items()}
        contents[f"tables_{name}.bin"] = model.tables.to_bytes()
    for name, content in contents.items():
        atomic_write(folder / name, content)
    atomic_write(folder / "codec.json", json_text({"digest": codec.digest, "checked": rows}))
    return rows


def _check(name: str, model: Any, graphs: dict[str, bytes], size: tuple[int, int]) -> Any:
    network, variables = model.codec, model.variables
    stats = variables["stats"]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, *size, network.in_channels)) * float(stats["scale"])
    x.reshape(-1)[::97] *= 2 * max(network.limit, 1.0)  # some of them are cut
    x = (x + np.asarray(stats["mean"])).astype(np.float32)

    def encode(variables: Any, x: Any) -> Any:
        y = network.apply(variables, x, method="analyse")
        return symbols(y, network.apply(variables, method="median"))

    ours = np.asarray(jax.jit(encode)(variables, x))
    moved = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    theirs = session(graphs["encoder"]).run(None, {"features": moved})[0].transpose(0, 2, 3, 1)
    apart = np.abs(ours.astype(np.int64) - theirs)

    def decode(variables: Any, s: Any) -> Any:
        y = s + network.apply(variables, method="median").reshape(1, 1, 1, -1)
        return network.apply(variables, y, size, method="synthesise")

    restored = np.asarray(jax.jit(decode)(variables, theirs.astype(np.float32)))
    feed = {
        "symbols": np.ascontiguousarray(theirs.transpose(0, 3, 1, 2)),
        "size": np.array(size, np.int64),
    }
    again = session(graphs["decoder"]).run(None, feed)[0].transpose(0, 2, 3, 1)
    unit = max(float(stats["scale"]), float(np.abs(restored).max()))
    worst = float(np.abs(again - restored).max()) / unit
    if not worst <= TOLERANCE or apart.max() > 1 or (apart > 0).mean() > ROUNDED:
        raise NonFiniteError(
            f"codec {name!r} at {size[0]}x{size[1]}: features differ by {worst:.3g}, "
            f"{(apart > 0).sum()} of {apart.size} symbols; nothing is written"
        )
    return {
        "name": name, "height": size[0], "width": size[1], "symbols": int(apart.size),
        "other_symbols": int((apart > 0).sum()), "max_difference": worst,
    }  # fmt: skip


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """The check as aligned columns."""
    lines = [f"{'codec':<8} {'size':>9} {'symbols':>9} {'rounded otherwise':>18} {'features':>9}"]
    lines += [
        f"{r['name']:<8} {r['height']}x{r['width']:<4} {r['symbols']:>11,} "
        f"{r['other_symbols']:>18} {r['max_difference']:>9.1e}"
        for r in rows
    ]
    return "\n".join(lines) + "\n"
