"""Errors with a reserved kind; any other exception is reported under its class name."""


class WorkerError(Exception):
    """An error whose `kind` the other side knows."""

    kind = "simulator"


class ConfigError(WorkerError):
    """A setting or an option is wrong; trying again cannot help."""

    kind = "config"


class Unavailable(WorkerError):
    """Something is not installed or not found."""

    kind = "unavailable"

    def __init__(self, what, remedy):
        super().__init__(what)
        self.remedy = remedy


class InvalidAction(WorkerError):
    """An action has the wrong shape or holds a non-finite number."""

    kind = "invalid_action"


class NeedsReset(WorkerError):
    """`step` without an episode."""

    kind = "needs_reset"


class HandshakeError(WorkerError):
    """The other side speaks another protocol."""

    kind = "handshake"
