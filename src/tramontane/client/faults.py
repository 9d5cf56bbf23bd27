"""What can go wrong between a client and its server, and is nobody's wrong request."""

from tramontane.errors import ConfigurationError, TramontaneError


class Unreachable(ConfigurationError):
    """No server answers a client: there is none at this address, or it has been away for too long."""

    code = "unreachable"
    retryable = True


class ProtocolGap(TramontaneError):
    """A stream that does not add up, even when asked for again: an event or some text is missing, or is another."""

    code = "protocol_gap"
