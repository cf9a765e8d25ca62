"""Sizes of PointPillars."""

from __future__ import annotations

import dataclasses
import math

from jaxcomp.errors import ConfigError
from jaxcomp.ops.anchors3d import AnchorKind
from jaxcomp.ops.voxelise import PillarGrid

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class PointPillarsConfig:
    """Sizes of the network; the defaults are those of the usual KITTI model (4,834,824 parameters).

    Attributes:
      low, high: x, y, z of the grid's ends, metres, lidar frame.
      cell: its cells, metres.
      max_points: that a pillar keeps.
      max_pillars: that a sweep keeps, in training; `max_pillars_eval` otherwise.
      encoder_features: channels of the canvas.
      block_features: channels of the backbone's blocks.
      block_convs: 3x3 convolutions of each block behind its first, strided one.
      block_strides: of the first one.
      neck_features: channels that each block is brought to at the first block's resolution.
      classes: names of labels 0, 1, ...
      anchor_sizes: w (x), l (y), h (z) of each class's anchors, metres, at yaw 0.
      anchor_bottoms: z of their lower face.
      anchor_yaws: 1.57, not a quarter turn, is what published weights were trained with.
      positive_iou, negative_iou: of each class, see `anchors3d.assign`.
      candidates: best anchors of a sweep that are decoded.
      score_threshold, nms_iou, max_detections: of the suppression.
      norm_momentum: of the running batch statistics; a run of a few hundred steps needs less, or
        they are still near where they started when it ends.
      dtype: compute type of the tail; the pillar encoder and the outputs are float32.
    """

    low: Triple = (0.0, -39.68, -3.0)
    high: Triple = (69.12, 39.68, 1.0)
    cell: Triple = (0.16, 0.16, 4.0)
    max_points: int = 32
    max_pillars: int = 16000
    max_pillars_eval: int = 40000
    encoder_features: int = 64
    block_features: tuple[int, ...] = (64, 128, 256)
    block_convs: tuple[int, ...] = (3, 5, 5)
    block_strides: tuple[int, ...] = (2, 2, 2)
    neck_features: tuple[int, ...] = (128, 128, 128)
    classes: tuple[str, ...] = ("Pedestrian", "Cyclist", "Car")
    anchor_sizes: tuple[Triple, ...] = ((0.6, 0.8, 1.73), (0.6, 1.76, 1.73), (1.6, 3.9, 1.56))
    anchor_bottoms: tuple[float, ...] = (-0.6, -0.6, -1.78)
    anchor_yaws: tuple[float, ...] = (0.0, 1.57)
    positive_iou: tuple[float, ...] = (0.5, 0.5, 0.6)
    negative_iou: tuple[float, ...] = (0.35, 0.35, 0.45)
    candidates: int = 100
    score_threshold: float = 0.1
    nms_iou: float = 0.01
    max_detections: int = 50
    norm_momentum: float = 0.99
    dtype: str = "float32"

    def __post_init__(self) -> None:
        blocks = (self.block_features, self.block_convs, self.block_strides, self.neck_features)
        if len({len(values) for values in blocks}) != 1 or not self.block_features:
            raise ConfigError(
                "block_features, block_convs, block_strides and neck_features have lengths "
                f"{[len(values) for values in blocks]}; give each block one value of each"
            )
        kinds = ("anchor_sizes", "anchor_bottoms", "positive_iou", "negative_iou")
        for name in kinds:
            if len(getattr(self, name)) != len(self.classes):
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} values for {len(self.classes)} "
                    "classes; give one for each"
                )
        step = math.prod(self.block_strides)
        if any(side % step for side in self.grid.shape):
            raise ConfigError(
                f"the grid has {self.grid.shape[0]} x {self.grid.shape[1]} cells, the backbone "
                f"divides by {step}; change low, high or cell so that both are multiples of it"
            )

    @property
    def grid(self) -> PillarGrid:
        """The cells of the canvas."""
        return PillarGrid(self.low, self.high, self.cell)

    @property
    def map_shape(self) -> tuple[int, int]:
        """(rows, columns) of the outputs."""
        rows, columns = self.grid.shape
        return rows // self.block_strides[0], columns // self.block_strides[0]

    @property
    def kinds(self) -> tuple[AnchorKind, ...]:
        """The anchors of each class."""
        columns = (self.anchor_sizes, self.anchor_bottoms, self.positive_iou, self.negative_iou)
        return tuple(AnchorKind(*row) for row in zip(*columns, strict=True))

    @property
    def anchors_per_place(self) -> int:
        """Anchors of one place of the map."""
        return len(self.classes) * len(self.anchor_yaws)
