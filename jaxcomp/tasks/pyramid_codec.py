"""Tasks: train one codec for all levels of a frozen detector's feature pyramid.

joint: all levels in one map, see `codecs.pyramid`.

    L = D + rate_weight * bits / sum_l H_l W_l
    D = sum_l w_l MSE_l / scale^2,   w_l = H_l W_l / sum H W ("elements") or 1 / L ("equal")

The errors are those of the decoded levels at their own sizes. With "elements", the documents' rule,
the finest level has three quarters of the weight; one scale for all levels makes D relative to
their variance.

random: each level passes alone through the same codec.

    L = mean over levels of (MSE of normalised features + rate_weight * bits / (H_l W_l))

Each level has its own mean and scale; weights and prior are shared. The documents draw a level for
each *sample*; samples of different sizes do not form a batch, so here a batch is of one level drawn
for each *step*. The expected gradient is the same, its variance between steps is larger. There are
as many compiled steps as levels, and no others (`data.levels`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs.pyramid import JOINT, join_levels, level_variables, split_levels
from jaxcomp.errors import ConfigError
from jaxcomp.models.fpn import LEVELS
from jaxcomp.tasks.feature_codec import FeatureCodecTask, FeatureSums, Judge
from jaxcomp.types import Array, Batch, Features, PyTree

LEVEL_WEIGHTS = ("elements", "equal")


def pyramid_statistics(
    batches: Iterable[Mapping[str, Any]], levels: Sequence[str] = LEVELS, robust: bool = False
) -> dict[str, np.ndarray]:
    """Statistics of each level, as `feature_codec.level_statistics` has them for one.

    Args:
      batches: {level: [B, H_l, W_l, C]}.
      levels: which of them, in order.
      robust: medians over the frames.

    Returns:
      {"mean": [L, C], "scale": [L], "values": [L], how many there were}.

    Raises:
      NonFiniteError: the features hold NaN or infinity.
    """
    sums = {level: FeatureSums() for level in levels}
    for batch in batches:
        for level in levels:
            sums[level].add(batch[level])
    found = [one.result(robust) for one in sums.values()]
    stacked = {name: np.stack([one[name] for one in found]) for name in ("mean", "scale")}
    return stacked | {"values": np.asarray([one.positions for one in sums.values()], np.float64)}


def joint_statistics(statistics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"mean": [L C], "scale": []} of the joint map: the root mean square over all values."""
    share = statistics["values"] / statistics["values"].sum()
    scale = np.sqrt(np.sum(share * np.square(statistics["scale"], dtype=np.float64)))
    return {"mean": statistics["mean"].reshape(-1), "scale": np.float32(scale)}


class PyramidTask(FeatureCodecTask):
    """What both have in common: features are a dict of levels."""

    levels: tuple[str, ...] = LEVELS

    def decoded(self, variables: PyTree, features: Features) -> tuple[Features, dict[str, Array]]:
        """See `RandomLevelTask.decoded`."""
        raise NotImplementedError

    def features(self, frozen: PyTree, batch: Batch) -> Features:
        """{level: [B, H_l, W_l, C]}: cached ones or the head's, or the drawn one alone."""
        cached = {name: batch[name] for name in self.levels if name in batch}
        if cached:
            return {name: jnp.asarray(x, jnp.float32) for name, x in cached.items()}
        assert self.head is not None
        pyramid: Any = jax.lax.stop_gradient(self.head(frozen, batch))
        return {name: pyramid[name] for name in batch.get("take", self.levels)}

    def part(self, name: str) -> int | slice:
        """Where a level's statistics are: they are by level, or of all channels of all levels."""
        i = self.levels.index(name)
        if np.ndim(self.statistics["scale"]):
            return i
        channels = self.codec.in_channels // len(self.levels)
        return slice(i * channels, (i + 1) * channels)

    def _cut(self, name: str, x: Array) -> Array:
        """`cut` of a level."""
        return self.cut(x, self.part(name))

    def level_metrics(self, means: Mapping[str, Array], x: Features) -> Mapping[str, Any]:
        """Errors by level are among the terms already."""
        return {"feature_max": jnp.stack([jnp.abs(one).max() for one in x.values()]).max()}


