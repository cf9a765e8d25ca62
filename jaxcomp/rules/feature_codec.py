"""Codecs for the levels of a feature pyramid."""

from jaxcomp.rules.workload import Workload

FEATURE_CODEC = Workload(
    models=(
        "factorized_prior_specific_level",
        "factorized_prior_joint",
        "factorized_prior_random_level",
    ),
    stride=32,  # of the detector down to P5: images of other sizes would be padded
)
