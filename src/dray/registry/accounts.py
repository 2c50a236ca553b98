"""What is asked of a registry as a whole: whether credentials are good, and what it has under a word.

GET /v2/                          200, or 401 with a challenge (login)
GET /v1/search?q=TERM&n=LIMIT     {"results": [...]} (search; at Docker Hub, index.docker.io)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlencode

from dray.base.errors import DrayError, InvalidParameter, NotFound, Unauthorized
from dray.base.reference import DEFAULT_DOMAIN, Reference
from dray.registry.answers import ERROR_LIMIT, status_line
from dray.registry.model import Credentials
from dray.registry.session import Session
from dray.registry.settings import HUB_HOST, HUB_NAMES, INDEX_HOST, INDEX_NAME, RegistrySettings
from dray.registry.tokens import basic
from dray.registry.transport import Transport

T = TypeVar("T")

SEARCH_LIMIT = 4 << 20  # bytes of an answer to a search


def host_of(address: str) -> str:
    """Return the `host[:port]` of what clients call a server's address: a URL, a host, "" for Docker Hub."""
    host = address.partition("://")[2] if "://" in address else address
    host = host.partition("/")[0]
    return INDEX_NAME if not host or host in HUB_NAMES else host


def _at(settings: RegistrySettings, host: str, auth: Credentials, ask: Callable[[Session], T]) -> T:
    """Ask a host; one that is insecure by HTTP as well if nothing answers by HTTPS."""
    transport = Transport(settings)
    try:
        endpoints = settings.hosts(host)
        for endpoint in endpoints:
            session = Session(endpoint, Reference(host, ""), auth, transport, offline=True)
            try:
                return ask(session)
            except DrayError:
                if session.answered or endpoint is endpoints[-1]:
                    raise
        raise AssertionError("a host has at least one endpoint")
    finally:
        transport.close()


def login(settings: RegistrySettings, address: str, auth: Credentials) -> tuple[str, str]:
    """Try credentials; return ("Login Succeeded", identity token or ""). Unauthorized if they are refused."""
    host = host_of(address)
    target = HUB_HOST if host == INDEX_NAME else host

    def ask(session: Session) -> tuple[str, str]:
        url = f"{session.endpoint.url}/v2/"
        response = session.exchange("GET", url, scopes=())
        response.start_of_body(ERROR_LIMIT)
        if response.status == 200:
            return "Login Succeeded", session.authorizer.refresh_token
        words = f"login attempt to {url} failed with status: {status_line(response.status)}"
        if response.status in (401, 403):
            raise Unauthorized(words)
        raise NotFound(words) if response.status == 404 else InvalidParameter(words)

    return _at(settings, target, auth, ask)


def search(settings: RegistrySettings, term: str, *, limit: int, auth: Credentials) -> list[dict[str, object]]:
    """Search; results as the registry gave them, names with the registry's host in front unless it is Docker Hub."""
    host, word = split_term(term)
    headers = {"X-Docker-Token": "true"}
    if auth.username:
        headers["Authorization"] = basic(auth.username, auth.password)

    def ask(session: Session) -> list[dict[str, object]]:
        url = f"{session.endpoint.url}/v1/search?{urlencode({'q': word, 'n': limit})}"
        response = session.transport.send("GET", url, endpoint=session.endpoint, headers=headers)
        session.answered = True
        if response.status != 200:
            response.start_of_body(ERROR_LIMIT)
            raise NotFound(
                f"{response.request}: unexpected status code {response.status}: this registry has no search"
            )
        return _results(response.body(SEARCH_LIMIT, "a list of images"), response.request)

    found = _at(settings, INDEX_HOST if host == DEFAULT_DOMAIN else host, auth, ask)
    if host != DEFAULT_DOMAIN:
        found = [{**entry, "name": f"{host}/{entry['name']}"} for entry in found if entry.get("name")]
    return found[:limit]


def _results(body: bytes, request: str) -> list[dict[str, object]]:
    try:
        found = json.loads(body).get("results") or []
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidParameter(f"{request}: the answer is no list of images: {error}") from error
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InvalidParameter(f"{request}: the answer is no list of images")
    return found


def split_term(term: str) -> tuple[str, str]:
    """Split a search term into the registry's host and what is searched there."""
    if "://" in term:
        raise InvalidParameter(f"invalid repository name: repository name ({term}) should not have a scheme")
    first, slash, rest = term.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return DEFAULT_DOMAIN, term.removeprefix("library/")
    if first in HUB_NAMES:
        return DEFAULT_DOMAIN, rest.removeprefix("library/")
    return first, rest
