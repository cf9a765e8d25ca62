"""What a config of each workload may hold: one module per workload, one line here. No JAX."""

from collections.abc import Mapping

from jaxcomp.rules.detect import DETECT
from jaxcomp.rules.face import FACE
from jaxcomp.rules.feature_codec import FEATURE_CODEC
from jaxcomp.rules.hjepa import JEPA
from jaxcomp.rules.pointpillars import POINTPILLARS
from jaxcomp.rules.residual_vq import RESIDUAL_VQ
from jaxcomp.rules.seeds import SEEDS
from jaxcomp.rules.sweep import SWEEP
from jaxcomp.rules.token_codec import TOKEN_CODEC
from jaxcomp.rules.workload import Workload

WORKLOADS: Mapping[str, Workload] = {
    "detect": DETECT,
    "face": FACE,
    "feature_codec": FEATURE_CODEC,
    "jepa": JEPA,
    "pointpillars": POINTPILLARS,
    "residual_vq": RESIDUAL_VQ,
    "seeds": SEEDS,
    "sweep": SWEEP,
    "token_codec": TOKEN_CODEC,
}
