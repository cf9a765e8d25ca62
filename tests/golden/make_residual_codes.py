"""Makes the golden file of residual codes: `python tests/golden/make_residual_codes.py`.

Made once for version 1 and kind 1 and never again: every later reader must decode it to these bits.

    residual_v1.npz    codebooks and tables, as `rq.npz` of a run
    residual_v1.jxc    a sweep at the mixed point (8, 4, 8)
    residual_v1.json   what it decodes to: metadata, point, map, indices, and the SHA-256 of
                       the float32 features
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

from jaxcomp.codecs import rq_stream
from jaxcomp.jobs import rq_files

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import rq_toy  # noqa: E402

META = {"frame": "000001", "origin": [0.0, -39.68]}


def main():
    """Writes the three files."""
    model = rq_toy.model()
    frame = rq_toy.frame(np.random.default_rng(7), (8, 4, 8))
    rq_files.save_model(HERE / "residual_v1.npz", model, {"sizes": list(rq_toy.SIZES)})
    (HERE / "residual_v1.jxc").write_bytes(rq_stream.compress(frame, model, META))
    record = {
        "meta": META,
        "point": list(frame.point),
        "shape": list(frame.occupied.shape),
        "cells": np.flatnonzero(frame.occupied).tolist(),
        "indices": frame.indices.tolist(),
        "features": hashlib.sha256(rq_stream.features(frame, model.rows).tobytes()).hexdigest(),
    }
    (HERE / "residual_v1.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
