"""Makes the golden stream of the `.jxc` format, version 1: `python tests/golden/make_streams.py`.

The files are made once and never again for the same version: every later reader must decode them.
A change of the format gets a new version, new files beside these, and a name with its number here.

    streams_v1.jxt    serialised tables
    streams_v1.jxc    a file of four streams: long form with escapes, short form, 64 lanes, one row
    streams_v1.json   metadata, shapes and symbols that it decodes to
"""

import json
import pathlib

import numpy as np

from jaxcomp.codecs import bitstream, rans
from jaxcomp.codecs.tables import tables_from_pmfs

HERE = pathlib.Path(__file__).parent
STAGES = 2


def tables():
    """Three channels of different spread; the middle one is not centred."""
    reach = [(-2, 2, 0.3), (-3, 8, 1.5), (-20, 20, 4.0)]
    rows = [np.exp(-np.abs(np.arange(low, high + 1)) / s) for low, high, s in reach]
    offset = [low for low, _, _ in reach]
    return tables_from_pmfs(
        rows, offset=offset, median=[0.25, -1.5, 0.0], escape=[0.01, 0.02, 0.01], precision=13
    )


def maps(rng):
    """Name, shape [H, W] of the features, lanes asked for, symbols [h, w, 3]."""
    for name, shape, lanes, clip in (
        ("p2", (29, 50), 2, None),
        ("p3", (13, 22), None, 2),
        ("größe", (8, 35), 64, None),
        ("", (1, 1), 4, None),
    ):
        size = [-(-n // 2**STAGES) for n in shape]
        symbols = np.round(rng.laplace(size=(*size, 3)) * [0.3, 1.5, 4.0]).astype(np.int32)
        if clip is None:
            symbols[0, 0] = [-(2**31), 2**31 - 1, 400]
        else:
            symbols = symbols.clip(-clip, clip)
        yield name, shape, lanes, symbols


def main():
    """Writes the three files."""
    made, streams, expected = tables(), [], {}
    for name, shape, lanes, symbols in maps(np.random.default_rng(0)):
        payload, used = rans.encode(symbols, made, lanes, backend="numpy")
        streams.append(bitstream.Stream(name, shape, STAGES, used, payload))
        expected[name] = [list(shape), list(symbols.shape), symbols.ravel().tolist()]
    meta = {"size": [116, 200], "classes": ["Car"], "scale": 1.5}
    blob = bitstream.write("factorised", made.digest, streams, meta)
    (HERE / "streams_v1.jxt").write_bytes(made.to_bytes())
    (HERE / "streams_v1.jxc").write_bytes(blob)
    text = json.dumps({"meta": meta, "streams": expected}, ensure_ascii=False)
    (HERE / "streams_v1.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
