"""The pooled feature alone: the whole network runs at the edge and sends one vector.

Each channel is quantised uniformly in a range that sender and receiver know from training features,
and its symbols are packed bit by bit: C numbers of b bits are ceil(C b / 8) bytes, with nothing
around them. A container, a range for each vector or a general compressor would only add bytes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxcomp.errors import CorruptStreamError, NonFiniteError, ShapeError
from jaxcomp.evaluate.anchors_feature import PERCENTILES, dequantise, quantise


@dataclasses.dataclass(frozen=True, eq=False)
class VectorCoder:
    """Quantises vectors [C] to `bits` each.

    Attributes:
      bits: a key of `PERCENTILES`.
      low: [C], the value of symbol 0.
      high: [C], the value of the last.
    """

    bits: int
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, bits: int) -> VectorCoder:
        """With the ranges of training vectors [N, C]."""
        outside = 100 - PERCENTILES[bits]
        low, high = np.percentile(vectors, [outside, 100 - outside], axis=0)
        return cls(bits, low.astype(np.float32), high.astype(np.float32))

    def encode(self, vector: np.ndarray) -> bytes:
        """The bytes of a vector [C].

        Raises:
          ShapeError: it has another length.
          NonFiniteError: NaN or infinity.
        """
        x = np.asarray(vector, np.float32)
        if x.shape != self.low.shape:
            raise ShapeError(f"a vector has shape {x.shape}, {self.low.shape} is needed")
        if not np.isfinite(x).all():
            raise NonFiniteError("the vector holds NaN or infinity")
        symbols = quantise(x.reshape(1, 1, -1), self.low, self.high, self.bits).reshape(-1, 1)
        return np.packbits(
            np.unpackbits(symbols.astype(np.uint8), axis=1)[:, -self.bits :]
        ).tobytes()

    def decode(self, blob: bytes) -> np.ndarray:
        """The vector, float32 [C].

        Raises:
          CorruptStreamError: there are more or fewer bytes than one has.
        """
        count = len(self.low)
        if len(blob) != -(-count * self.bits // 8):
            raise CorruptStreamError(
                f"{len(blob)} bytes are no vector of {count} numbers of {self.bits} bits"
            )
        used = np.unpackbits(np.frombuffer(blob, np.uint8))[: count * self.bits]
        symbols = used.reshape(count, self.bits) @ (1 << np.arange(self.bits)[::-1])
        return dequantise(symbols.reshape(1, 1, -1), self.low, self.high, self.bits)[0, 0]
