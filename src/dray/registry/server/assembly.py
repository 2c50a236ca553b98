"""From options to objects: the one place that names every implementation of the registry's seams."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dray.base.errors import InvalidParameter
from dray.registry.server import tokens
from dray.registry.server.access import Guard, Open
from dray.registry.server.app import Handler
from dray.registry.server.authentication import BasicGuard, Rules, Users, read_rules
from dray.registry.server.collect import Collector
from dray.registry.server.disk import DiskStorage
from dray.registry.server.leases import Leases
from dray.registry.server.options import Settings
from dray.registry.server.repositories import Repositories
from dray.registry.server.storage import Storage
from dray.registry.server.uploads import Uploads

if TYPE_CHECKING:
    from dray.registry.server.proxy import Proxy


@dataclass(kw_only=True, eq=False)
class House:
    """Everything that one storage needs, as the options have it."""

    storage: Storage
    repositories: Repositories
    uploads: Uploads
    collector: Collector


def open_storage(settings: Settings) -> Storage:
    """Open the storage that the options name."""
    if settings["s3-bucket"]:
        from dray.registry.server.s3 import S3Storage

        return S3Storage(
            bucket=settings["s3-bucket"],
            prefix=settings["s3-prefix"],
            endpoint=settings["s3-endpoint"],
            region=settings["s3-region"],
            redirects=bool(settings.values.get("s3-redirect")),
        )
    return DiskStorage(settings["root"])


def furnish(settings: Settings, *, serving: bool) -> House:
    """Open the storage and what stands on it. Only a server gives out leases."""
    storage = open_storage(settings)
    grace = settings.seconds("gc-grace")
    repositories = Repositories(storage, Leases(grace if serving else 0.0))
    uploads = Uploads(repositories, settings.seconds("upload-expiry"))
    collector = Collector(repositories, uploads, grace=grace, untagged=settings["delete-untagged"])
    return House(storage=storage, repositories=repositories, uploads=uploads, collector=collector)


def tls_of(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context of the listeners, None if they are to have none."""
    if not settings["tls-cert"]:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name in ("tls-cert", "tls-key", "tls-client-ca"):  # ssl's own error names no file
        if settings[name]:
            Path(settings[name]).open("rb").close()
    try:
        context.load_cert_chain(settings["tls-cert"], settings["tls-key"])
        if settings["tls-client-ca"]:
            context.load_verify_locations(settings["tls-client-ca"])
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise InvalidParameter(f"the TLS certificate, key or CA cannot be used: {error}") from None
    return context


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn a file that cannot be read or written, in the block, into an error that names it."""
    try:
        yield
    except OSError as error:
        raise InvalidParameter(f"cannot use {error.filename}: {error.strerror}") from None


def guard_of(
    settings: Settings, storage: Storage, stack: contextlib.AsyncExitStack
) -> tuple[Guard, dict[str, Handler]]:
    """Return who decides on requests, and the paths that this brings along."""
    auth, service, name = settings["auth"], settings["token-service"], settings["token-issuer"]
    if auth == "none":
        return Open(), {}
    if settings["token-realm"]:
        check = tokens.external(settings["token-key"], issuer=name, audience=service)
        return tokens.TokenGuard(check, realm=lambda _: settings["token-realm"], service=service), {}
    users = Users(settings["htpasswd"])
    stack.callback(users.close)
    rules = read_rules(settings["access"]) if settings["access"] else Rules()
    if auth == "htpasswd":
        return BasicGuard(users, rules), {}
    key = storage.get(tokens.KEY)
    if key is None:
        key = tokens.new_key()
        storage.put({tokens.KEY: key})
    issuer = tokens.Issuer(
        users, rules, key, issuer=name, service=service, lifetime=settings.seconds("token-lifetime")
    )
    guard = tokens.TokenGuard(issuer.check, realm=lambda origin: f"{origin}/token", service=service, rules=rules)
    return guard, {"/token": issuer.answer}


def proxy_of(settings: Settings, house: House, stack: contextlib.AsyncExitStack) -> Proxy | None:
    """Return the cache's other side, None if this registry is its own."""
    if not settings["proxy"]:
        return None
    from dray.registry.model import Credentials
    from dray.registry.server.proxy import Proxy
    from dray.registry.server.upstream import Upstream

    password = Path(settings["proxy-password-file"]).read_text().strip() if settings["proxy-password-file"] else ""
    upstream = Upstream(
        settings["proxy"],
        Credentials(username=settings["proxy-username"], password=password),
        certificates=settings["proxy-certs"],
    )
    stack.callback(upstream.close)
    return Proxy(upstream, house.repositories, house.uploads)
