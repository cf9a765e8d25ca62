"""Task: train a codec for one level of a frozen detector's feature pyramid.

    L = D + rate_weight * bits / (H_l * W_l),   D = MSE(normalised features)

The weight is on the *rate*: a larger one gives fewer bits. Features are normalised by statistics of
their level, so that a weight means the same on every level; the MSE is then relative to the
variance of the features.

With a tail (`tail_distortion`), D = feature_weight * MSE + task_weight * what the frozen tail sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.codecs import factorised
from jaxcomp.codecs.factorised import FactorisedCodec
from jaxcomp.errors import DataError, NonFiniteError, ShapeError
from jaxcomp.evaluate.detection import image_sizes
from jaxcomp.models.fpn import LEVELS
from jaxcomp.tasks.face_distortion import FaceDistortion
from jaxcomp.tasks.tail_distortion import REGIONS, TailDistortion
from jaxcomp.tasks.token_distortion import TokenDistortion
from jaxcomp.types import Array, Batch, LossAux, Metrics, PyTree, Task

JOINT_MODEL, RANDOM_MODEL = "factorized_prior_joint", "factorized_prior_random_level"
LOSS_CONVENTION = "mse + rate_weight * bits_per_position"


def levels_of(config: Any) -> tuple[str, ...]:
    """The levels of the detector that a config's `model` section is for."""
    return tuple(config.get("levels", LEVELS))


def codec_from_config(config: Any) -> FactorisedCodec:
    """The codec that a config's `model` section describes; `in_channels` are those of one level."""
    joint = config.name == JOINT_MODEL
    return FactorisedCodec(
        in_channels=config.in_channels * (len(levels_of(config)) if joint else 1),
        n_hidden=config.n_hidden,
        n_channels=config.n_channels,
        stages=config.stages,
        dtype=config.dtype,
        straight_through=config.straight_through,
        limit=config.get("limit", 0.0),
    )


# (level, features before, features after) -> the tail's distortion of each frame, [B].
Judge = Callable[[str, Array, Array], Array]
_CHUNK = 16  # frames summed at a time: float64 copies of a whole fine level take gigabytes


def level_statistics(batches: Iterable[Array], robust: bool = False) -> dict[str, np.ndarray]:
    """Mean of each channel and one scale of a level's features.

    One scale, not one for each channel: the channels keep their relative energies, so that a
    nearly constant channel is not amplified into something to spend bits on.

    Args:
      batches: arrays [B, H, W, C], of any B: they are summed a few frames at a time.
      robust: medians over the frames, which a few frames with extreme values do not move.

    Returns:
      {"mean": [C] float32, "scale": [] float32, the root mean square of the centred features}.

    Raises:
      NonFiniteError: the features hold NaN or infinity.
    """
    sums = FeatureSums()
    for batch in batches:
        sums.add(batch)
    return sums.result(robust)


class FeatureSums:
    """Sums of the features of many frames, in float64.

    Attributes:
      positions: H W summed over all frames.
    """

    def __init__(self) -> None:
        self.positions = 0
        self._parts = list[np.ndarray]()  # [B, 1 + 2 C]: H W, sums and sums of squares of frames

    def add(self, batch: Any) -> None:
        """Counts [B, H, W, C] features, a few frames at a time."""
        for chunk in (batch[i : i + _CHUNK] for i in range(0, batch.shape[0], _CHUNK)):
            flat = np.asarray(chunk, np.float64).reshape(chunk.shape[0], -1, chunk.shape[-1])
            self.positions += flat.shape[0] * flat.shape[1]
            count = np.full((len(flat), 1), flat.shape[1])
            self._parts.append(np.concatenate([count, flat.sum(1), np.square(flat).sum(1)], 1))

    def result(self, robust: bool = False) -> dict[str, np.ndarray]:
        """What `level_statistics` returns, and raises."""
        if not self._parts:
            raise DataError("no frame to take statistics of; check the training data")
        frames = np.concatenate(self._parts)
        if not np.isfinite(frames).all():
            raise NonFiniteError("The detector's features hold NaN or infinity; check its weights.")
        if robust:
            total, square = np.split(frames[:, 1:] / frames[:, :1], 2, -1)
            mean = np.median(total, 0)
            variance = np.median((square - 2 * mean * total + mean**2).mean(-1))
        else:
            mean, power = np.split(frames[:, 1:].sum(0) / max(self.positions, 1), 2)
            variance = np.maximum(power - mean**2, 0.0).mean()
        # Constant features have no scale; one leaves them as they are.
        scale = np.sqrt(variance) if variance > 0 else 1.0
        return {"mean": mean.astype(np.float32), "scale": np.float32(scale)}


