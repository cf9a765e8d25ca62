"""Sizes of the light face detectors, and the published ones by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxcomp.errors import ConfigError

PYRAMIDS = ("fpn", "bifpn", "bifpn_light")
GATES = ("none", "cbam", "shared")
CONTEXTS = ("plain", "deformable", "grouped")
MIXERS = ("none", "shuffle", "unshuffle", "unshuffle_conv", "shuffle_grouped")


@dataclasses.dataclass(frozen=True)
class FaceConfig:
    """Parts of a face detector on MobileNetV1-0.25; the defaults are the 489,015-parameter V1.

    Attributes:
      features: channels of the pyramid and of the context heads; a multiple of 4.
      pyramid: "fpn" (Lin et al., 2017), "bifpn" (Tan et al., 2020) or "bifpn_light".
      cells: of the BiFPN; ignored by "fpn".
      body_gates: attention on the maps of the body: "none", "cbam" (Woo et al., 2018) or "shared",
        which has one spatial gate for the three maps.
      pyramid_gates: the same on the maps of the pyramid.
      context: 3x3 convolutions of the context head: "plain" (Najibi et al., "SSH", 2017),
        "deformable" or "grouped".
      mixer: what follows it. "shuffle" permutes the channels as ShuffleNet does, "unshuffle" by the
        inverse permutation; "unshuffle_conv" and "shuffle_grouped" add convolutions.
      steps, min_sizes, variances: see `ops.priors`.
      score_threshold: detections below are dropped.
      nms_iou: overlap (areas with one pixel more on each side) above which boxes suppress another.
      candidates, max_detections: boxes before and after the suppression.
      dtype: compute type; parameters stay float32.

    Raises:
      ConfigError: a part is unknown or a size out of range.
    """

    features: int = 56
    pyramid: str = "bifpn"
    cells: int = 2
    body_gates: str = "none"
    pyramid_gates: str = "none"
    context: str = "deformable"
    mixer: str = "unshuffle"
    steps: tuple[int, ...] = (8, 16, 32)
    min_sizes: tuple[tuple[float, ...], ...] = ((16, 32), (64, 128), (256, 512))
    variances: tuple[float, float] = (0.1, 0.2)
    score_threshold: float = 0.02
    nms_iou: float = 0.4
    candidates: int = 5000
    max_detections: int = 750
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choices = {
            "pyramid": PYRAMIDS, "body_gates": GATES, "pyramid_gates": GATES,
            "context": CONTEXTS, "mixer": MIXERS,
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.features < 4 or self.features % 4:
            raise ConfigError(f"features={self.features} is not a positive multiple of 4")
        if self.cells < 1:
            raise ConfigError(f"cells={self.cells}: a BiFPN has at least one")
        if len(self.steps) != 3 or len(self.min_sizes) != 3:
            raise ConfigError(
                "steps and min_sizes must have one value for each of the three levels"
            )
        if len({len(sizes) for sizes in self.min_sizes}) != 1:
            raise ConfigError(f"min_sizes={self.min_sizes}: give each level equally many")

    @property
    def anchors_per_place(self) -> int:
        """Anchors at one place of a map."""
        return len(self.min_sizes[0])


VARIANTS: Mapping[str, FaceConfig] = {
    "v1_original": FaceConfig(
        features=64, cells=3, body_gates="cbam", pyramid_gates="cbam", mixer="unshuffle_conv"
    ),
    "v1": FaceConfig(),
    "v1_24": FaceConfig(features=24, cells=3, body_gates="cbam", mixer="shuffle"),
    "v2": FaceConfig(
        features=32, pyramid="bifpn_light", body_gates="shared", pyramid_gates="shared",
        context="grouped", mixer="shuffle_grouped",
    ),
    "retinaface": FaceConfig(features=64, pyramid="fpn", context="plain", mixer="none"),
}  # fmt: skip
# Trained numbers of each; "v1_24" is what the often quoted configuration of "489 K" really has.
PARAMETERS: Mapping[str, int] = {
    "v1_original": 592_371, "v1": 489_015, "v1_24": 321_041, "v2": 256_156, "retinaface": 426_608,
}  # fmt: skip


def face_config(name: str) -> FaceConfig:
    """The sizes of a published detector.

    Raises:
      ConfigError: there is none of this name.
    """
    if name not in VARIANTS:
        raise ConfigError(f"face detector {name!r} is none of {', '.join(VARIANTS)}")
    return VARIANTS[name]
