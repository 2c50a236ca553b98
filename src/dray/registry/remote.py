"""Registries over HTTP (`model.Registries`). Light: what speaks HTTP is imported with the first request."""

from __future__ import annotations

from dray.base.reference import Reference
from dray.registry.model import ANONYMOUS, Credentials, Repository
from dray.registry.proxies import Proxies
from dray.registry.settings import RegistrySettings


class RemoteRegistries:
    """All registries, as the daemon's configuration has them."""

    def __init__(self, settings: RegistrySettings | None = None) -> None:
        self.settings = settings or RegistrySettings()

    def repository(self, name: Reference, auth: Credentials = ANONYMOUS, *, push: bool = False) -> Repository:
        """Return a repository; nothing is sent yet. With `push`, mirrors are left out."""
        from dray.registry.repository import RemoteRepository

        return RemoteRepository(self.settings, name, auth, push=push)

    def login(self, address: str, auth: Credentials) -> tuple[str, str]:
        """Try credentials; return ("Login Succeeded", identity token or "")."""
        from dray.registry.accounts import login

        return login(self.settings, address, auth)

    def search(self, term: str, *, limit: int, auth: Credentials = ANONYMOUS) -> list[dict[str, object]]:
        """Search Docker Hub, or the registry that `term` begins with."""
        from dray.registry.accounts import search

        return search(self.settings, term, limit=limit, auth=auth)

    @property
    def proxies(self) -> Proxies:
        """The proxies of the daemon's requests."""
        return self.settings.proxies
