"""What can go wrong between a client and a daemon.

Two families: the daemon answered and refused (`ApiError`, with the status and the daemon's own words), or no
answer came (`ConnectError`, `ProtocolError`). All of them are `DrayError`s, so that a caller may treat them as
one.
"""

from __future__ import annotations

from dray.base.errors import DrayError, Unavailable


class ApiError(DrayError):
    """The daemon answered with a status of 400 or more; `message` is what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __str__(self) -> str:
        return f"Error response from daemon: {self.message}"


class StreamError(DrayError):
    """A progress stream carried an error record after a status of 200."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class ConnectError(Unavailable):
    """No daemon answers at the address; `cause` is the failed system call, `host` the address tried."""

    def __init__(self, host: str, cause: OSError | None, message: str = "") -> None:
        super().__init__(
            message or f"Cannot connect to the Docker daemon at {host}. Is the docker daemon running?"
        )
        self.host = host
        self.cause = cause


class ProtocolError(Unavailable):
    """What came from the address is not the HTTP that was expected, or it ended too early."""
