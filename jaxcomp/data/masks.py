"""Which patches of an image are hidden and which are seen: block masks of static size.

Masks are a pure function of a generator, which the input pipeline makes from (seed, step): a
resumed run sees the masks that would have followed.

    hidden   = union of `targets` blocks, at most `max_masked` patches
    context  = one large block without the hidden patches, at most `max_context`

A network may therefore use lists of exactly these lengths. Where blocks cover more, patches drawn
at random are left out of both, so that nothing predicted is seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from jaxcomp.errors import ConfigError

KINDS = ("multiblock", "hierarchical", "random")
_STREAM = 5  # of the seed, for masks that belong to rows and not to steps
TRIES = 10


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How masks are drawn.

    Attributes:
      kind: "multiblock" as I-JEPA (Assran et al., 2023, arXiv:2301.08243, section 3): target blocks
        that may overlap, one context block; "hierarchical" as H-JEPA: blocks that avoid each other,
        everything else is context; "random": patches one by one.
      targets: blocks.
      target_scale: least and largest share of the grid that a target block covers.
      target_aspect: least and largest width over height of one.
      context_scale: the same of the context block, which is square (multiblock only).
      max_masked: largest share of the grid that is hidden; for "random" the share itself.
      max_context: largest share that is seen.

    Raises:
      ConfigError: a value is out of range.
    """

    kind: str = "multiblock"
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    max_masked: float = 0.6
    max_context: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"masking.kind={self.kind!r} is none of {', '.join(KINDS)}")
        if self.targets < 1:
            raise ConfigError(f"masking.targets={self.targets} must be at least 1")
        for name in ("target_scale", "target_aspect", "context_scale"):
            pair = tuple(float(v) for v in getattr(self, name))
            object.__setattr__(self, name, pair)
            high = 1.0 if name.endswith("scale") else math.inf
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= high or pair[1] == math.inf:
                raise ConfigError(
                    f"masking.{name}={pair} must be two rising numbers above 0"
                    + (" and at most 1" if high == 1 else "")
                )
        for name in ("max_masked", "max_context"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"masking.{name}={getattr(self, name)} must be above 0 and at most 1"
                )


def room(share: float, grid: tuple[int, int], least: int = 1) -> int:
    """Patches that a share of the grid allows: the static length of a list of them."""
    tokens = grid[0] * grid[1]
    return min(tokens, max(least, math.floor(share * tokens)))


def block_shape(
    rng: np.random.Generator,
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int]:
    """(rows, columns) of a block, inside the grid; the aspect is columns over rows."""
    area = rng.uniform(*scale) * grid[0] * grid[1]
    # Uniform in the logarithm, so that tall and wide blocks are alike.
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    rows = round(math.sqrt(area / ratio))
    columns = round(math.sqrt(area * ratio))
    return min(max(rows, 1), grid[0]), min(max(columns, 1), grid[1])


def place_block(
    rng: np.random.Generator, grid: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """Bool [rows, columns] with one block anywhere inside."""
    top = int(rng.integers(grid[0] - shape[0] + 1))
    left = int(rng.integers(grid[1] - shape[1] + 1))
    mask = np.zeros(grid, bool)
    mask[top : top + shape[0], left : left + shape[1]] = True
    return mask


def thinned(rng: np.random.Generator, mask: np.ndarray, most: int) -> np.ndarray:
    """The mask with patches drawn at random removed, so that at most `most` are left."""
    here = np.flatnonzero(mask)
    if len(here) <= most:
        return mask
    out = mask.copy()
    out.reshape(-1)[rng.choice(here, len(here) - most, replace=False)] = False
    return out


def multiblock(
    rng: np.random.Generator, grid: tuple[int, int], cfg: MaskConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(covered by targets, context block) of I-JEPA, bool [rows, columns] each."""
    covered = np.zeros(grid, bool)
    for _ in range(cfg.targets):
        shape = block_shape(rng, grid, cfg.target_scale, cfg.target_aspect)
        covered |= place_block(rng, grid, shape)
    shape = block_shape(rng, grid, cfg.context_scale, (1.0, 1.0))
    return covered, place_block(rng, grid, shape)


def hierarchical(
    rng: np.random.Generator, grid: tuple[int, int], cfg: MaskConfig, level: int = 0
) -> np.ndarray:
    """Covered patches of the hierarchical generator, bool [rows, columns].

    Each block gets ten places that do not overlap earlier ones; else it is grid // (level + 2) a
    side and may. The aspect is narrowed towards 1, to [0.85, 1.15] at level 0 and by 0.15 less at
    each coarser one; only level 0 trains the network.
    """
    slack = 0.15 * (level + 1)
    low = max(cfg.target_aspect[0], 1 - slack)
    aspect = (low, max(low, min(cfg.target_aspect[1], 1 + slack)))
    covered = np.zeros(grid, bool)
    for _ in range(cfg.targets):
        for _ in range(TRIES):
            block = place_block(rng, grid, block_shape(rng, grid, cfg.target_scale, aspect))
            if not (covered & block).any():
                break
        else:
            side = (max(1, grid[0] // (level + 2)), max(1, grid[1] // (level + 2)))
            block = place_block(rng, grid, side)
        covered |= block
    return covered


class MaskSampler:
    """Draws masks for a grid of patches.

    Attributes:
      grid: (rows, columns).
      max_masked: patches that are hidden at most, the same for every sample.
      max_context: patches that are seen at most.
    """

    def __init__(self, grid: tuple[int, int], cfg: MaskConfig, least: int = 1):
        """Makes a sampler.

        Args:
          grid: (rows, columns) of the patches.
          cfg: how to draw.
          least: lower limit of `max_masked` (what the coarsest level needs).

        Raises:
          ConfigError: the grid leaves no patch to see.
        """
        self.grid, self.cfg = grid, cfg
        tokens = grid[0] * grid[1]
        self.max_masked = room(cfg.max_masked, grid, least)
        self.max_context = room(cfg.max_context, grid)
        if tokens < 2:
            raise ConfigError(f"a grid of {grid} patches leaves none to see beside a hidden one")

    def one(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(hidden, seen), bool [N] in raster order; disjoint, each with at least one patch."""
        grid, cfg = self.grid, self.cfg
        block = np.ones(grid, bool)
        if cfg.kind == "multiblock":
            covered, block = multiblock(rng, grid, cfg)
        elif cfg.kind == "hierarchical":
            covered = hierarchical(rng, grid, cfg)
        else:
            covered = np.ones(grid, bool)
        # At least one patch stays uncovered, so that there is something to predict from.
        most = min(self.max_masked, covered.size - 1)
        hidden = thinned(rng, covered, most)
        free = ~hidden if cfg.kind == "random" else ~covered
        seen = block & free
        if not seen.any():
            seen = free if free.any() else ~hidden
        return hidden.reshape(-1), thinned(rng, seen, self.max_context).reshape(-1)

    def __call__(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """Masks of a batch: {"hidden": bool [count, N], "context": bool [count, N]}."""
        return self.each([rng] * count)

    def each(self, rngs: Iterable[np.random.Generator]) -> dict[str, np.ndarray]:
        """As a call, a row for each generator."""
        pairs = [self.one(rng) for rng in rngs]
        hidden, context = (np.stack(x) for x in zip(*pairs, strict=True))
        return {"hidden": hidden, "context": context}

    def of_rows(self, seed: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Masks that belong to rows of a data set, always the same: for validation."""
        entropies = [[seed, _STREAM, row] for row in np.asarray(rows).tolist()]
        return self.each(
            np.random.Generator(np.random.Philox(np.random.SeedSequence(e))) for e in entropies
        )
