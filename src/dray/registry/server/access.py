"""Who may do what: the seam between the protocol and authentication."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

PULL, PUSH, DELETE = "pull", "push", "delete"
LIST = "list"  # to see a repository's name in the catalogue
CATALOG = "registry:catalog:*"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request needs: an action on a repository ("" and PULL: to be let in at all; "*": the catalogue)."""

    action: str
    repository: str = ""

    @property
    def scope(self) -> str:
        """The wish as a token's scope; "" if none is needed."""
        if self.repository == "*":
            return CATALOG
        return f"repository:{self.repository}:{self.action}" if self.repository else ""


class Identity(Protocol):
    """Who sends a request."""

    @property
    def user(self) -> str:
        """The user's name, "" if nobody."""

    def may(self, wish: Wish) -> bool:
        """Tell whether the wish is granted."""


class Guard(Protocol):
    """Decides on requests. Implementations: `authentication`."""

    async def admit(self, header: str, wishes: tuple[Wish, ...], *, origin: str) -> Identity:
        """Return who sent an Authorization header ("" none) if all wishes are granted; a Refusal otherwise.

        `origin`: scheme and host at which the client reached us.
        """


@dataclass(frozen=True, slots=True)
class Anybody:
    """An identity that may do everything."""

    user: str = ""

    def may(self, wish: Wish) -> bool:
        """Grant it."""
        return True


class Open:
    """A guard that lets everybody do everything."""

    async def admit(self, header: str, wishes: tuple[Wish, ...], *, origin: str) -> Identity:
        """Let them."""
        return Anybody()
