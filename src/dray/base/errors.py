"""The kinds of error that travel up through the house.

A floor raises a kind; only the server knows that a kind is a status code, and only the client knows what it
prints. A message tells the user what was wrong and, where it helps, what to do. Kinds are those of the Engine
API's status codes (moby `errdefs`).
"""

from __future__ import annotations


class DrayError(Exception):
    """Base of every error dray raises on purpose; `str(error)` is fit to be shown to a user."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidParameter(DrayError):
    """The request makes no sense, whatever the state of the engine."""

    status = 400


class Unauthorized(DrayError):
    """The credentials are missing or wrong."""

    status = 401


class Forbidden(DrayError):
    """The request is understood and refused."""

    status = 403


class NotFound(DrayError):
    """The named object does not exist."""

    status = 404


class Conflict(DrayError):
    """The object's present state, or another object, stands in the way."""

    status = 409


class NotModified(DrayError):
    """The object is already as asked."""

    status = 304


class Unsupported(DrayError):
    """A documented option that this engine, kernel or host cannot do."""

    status = 501


class Unavailable(DrayError):
    """The engine (or a part of it) cannot serve this now."""

    status = 503


class Internal(DrayError):
    """Our fault or the machine's."""

    status = 500


class StartError(InvalidParameter):
    """A program in a container could not be started.

    `exit_code` is what `docker run` and `docker exec` end with: 127 the program was not found, 126 it cannot be
    executed, 128 anything else went wrong before it ran.
    """

    def __init__(self, message: str, exit_code: int = 128) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def by_status(status: int, message: str) -> DrayError:
    """Return the error of the kind that `status` stands for (used where errors cross a process boundary)."""
    for kind in (
        InvalidParameter,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        NotModified,
        Unsupported,
        Unavailable,
    ):
        if kind.status == status:
            return kind(message)
    return Internal(message)