class FeatureCodecTask(Task):
    """Rate-distortion training of one codec on one pyramid level."""

    def __init__(
        self,
        codec: FactorisedCodec,
        rate_weight: float,
        statistics: Mapping[str, np.ndarray],
        *,
        level: int = 0,
        head: Callable[[PyTree, Batch], Array] | None = None,
        frozen: PyTree = None,
        tail: TailDistortion | FaceDistortion | TokenDistortion | None = None,
        initial: PyTree = None,
    ):
        """Describes the task.

        Args:
          codec: the model.
          rate_weight: of bits per feature position, beside the mean squared error.
          statistics: see `level_statistics`.
          level: 0 for P2; names the level's metrics in the log.
          head: `head(frozen, batch) -> [B, H, W, C]`, used when a batch has no "features".
          frozen: the variables of `head` and of the tail; never trained nor saved.
          initial: params to start from instead of random ones.
          tail: judges the decoded features beside their squared error; None: the error alone.
        """
        self.codec = codec
        self.rate_weight = rate_weight
        self.statistics = statistics
        self.level = level
        self.head = head
        self.frozen = {} if frozen is None else frozen
        self.tail = tail
        self.initial = initial

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        """Random parameters; the level's statistics go into the stats."""
        features = jax.tree.map(lambda x: x[:1], self.features(self.frozen, batch))
        x = self._model_input(features)
        if x.shape[-1] != self.codec.in_channels:
            raise ShapeError(
                f"the detector's features have {x.shape[-1]} channels, the codec takes "
                f"config.model.in_channels={self.codec.in_channels}; make them equal"
            )
        variables = jax.jit(self.codec.init)(rng, x)
        variables = self.set_statistics(variables)
        params = variables["params"] if self.initial is None else self._started(variables["params"])
        return params, {"stats": variables["stats"]}, self.frozen

    def _started(self, params: PyTree) -> PyTree:
        """The initial params, if they are of this codec.

        Raises:
          ShapeError: they are not.
        """
        wanted, given = (jax.tree.map(jnp.shape, tree) for tree in (params, self.initial))
        if wanted != given:
            raise ShapeError(
                "config.model.initial holds a codec of other sizes; give one of the same "
                "in_channels, n_hidden, n_channels and stages"
            )
        return jax.tree.map(jnp.asarray, self.initial)

    def set_statistics(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """New variables with the statistics of the features."""
        return factorised.with_statistics(variables, **self.statistics)

    def _model_input(self, features: Any) -> Array:
        """What one pass of the codec takes, of which it is initialised."""
        return jnp.asarray(jax.tree.leaves(features)[0])

    def features(self, frozen: PyTree, batch: Batch) -> Array:
        """The level's features [B, H, W, C] of a batch: cached ones, or the frozen head's."""
        if "features" in batch:
            return self.cut(jnp.asarray(batch["features"], jnp.float32))
        assert self.head is not None
        return self.cut(jax.lax.stop_gradient(self.head(frozen, batch)))

    def cut(self, x: Array, part: Any = slice(None)) -> Array:
        """Features [..., C] as the codec sees them: cut at its limit, so that no loss is of more.

        Args:
          x: of the level whose statistics are `part` of the task's.
          part: an index of their leading axis.
        """
        limit = self.codec.limit
        if not limit:
            return x
        return jnp.clip(x, *self._bounds(x.ndim, part))

    def share_cut(self, x: Array, part: Any = slice(None)) -> Array:
        """The share of features [B, H, W, C] that `cut` changes."""
        low, high = self._bounds(x.ndim, part)
        return ((x < low) | (x > high)).mean()

    def _bounds(self, axes: int, part: Any) -> tuple[Array, Array]:
        """Smallest and largest value of each channel, for features with so many axes."""
        mean = jnp.asarray(self.statistics["mean"])[part].reshape((1,) * (axes - 1) + (-1,))
        scale = jnp.asarray(self.statistics["scale"])
        most = self.codec.limit * (scale[part] if scale.ndim else scale)
        return mean - most, mean + most

    def judge(self, frozen: PyTree, batch: Batch) -> Judge | None:
        """The tail's view of a batch, None without a tail."""
        tail = self.tail
        if tail is None:
            return None
        regions = {key: x for key, x in batch.items() if key.startswith(REGIONS)}
        if "image" in batch and tail.head is not None:
            pyramid = jax.lax.stop_gradient(tail.head(frozen, batch))
            regions = jax.lax.stop_gradient(tail.propose(frozen, pyramid, image_sizes(batch)))

        def distortion(name: str, x: Array, x_hat: Array) -> Array:
            none = jnp.zeros((x.shape[0], 0, 4))  # P6 is never pooled
            return tail.level(frozen, name, x, x_hat, regions.get(REGIONS + name, none))

        return distortion

    def terms(
        self,
        variables: PyTree,
        x: Array,
        rng: Array | None,
        train: bool,
        judge: Judge | None = None,
        name: str = "",
    ) -> dict[str, Array]:
        """Distortion and rate of each row, [B]; `mse` in feature units, `distortion` normalised."""
        out = self.codec.apply(variables, x, rng, train)
        distortion = out["distortion"]
        positions = x.shape[1] * x.shape[2]
        bpp = out["bits"].sum((1, 2, 3)) / positions
        mse = distortion * jnp.square(variables["stats"]["scale"])
        seen = judge(name or LEVELS[self.level], x, out["x_hat"]) if judge else None
        return self.rated(distortion, mse, bpp, seen)

    def rated(
        self, distortion: Array, mse: Array, bpp: Array, seen: Array | None = None
    ) -> dict[str, Array]:
        """The terms that every treatment has, and the loss that they make."""
        terms = {
            "mse": mse,
            "distortion": distortion,
            "bpp": bpp,
            "rate_loss": self.rate_weight * bpp,
        }
        if seen is None or self.tail is None:
            return {"loss": distortion + self.rate_weight * bpp} | terms
        judged = self.tail.feature_weight * distortion + self.tail.weight * seen
        return {"loss": judged + self.rate_weight * bpp, "task": seen} | terms

    def loss(
        self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch, rng: Array, step: Array
    ) -> tuple[Array, LossAux]:
        """Mean of the rows' losses; noise stands for rounding."""
        del step
        x = self.features(frozen, batch)
        judge = self.judge(frozen, batch)
        terms = self.terms({"params": params, **stats}, x, rng, True, judge)
        means = {name: value.mean() for name, value in terms.items()}
        metrics = {k: v for k, v in means.items() if k != "loss"}
        metrics |= self.level_metrics(means, x)
        return means["loss"], LossAux(metrics=metrics, stats=stats)

    def level_metrics(self, means: Mapping[str, Array], x: Any) -> Mapping[str, Any]:
        """Further metrics of a training batch, by level."""
        level = f"L{self.level}"
        return {"fpn_mse": {level: means["mse"]}, "feature_max": {level: jnp.abs(x).max()}}

    def eval_loss(self, params: PyTree, stats: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """The same terms with latents rounded around their medians, as sums over real rows."""
        x = self.features(frozen, batch)
        variables = factorised.refresh_quantiles({"params": params, **stats})
        terms = self.terms(variables, x, None, False, self.judge(frozen, batch))
        mask = jnp.asarray(batch["mask"])
        return {k: (v * mask).sum() for k, v in terms.items()} | {"count": mask.sum()}
