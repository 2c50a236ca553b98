"""Authentication at one registry: Basic, and Bearer with tokens from the registry's token service.

Credentials go to the registry they were given for, and to the token service (`realm`) that this registry itself
names in a challenge; a registry spoken to by verified HTTPS cannot name one without TLS. Tokens are kept per set of
scopes until shortly before they expire, in memory, for one repository and one user.

Sources: distribution `docs/spec/auth/token.md`, `docs/spec/auth/oauth.md`.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from dray.base.errors import DrayError, InvalidParameter, Unauthorized, Unavailable
from dray.registry.answers import ERROR_LIMIT, parse_errors, status_line
from dray.registry.challenges import Challenge
from dray.registry.model import Credentials
from dray.registry.settings import Endpoint
from dray.registry.transport import Response, Transport, same_host

TOKEN_LIMIT = 1 << 20  # bytes of a token service's answer
CLIENT_ID = "docker"  # token services know this one
_SHORTEST = 60.0  # seconds a token is good for, at least (token.md: for clients' sake)
_MARGIN = 10.0  # seconds before its end at which a token is asked for anew

Scopes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token; `until` is on the monotonic clock."""

    value: str
    until: float
    refresh: str = ""


def basic(username: str, password: str) -> str:
    """Return the value of `Authorization` for a name and a password."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


class Authorizer:
    """Finds the `Authorization` header for requests to one endpoint. Thread-safe."""

    def __init__(
        self,
        endpoint: Endpoint,
        auth: Credentials,
        transport: Transport,
        *,
        offline: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._auth = auth
        self._transport = transport
        self._offline = offline  # ask for a refresh token as well (login)
        self._clock = clock
        self._lock = threading.Lock()
        self._basic = False
        self._bearer: Challenge | None = None
        self._tokens: dict[Scopes, Token] = {}
        self.refresh_token = ""  # what the token service gave, for login

    def header(self, scopes: Scopes) -> str:
        """Return the header's value for a request; "" while nothing was demanded."""
        if self._auth.registry_token:
            return f"Bearer {self._auth.registry_token}"
        if self._bearer is not None:
            with self._lock:
                return f"Bearer {self._token(self._bearer, scopes).value}"
        if self._basic:
            return basic(self._auth.username, self._auth.password)
        return ""

    def answer(self, challenges: Sequence[Challenge], scopes: Scopes, *, refused: str) -> bool:
        """Prepare for another try after a 401; False if the same would be sent again. `refused`: the header sent.

        Unauthorized if the registry wants credentials and there are none.
        """
        if self._auth.registry_token:
            return False
        for challenge in challenges:
            if challenge.scheme == "bearer":
                return self._answer_bearer(challenge, scopes, refused)
            if challenge.scheme == "basic":
                if not self._auth.username:
                    raise Unauthorized("no basic auth credentials")
                self._basic = True
                return not refused
        return False

    def _answer_bearer(self, challenge: Challenge, scopes: Scopes, refused: str) -> bool:
        with self._lock:
            known = self._tokens.get(scopes)
            if known is not None and refused == f"Bearer {known.value}":
                if self._clock() < known.until - _SHORTEST + _MARGIN and not _expired(challenge):
                    return False  # fresh, and still refused: it lacks the right
                del self._tokens[scopes]
            before = refused.removeprefix("Bearer ")
            self._bearer = challenge
            return self._token(challenge, scopes).value != before

    def _token(self, challenge: Challenge, scopes: Scopes) -> Token:
        token = self._tokens.get(scopes)
        if token is None or token.until - _MARGIN < self._clock():
            token = self._tokens[scopes] = self._fetch(challenge, scopes)
            self.refresh_token = token.refresh or self.refresh_token
        return token

    def _fetch(self, challenge: Challenge, scopes: Scopes) -> Token:
        realm = self._realm(challenge)
        service = challenge.parameters.get("service", "")
        if self._auth.identity_token:
            response = self._post(realm, service, scopes)
        else:
            response = self._get(realm, service, scopes)
        if response.status >= 400:
            raise _token_refusal(response, realm)
        body = response.body(TOKEN_LIMIT, "a token")
        return self._read(body, realm)

    def _realm(self, challenge: Challenge) -> str:
        realm = challenge.parameters.get("realm", "")
        try:
            parts = urlsplit(realm)
            parts.port  # noqa: B018 - raises if it is no number
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise InvalidParameter(f"{self._endpoint.url}: its token service {realm[:200]!r} is not a valid URL")
        if parts.scheme == "http" and self._endpoint.verify:
            raise InvalidParameter(
                f"{self._endpoint.url}: its token service {realm[:200]} is refused: it does without TLS, and "
                "credentials would travel in clear"
            )
        return realm

    def _trust(self, realm: str) -> Endpoint:
        """Tell how a token service is reached: as its registry if it is the same host, else by its own host's rules."""
        if same_host(realm, self._endpoint.url):
            return self._endpoint
        return Endpoint(realm, verify=not self._transport.settings.is_insecure(urlsplit(realm).netloc))

    def _get(self, realm: str, service: str, scopes: Scopes) -> Response:
        query = [("scope", scope) for scope in scopes]
        if service:
            query.append(("service", service))
        headers = {}
        if self._auth.username:
            query.append(("account", self._auth.username))
            headers["Authorization"] = basic(self._auth.username, self._auth.password)
        if self._offline:
            query += [("offline_token", "true"), ("client_id", CLIENT_ID)]
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}" if query else realm
        return self._transport.send("GET", url, endpoint=self._trust(realm), headers=headers)

    def _post(self, realm: str, service: str, scopes: Scopes) -> Response:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self._auth.identity_token,
            "service": service,
            "client_id": CLIENT_ID,
            "scope": " ".join(scopes),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        return self._transport.send("POST", realm, endpoint=self._trust(realm), headers=headers, body=body)

    def _read(self, body: bytes, realm: str) -> Token:
        try:
            document: Any = json.loads(body)
            value = document.get("token") or document.get("access_token")
            seconds = float(document.get("expires_in") or 0)
            refresh = document.get("refresh_token") or ""
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise InvalidParameter(f"{realm}: unable to decode token response: {error}") from error
        if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable():
            raise InvalidParameter(f"{realm}: authorization server did not include a token in the response")
        if not isinstance(refresh, str):
            refresh = ""
        return Token(value, self._clock() + max(_SHORTEST, min(seconds, 86400.0)), refresh)


def _expired(challenge: Challenge) -> bool:
    return challenge.parameters.get("error") == "invalid_token"


def _token_refusal(response: Response, realm: str) -> DrayError:
    status = response.status
    errors = parse_errors(response.start_of_body(ERROR_LIMIT))
    if status in (400, 401, 403):
        said = errors[0].message if errors else "incorrect username or password"
        return Unauthorized(f"unauthorized: {said}")
    said = f": {errors[0].message}" if errors else ""
    words = f"failed to fetch a token from {realm}: unexpected status {status_line(status)}{said}"
    return Unavailable(words) if status >= 500 or status == 429 else InvalidParameter(words)
