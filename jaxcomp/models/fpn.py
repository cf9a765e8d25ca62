"""Feature pyramid network (Lin et al., 2017) with batch normalisation, as in the "v2" detector."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxcomp.models.layers import ConvNorm
from jaxcomp.types import Array

LEVELS = ("p2", "p3", "p4", "p5", "p6")


def resize_nearest(x: Array, height: int, width: int) -> Array:
    """Nearest-neighbour resize with index floor(i * in / out), exact for odd sizes too.

    `jax.image.resize` uses half-pixel centres, which differ unless the factor is exactly two.
    """
    rows = np.arange(height) * x.shape[1] // height
    columns = np.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns]


class FPN(nn.Module):
    """Lateral 1x1 and output 3x3 convolutions over a top-down path.

    Attributes:
      features: channels of every level.
      dtype: compute type.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[Array], train: bool) -> dict[str, Array]:
        """Maps the four stages to {"p2", ..., "p6"}; P6 is every other pixel of the final P5."""
        merged = None
        outputs = {}
        for i in reversed(range(len(stages))):
            lateral = ConvNorm(self.features, 1, 1, self.dtype, name=f"lateral{i + 2}")(
                stages[i], train
            )
            if merged is not None:
                lateral = lateral + resize_nearest(merged, *lateral.shape[1:3])
            merged = lateral
            outputs[f"p{i + 2}"] = ConvNorm(self.features, 3, 1, self.dtype, name=f"output{i + 2}")(
                merged, train
            )
        outputs["p6"] = outputs["p5"][:, ::2, ::2]
        return {name: outputs[name] for name in LEVELS}
