"""What a verb is: its usage line, flags, how many arguments it takes, and the function that does it."""

from __future__ import annotations

from dray.base.errors import DrayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dray.cli.app import App
    from dray.cli.flags import Flag, Values

    Runner = Callable[[App, Values, list[str]], int]

MANY = 1 << 30


class Command:
    """A verb. `usage` follows the verb's path; `least`/`most` bound the number of arguments."""

    __slots__ = ("flags", "interspersed", "least", "most", "run", "usage")

    def __init__(
        self,
        usage: str,
        run: Runner,
        *,
        flags: Sequence[Flag] = (),
        args: tuple[int, int] = (0, 0),
        interspersed: bool = True,
    ) -> None:
        self.usage = usage
        self.run = run
        self.flags = flags
        self.least, self.most = args
        self.interspersed = interspersed


class StatusError(DrayError):
    """A command ends with an exit status of its own; an empty message prints nothing."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


class Failure(DrayError):
    """A command cannot do what it was asked, for a reason the user can read (exit status 1)."""


def count_problem(command: Command, given: int) -> str | None:
    """Return what is wrong with the number of arguments, in Docker's words; None if nothing is."""
    least, most = command.least, command.most
    if least <= given <= most:
        return None
    if most == 0:
        return "accepts no arguments"
    if least == most:
        return f"requires {least} argument{'s' if least != 1 else ''}"
    if most == MANY:
        return f"requires at least {least} argument{'s' if least != 1 else ''}"
    if least == 0:
        return f"requires at most {most} argument{'s' if most != 1 else ''}"
    return f"requires at least {least} and at most {most} argument{'s' if most != 1 else ''}"
