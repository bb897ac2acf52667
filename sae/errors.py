"""Every error `sae` raises on purpose: one readable line each, exit code 2 at the command line."""

from activations.errors import OneLine


class SAEError(OneLine):
    """Something the caller can mend: the message says what, what was found, what was needed, what to do."""


class ConfigError(SAEError):
    """A setting is out of range, or two contradict each other."""


class ShapeError(SAEError):
    """A tensor does not have the shape the SAE reads."""


class RunError(SAEError):
    """A run or features folder is missing, unfinished, damaged, of a newer format, or in the way."""


class DivergedError(SAEError):
    """A training loss is no longer finite."""


class ForeignError(SAEError):
    """Another tool's file is missing, damaged, unsafe to read, or holds what has no exact form here; or the reverse."""


class HubError(SAEError):
    """A name of the hub is none, is not there, may not be read, does not answer or sends other bytes than it says."""
