"""Ready-made objects from files: a split detector and a feature codec that makes bytes.

These wrappers are conveniences for scripts and notebooks; all state is in plain arrays that they
hold and never change.
"""

from jaxcomp.loaders.codec_files import assemble_pyramid, load_codec, save_codec
from jaxcomp.loaders.codecs import LevelCodec, PyramidCodec, codec_tree
from jaxcomp.loaders.detectors import (
    FOREIGN,
    PIXEL_BUCKET,
    SHIPPED_DETECTOR,
    Detector,
    load_detector,
)
from jaxcomp.loaders.face_split import FaceSplit, load_split_detector
from jaxcomp.loaders.files import CODEC_FILE, DETECTOR_FILE, find_file

__all__ = [
    "CODEC_FILE",
    "DETECTOR_FILE",
    "FOREIGN",
    "PIXEL_BUCKET",
    "SHIPPED_DETECTOR",
    "Detector",
    "FaceSplit",
    "LevelCodec",
    "PyramidCodec",
    "assemble_pyramid",
    "codec_tree",
    "find_file",
    "load_codec",
    "load_detector",
    "load_split_detector",
    "save_codec",
]
