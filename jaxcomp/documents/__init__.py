"""The text files of a run, worded as the guides and their `grep` lines expect.

Pure functions: numbers in, text out; who calls them decides where a file goes. Lines for the
terminal and for `train.log` (batches, epochs, alerts) are in `jaxcomp.log`.
"""

from jaxcomp.documents.analysis import (
    level_analysis,
    level_analysis_folder,
    pyramid_analysis,
    pyramid_analysis_path,
)
from jaxcomp.documents.training import diagnostic_warnings, training_diagnostics, training_summary
from jaxcomp.documents.wording import lambda_exponent, lambda_label

__all__ = [
    "diagnostic_warnings",
    "lambda_exponent",
    "lambda_label",
    "level_analysis",
    "level_analysis_folder",
    "pyramid_analysis",
    "pyramid_analysis_path",
    "training_diagnostics",
    "training_summary",
]
