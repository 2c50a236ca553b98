"""The registry that a cache stands in front of, by the repositories it has. Blocking and thread-safe."""

from __future__ import annotations

import os
import threading
from urllib.parse import urlsplit

from dray.base.reference import Reference
from dray.registry.model import Credentials
from dray.registry.proxies import Proxies
from dray.registry.repository import RemoteRepository
from dray.registry.settings import CERTIFICATES, HUB_NAMES, INDEX_NAME, RegistrySettings

_OPEN = 128  # repositories whose connections are kept


def _proxies() -> Proxies:
    """The HTTP proxies of the environment."""

    def of(name: str) -> str:
        return os.environ.get(name.upper(), "") or os.environ.get(name, "")

    return Proxies(http=of("http_proxy"), https=of("https_proxy"), no=of("no_proxy"))


class Upstream:
    """One registry, spoken to as one user. `url`: `https://host[:port]`, or `http://…` to speak in the clear."""

    def __init__(self, url: str, auth: Credentials, *, certificates: str = "") -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self._domain = INDEX_NAME if self.host in HUB_NAMES else self.host
        self._auth = auth
        self._settings = RegistrySettings(
            insecure_networks=(),
            insecure_hosts=frozenset({self.host.lower()} if parts.scheme == "http" else ()),
            proxies=_proxies(),
            certificate_folders=((certificates,) if certificates else ()) + (CERTIFICATES,),
            attempts=2,
        )
        self._lock = threading.Lock()
        self._open: dict[str, RemoteRepository] = {}

    def repository(self, name: str) -> RemoteRepository:
        """Return a repository of the registry."""
        with self._lock:
            found = self._open.pop(name, None)
            if found is None:
                found = RemoteRepository(self._settings, Reference(self._domain, name), self._auth, push=False)
            self._open[name] = found  # the latest used is the last one
            if len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
        return found

    def close(self) -> None:
        """Break off what is under way."""
        with self._lock:
            for one in self._open.values():
                one.close()
            self._open.clear()