class JointCodecTask(PyramidTask):
    """Rate-distortion training of the joint treatment."""

    def __init__(self, *args: Any, level_weights: str = "elements", **options: Any):
        """As `FeatureCodecTask`, with `joint_statistics`; the codec has L C channels.

        Args:
          *args: codec, rate weight and statistics.
          level_weights: one of `LEVEL_WEIGHTS`.
          **options: head and frozen.

        Raises:
          ConfigError: other weights.
        """
        if level_weights not in LEVEL_WEIGHTS:
            raise ConfigError(
                f"config.training.level_weights={level_weights!r}; one of {LEVEL_WEIGHTS} is needed"
            )
        super().__init__(*args, **options)
        self.level_weights = level_weights

    def _model_input(self, features: Features) -> Array:
        return join_levels([features[name] for name in self.levels])

    def decoded(self, variables: PyTree, features: Features) -> tuple[Features, dict[str, Array]]:
        """As of `RandomLevelTask`, with one stream, "joint"."""
        out, restored = self._passed(variables, features)
        return dict(zip(self.levels, restored, strict=True)), {JOINT: out["bits"].sum((1, 2, 3))}

    def _passed(
        self, variables: PyTree, features: Features, rng: Array | None = None, train: bool = False
    ) -> tuple[Any, list[Array]]:
        """What the codec makes of the joint map, and the decoded levels."""
        levels = [features[name] for name in self.levels]
        out: Any = self.codec.apply(variables, join_levels(levels), rng, train)
        return out, split_levels(out["x_hat"], [(x.shape[1], x.shape[2]) for x in levels])

    def terms(
        self,
        variables: PyTree,
        features: Features,
        rng: Array | None,
        train: bool,
        judge: Judge | None = None,
    ) -> dict[str, Array]:
        """Distortion and rate of each row, [B], and the squared error of each level."""
        out, restored = self._passed(variables, features, rng, train)
        # The codec cuts the joined map, as it does in `codecs.pyramid`; the loss is of cut levels.
        levels = [self._cut(name, features[name]) for name in self.levels]
        errors = [jnp.square(x - y).mean((1, 2, 3)) for x, y in zip(levels, restored, strict=True)]
        positions = np.asarray([x.shape[1] * x.shape[2] for x in levels], np.float32)
        weights = positions / positions.sum()
        mse = sum(w * e for w, e in zip(weights, errors, strict=True))
        chosen = mse if self.level_weights == "elements" else sum(errors) / len(errors)
        distortion = chosen / jnp.square(variables["stats"]["scale"])
        bpp = out["bits"].sum((1, 2, 3)) / positions.sum()
        named = zip(self.levels, errors, strict=True)
        by_level = {f"fpn_mse/L{LEVELS.index(name)}": error for name, error in named}
        seen = None
        if judge:
            pairs = zip(self.levels, levels, restored, strict=True)
            seen = jnp.stack([judge(name, x, y) for name, x, y in pairs]).mean(0)
        return self.rated(distortion, mse, bpp, seen) | by_level


class RandomLevelTask(PyramidTask):
    """Rate-distortion training of one codec for single levels; statistics are by level."""

    def set_statistics(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The statistics of all levels side by side: mean [L, C] and scale [L]."""
        own = {name: jnp.asarray(self.statistics[name]) for name in ("mean", "scale")}
        return {**variables, "stats": {**variables["stats"], **own}}

    def decoded(self, variables: PyTree, features: Features) -> tuple[Features, dict[str, Array]]:
        """({level: [B, H_l, W_l, C] decoded from rounded latents}, {stream: [B] bits})."""
        restored, bits = {}, {}
        for name, x in features.items():
            own = level_variables(variables, self.levels.index(name))
            out: Any = self.codec.apply(own, x)
            restored[name], bits[name] = out["x_hat"], out["bits"].sum((1, 2, 3))
        return restored, bits

    def terms(
        self,
        variables: PyTree,
        features: Features,
        rng: Array | None,
        train: bool,
        judge: Judge | None = None,
    ) -> dict[str, Array]:
        """Distortion and rate of each row, [B], averaged over the levels that are there."""

        def of_level(name: str, x: Array) -> dict[str, Array]:
            own = level_variables(variables, self.levels.index(name))
            return FeatureCodecTask.terms(self, own, self._cut(name, x), rng, train, judge, name)

        rows = [of_level(name, x) for name, x in features.items()]
        by_level = {
            f"fpn_mse/L{LEVELS.index(name)}": row["mse"]
            for name, row in zip(features, rows, strict=True)
        }
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} | by_level


def pyramid_task(
    name: str,
    *args: Any,
    level_weights: str = "elements",
    levels: Sequence[str] = LEVELS,
    **options: Any,
) -> PyramidTask:
    """The task of a treatment, "joint" or "random", from `pyramid_statistics` of these levels."""
    codec, rate_weight, statistics = args
    task: PyramidTask
    if name == "joint":
        statistics = joint_statistics(statistics)
        task = JointCodecTask(
            codec, rate_weight, statistics, level_weights=level_weights, **options
        )
    else:
        task = RandomLevelTask(codec, rate_weight, statistics, **options)
    task.levels = tuple(levels)
    return task
