"""Errors that a user can act on. Every message names the file or key, the value and the fix."""

from __future__ import annotations


class JaxcompError(Exception):
    """Base of all errors that are the input's fault; commands print them as one line and exit 1."""


class ConfigError(JaxcompError):
    """A configuration key is unknown, of the wrong type, out of range or contradicts another."""


class DataError(JaxcompError):
    """A data set is missing, empty, or holds a file that cannot be read."""


class CheckpointError(JaxcompError):
    """A checkpoint is missing, truncated, of another model, or the work directory is unusable."""


class ShapeError(JaxcompError, ValueError):
    """An array has a shape or dtype that the model or codec cannot take."""


class NonFiniteError(JaxcompError):
    """A loss, gradient or feature became NaN or infinite; the message names the tensor."""


class ProbabilityError(JaxcompError, ValueError):
    """Numbers given as probabilities cannot be made into a table of the entropy coder."""


class BitstreamError(JaxcompError):
    """Base of everything that can be wrong with a coded stream."""


class TruncatedStreamError(BitstreamError):
    """The stream ends before the data its header announces."""


class CorruptStreamError(BitstreamError):
    """A checksum or an internal invariant of the stream does not hold."""


class TableMismatchError(BitstreamError):
    """The stream was coded with other tables (another model) than the ones given."""


class VersionError(BitstreamError):
    """The stream's magic or format version is not one this reader knows."""


class StreamShapeError(BitstreamError, ShapeError):
    """The stream announces maps of another shape than the codec that decodes it makes."""


class StreamTooLargeError(BitstreamError):
    """The header announces more data than the configured limit allows."""
