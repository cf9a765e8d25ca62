"""A linear classifier on tokens that it weighs itself: the attentive probe, with one query.

    weights = softmax(tokens . query / sqrt(D)),  scores = W (sum of weights tokens) + b

after Bardes et al., 2024 (arXiv:2404.08471, appendix), whose probe has a whole cross-attention
block; one query keeps it a linear classifier of one weighted mean. The features stay frozen.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcomp.errors import DataError, ShapeError

EPOCHS, BATCH, RATE, DECAY = 40, 128, 0.01, 1e-3


def _check(name: str, tokens: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    tokens, labels = np.asarray(tokens, np.float32), np.asarray(labels)
    if tokens.ndim != 3 or labels.shape != tokens.shape[:1] or not tokens.size:
        raise ShapeError(
            f"{name} tokens {list(tokens.shape)} and labels {list(labels.shape)}: give [N, T, D] "
            "and [N], N at least 1"
        )
    if not np.isfinite(tokens).all():
        raise DataError(f"{name} tokens are not finite; the network has diverged")
    return tokens, labels.astype(np.int32)


def attention_scores(weights: Any, tokens: Any) -> Any:
    """Scores [N, C] of tokens [N, T, D] by {"query" [D], "kernel" [D, C], "bias" [C]}."""
    logits = jnp.einsum("ntd,d->nt", tokens, weights["query"]) / np.sqrt(tokens.shape[-1])
    pooled = jnp.einsum("nt,ntd->nd", jax.nn.softmax(logits), tokens)
    return pooled @ weights["kernel"] + weights["bias"].reshape(1, -1)


@functools.partial(jax.jit, static_argnames=("classes", "epochs"))
def _fit(tokens: Any, labels: Any, key: Any, classes: int, epochs: int) -> Any:
    rows, width = tokens.shape[0], tokens.shape[-1]
    batch = min(BATCH, rows)
    steps = max(1, rows // batch)
    optimiser = optax.adamw(optax.cosine_decay_schedule(RATE, epochs * steps), weight_decay=DECAY)
    weights = {
        "query": jnp.zeros(width),
        "kernel": jnp.zeros((width, classes)),
        "bias": jnp.zeros(classes),
    }

    def loss(weights: Any, chosen: Any) -> Any:
        scores = attention_scores(weights, tokens[chosen])
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels[chosen]).mean()

    def step(carry: Any, chosen: Any) -> Any:
        weights, state = carry
        updates, state = optimiser.update(jax.grad(loss)(weights, chosen), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    orders = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
    chosen = orders[:, : steps * batch].reshape(epochs * steps, batch)
    return jax.lax.scan(step, (weights, optimiser.init(weights)), chosen)[0][0]


@dataclasses.dataclass(frozen=True, eq=False)
class AttentiveProbe:
    """A fitted probe.

    Attributes:
      mean: [D] of the training tokens.
      std: [D], their deviation; 1 where there is none.
      weights: {"query", "kernel", "bias"}.
    """

    mean: np.ndarray
    std: np.ndarray
    weights: Any

    @classmethod
    def fit(
        cls, tokens: Any, labels: Any, classes: int = 0, *, seed: int = 0, epochs: int = EPOCHS
    ) -> AttentiveProbe:
        """From training tokens [N, T, D] and labels [N]; `classes` at least, if there are more."""
        x, y = _check("training", tokens, labels)
        mean, std = x.mean((0, 1)), x.std((0, 1))
        std = np.where(std > 1e-6, std, 1.0)
        count = max(classes, int(y.max()) + 1)
        return cls(mean, std, _fit((x - mean) / std, y, jax.random.key(seed), count, epochs))

    def accuracy(self, tokens: Any, labels: Any) -> float:
        """Share of [M] labels that the probe names from tokens [M, T, D]."""
        z, wanted = _check("test", tokens, labels)
        return float((_classes(self.weights, (z - self.mean) / self.std) == wanted).mean())

    def attention(self, tokens: Any) -> np.ndarray:
        """How it weighs tokens [M, T, D], float32 [M, T]."""
        z = (np.asarray(tokens, np.float32) - self.mean) / self.std
        logits = z @ np.asarray(self.weights["query"]) / np.sqrt(z.shape[-1])
        return np.asarray(jax.nn.softmax(logits))


def attentive_probe(
    train: tuple[Any, Any], test: tuple[Any, Any], *, seed: int = 0, epochs: int = EPOCHS
) -> dict[str, Any]:
    """Accuracy of an attentive probe on standardised tokens.

    Args:
      train: ([N, T, D] tokens, [N] labels).
      test: the same of the rows to judge.
      seed: of the order.
      epochs: passes over the training rows.

    Returns:
      {"accuracy", "train_accuracy", "weights": float32 [M, T] of the test rows}.

    Raises:
      ShapeError: a shape is wrong.
      DataError: tokens are not finite.
    """
    wanted = _check("test", *test)[1]
    probe = AttentiveProbe.fit(*train, int(wanted.max()) + 1, seed=seed, epochs=epochs)
    return {
        "accuracy": probe.accuracy(*test),
        "train_accuracy": probe.accuracy(*train),
        "weights": probe.attention(test[0]),
    }


def _classes(weights: Any, tokens: np.ndarray, rows: int = 512) -> np.ndarray:
    parts = [tokens[i : i + rows] for i in range(0, len(tokens), rows)]
    return np.concatenate([np.asarray(attention_scores(weights, p).argmax(1)) for p in parts])
