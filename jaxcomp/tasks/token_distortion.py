"""Distortions of token maps for what is done with them: probes look at their mean, not at pixels.

    D = feature_weight MSE + whitened_weight W + pooled_weight P

of a map x [H, W, C] and its decoded form, with e the error and s^2 the variance of the tokens:

- MSE: |e|^2 / s^2, a mean over tokens and channels (the codec's own),
- W: the same with every direction of the tokens at the same variance (Mahalanobis), so that what
  varies little, and may still tell classes apart, is not lost first,
- P: the squared error of the mean over the tokens, over the variance of these means. A mean has a
  variance far below that of tokens, and their errors average out in it or do not: the squared error
  of tokens hardly sees which.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxcomp.types import Array, PyTree

SHRINKAGE = 0.01  # of the mean variance, added to each: directions of pure noise stay small
_ROWS = 1 << 16  # tokens counted at a time, in float64


def covariance(x: np.ndarray) -> np.ndarray:
    """Of rows [N, C], float64 [C, C]."""
    total, square = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS].astype(np.float64)
        total += part.sum(0)
        square += part.T @ part
    mean = total / len(x)
    return square / len(x) - np.outer(mean, mean)


def whitening(x: np.ndarray) -> np.ndarray:
    """[C, C] float32: rows [N, C], less their mean, times this are decorrelated, variance 1."""
    values, vectors = np.linalg.eigh(covariance(x))
    values = np.maximum(values, 0)
    values = values + SHRINKAGE * values.mean() + 1e-12
    return (vectors / np.sqrt(values)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDistortion:
    """W and P as the judge of `FeatureCodecTask`; see above.

    Attributes:
      whitening: [C, C], of tokens, see `whitening`.
      pooled_scale: root of the mean variance of the means over tokens.
      whitened_weight: of W in the loss.
      pooled_weight: of P.
      feature_weight: of the squared error beside them.
      weight: of both together.
      head: none, for the task.
    """

    whitening: np.ndarray
    pooled_scale: float
    whitened_weight: float
    pooled_weight: float
    feature_weight: float = 1.0
    weight: float = 1.0
    head: None = None

    @classmethod
    def of(cls, maps: np.ndarray, **weights: float) -> TokenDistortion:
        """From training maps [N, H, W, C]."""
        means = maps.mean((1, 2), dtype=np.float64)
        scale = float(np.sqrt(means.var(0).mean())) or 1.0
        return cls(whitening(maps.reshape(-1, maps.shape[-1])), scale, **weights)

    def level(self, variables: PyTree, name: str, x: Array, x_hat: Array, boxes: Array) -> Array:
        """Weighted W and P of each row, [B], of maps [B, H, W, C] before and after."""
        del variables, name, boxes
        error = x - x_hat
        whitened = jnp.square(error @ self.whitening).mean((1, 2, 3))
        pooled = jnp.square(error.mean((1, 2)) / self.pooled_scale).mean(1)
        return self.whitened_weight * whitened + self.pooled_weight * pooled
