"""Assignment of ground truth to anchors and regions, and their random sampling, on fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcomp.ops import boxes as box_ops
from jaxcomp.types import Array

# A box with more than this share inside an ignored region is neither positive nor negative.
IGNORE_COVERAGE = 0.5


class Assignment(NamedTuple):
    """Which candidates are positive, which negative, and the ground truth of each.

    Attributes:
      positive: [A] bool.
      negative: [A] bool.
      index: [A] int32, the best ground-truth row (meaningful where positive).
    """

    positive: Array
    negative: Array
    index: Array


def assign(
    candidates: Array,
    boxes: Array,
    valid: Array,
    ignore: Array,
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> Assignment:
    """Matches candidates to ground truth by overlap.

    Args:
      candidates: [A, 4] anchors or proposals.
      boxes: [N, 4] ground truth, padded.
      valid: [N] bool, rows that are objects.
      ignore: [N] bool, rows that are regions to leave alone.
      positive_iou: a candidate is positive at or above this overlap.
      negative_iou: and negative below this one; nothing in between.
      low_quality: also make the best candidates of every object positive, whatever their overlap.

    Returns:
      The `Assignment` of the candidates.
    """
    overlap = jnp.where(valid[None, :], box_ops.iou(candidates, boxes), -1.0)
    best, index = overlap.max(1), overlap.argmax(1).astype(jnp.int32)
    positive = best >= positive_iou
    if low_quality:
        best_of_object = overlap.max(0)
        tie = (overlap == best_of_object[None, :]) & (best_of_object > 0)[None, :]
        positive |= tie.any(1)
    covered = jnp.where(ignore[None, :], box_ops.coverage(candidates, boxes), 0.0).max(1)
    negative = (best < negative_iou) & ~positive & (covered <= IGNORE_COVERAGE)
    return Assignment(positive, negative, index)


def sample(
    rng: Array, positive: Array, negative: Array, count: int, positive_share: float
) -> tuple[Array, Array, Array]:
    """Draws `count` candidates, at most `positive_share` of them positive.

    Args:
      rng: key of the draw.
      positive: [A] bool.
      negative: [A] bool.
      count: rows to give; more than A is fine, the rest is padding.
      positive_share: of `count`.

    Returns:
      (rows [count] int, is_positive [count] bool, is_drawn [count] bool); positives come first,
      and rows that could not be drawn (too few candidates) have is_drawn False.
    """
    limit = int(count * positive_share)
    noise = jax.random.uniform(rng, positive.shape)
    drawn_positive = jnp.zeros_like(positive)
    best, rows = jax.lax.top_k(jnp.where(positive, noise, -1.0), min(limit, positive.shape[0]))
    drawn_positive = drawn_positive.at[rows].set(best >= 0)
    priority = jnp.where(drawn_positive, 1.0 + noise, jnp.where(negative, noise, -1.0))
    best, rows = jax.lax.top_k(priority, min(count, positive.shape[0]))
    # Padding points at row 0, so that it can be gathered, and is neither drawn nor positive.
    padding = (0, count - rows.shape[0])
    rows, is_positive = jnp.pad(rows, padding), jnp.pad(drawn_positive[rows], padding)
    return rows, is_positive, jnp.pad(best >= 0, padding)
