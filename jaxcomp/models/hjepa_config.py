"""Sizes and options of a hierarchical joint-embedding predictive architecture."""

from __future__ import annotations

import dataclasses

from jaxcomp.errors import ConfigError
from jaxcomp.models.target_norm import TARGET_NORMS
from jaxcomp.models.vit import ViTConfig, check_heads

LEVELS = (2, 3, 4)
FUSIONS = ("add", "concat", "attention")
POOLINGS = ("1d", "2d")
UPSAMPLINGS = ("linear", "learned")
INITS = ("small", "glorot")
PREDICTOR_HEADS = 12


@dataclasses.dataclass(frozen=True)
class HJEPAConfig:
    """A model; the defaults are ViT-B/16 with three levels and no pyramid.

    Attributes:
      encoder: sizes of both encoders.
      predictor_depth: blocks of the predictor, which is as wide as the encoder.
      predictor_heads: of its attention; 0: 12 where that divides the width, else the encoder's.
      predictor_mlp_ratio: hidden width of its MLPs over the width.
      num_hierarchies: levels, 2 to 4; level l is pooled by 2^l.
      use_fpn: feature pyramid with a top-down path instead of pooling alone.
      fpn_feature_dim: its width; None: that of the encoder.
      fpn_fusion_method: "add", "concat" (both as in the original) or "attention".
      fpn_level_dims: one width for each level, which overrides `fpn_feature_dim`.
      fpn_upsampling: "linear" interpolation or "learned" transposed convolution.
      fpn_bottom_up: one more path from fine to coarse after the top-down one (PANet).
      pooling: "1d" pools neighbours of the list of tokens, as the original does; "2d" pools squares
        of the image.
      target_norm: how tokens of the target encoder are normalised in training, see
        `target_norm.normalised_targets`; the original has "none".
      init: kernels of the linear layers at the start: "small", truncated normal with a deviation of
        0.02, or "glorot", the same with sqrt(2 / (inputs + outputs)) (Glorot and Bengio, 2010). A
        narrow network with small kernels is nearly linear, and so are the targets that it starts
        with.
      compat: compute what the original computes, for comparison with it: masked tokens stay in the
        context encoder as zeros, padding takes part in attention, pooling and interpolation, and
        masked losses are not divided by the width.

    Raises:
      ConfigError: a value is out of range or does not fit another.
    """

    encoder: ViTConfig = ViTConfig()  # noqa: RUF009 - frozen
    predictor_depth: int = 6
    predictor_heads: int = 0
    predictor_mlp_ratio: float = 4.0
    num_hierarchies: int = 3
    use_fpn: bool = False
    fpn_feature_dim: int | None = None
    fpn_fusion_method: str = "add"
    fpn_level_dims: tuple[int, ...] = ()
    fpn_upsampling: str = "linear"
    fpn_bottom_up: bool = False
    pooling: str = "1d"
    target_norm: str = "none"
    init: str = "small"
    compat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "fpn_level_dims", tuple(self.fpn_level_dims))
        if self.num_hierarchies not in LEVELS or isinstance(self.num_hierarchies, bool):
            raise ConfigError(f"num_hierarchies={self.num_hierarchies!r} must be 2, 3 or 4")
        for name, known in (
            ("fpn_fusion_method", FUSIONS),
            ("fpn_upsampling", UPSAMPLINGS),
            ("pooling", POOLINGS),
            ("target_norm", TARGET_NORMS),
            ("init", INITS),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        self._check_sizes()
        self._check_pyramid()
        own = self.fpn_fusion_method == "attention" or self.fpn_upsampling == "learned"
        own = own or self.pooling == "2d" or self.target_norm != "none"
        if self.compat and (own or self.fpn_bottom_up):
            raise ConfigError(
                "compat=True is the original, which has pooling='1d', linear upsampling, add or "
                "concat, no bottom-up path and target_norm='none'"
            )

    def _check_sizes(self) -> None:
        if self.predictor_depth < 1 or not self.predictor_mlp_ratio > 0 or self.predictor_heads < 0:
            raise ConfigError(
                f"predictor_depth={self.predictor_depth} must be at least 1, predictor_mlp_ratio="
                f"{self.predictor_mlp_ratio} more than 0, predictor_heads={self.predictor_heads} "
                "at least 0"
            )
        check_heads("predictor_heads", self.heads, self.width, self.encoder.rope)
        factor = 2 ** (self.num_hierarchies - 1)
        short = min(self.encoder.grid) if self.pooling == "2d" else self.encoder.tokens
        if short < factor:
            raise ConfigError(
                f"num_hierarchies={self.num_hierarchies} pools by {factor}, but the grid is "
                f"{self.encoder.grid}; use fewer levels or a smaller patch"
            )

    def _check_pyramid(self) -> None:
        dims = self.fpn_level_dims
        if dims and len(dims) != self.num_hierarchies:
            raise ConfigError(
                f"fpn_level_dims={dims} has {len(dims)} widths for {self.num_hierarchies} levels"
            )
        for width in self.level_dims:
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                name = "fpn_level_dims" if dims else "fpn_feature_dim"
                raise ConfigError(f"{name}={width!r} must be a whole number of at least 1, or None")

    @property
    def width(self) -> int:
        """Of every token that goes in or comes out."""
        return self.encoder.width

    @property
    def heads(self) -> int:
        """Heads of the predictor."""
        if self.predictor_heads:
            return self.predictor_heads
        fits = self.width % PREDICTOR_HEADS == 0
        if fits and self.encoder.rope:
            fits = self.width // PREDICTOR_HEADS % 4 == 0
        return PREDICTOR_HEADS if fits else self.encoder.heads

    @property
    def level_dims(self) -> tuple[int, ...]:
        """Width of each level of the pyramid."""
        one = self.width if self.fpn_feature_dim is None else self.fpn_feature_dim
        return self.fpn_level_dims or (one,) * self.num_hierarchies

    @property
    def least_room(self) -> int:
        """Tokens that a list needs for its coarsest level to have one."""
        return 2 ** (self.num_hierarchies - 1)

    def map_shape(self, level: int) -> tuple[int, int]:
        """(rows, columns) of a level's tokens as a map.

        Level 0, and every level that is pooled on the image's grid, lies as it does in the picture;
        one that is pooled along the list of tokens has no rows and is (1, tokens).
        """
        if level and self.pooling == "1d":
            return 1, self.encoder.tokens // 2**level
        rows, columns = self.encoder.grid
        return rows // 2**level, columns // 2**level

    def fusion_heads(self, level: int) -> int:
        """Heads of a level's fusion by attention: of 64 channels where that divides the width."""
        width = self.level_dims[level]
        return width // 64 if width % 64 == 0 else 1
