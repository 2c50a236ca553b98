"""Requests to one endpoint on behalf of one user: authorization, and another try where that is harmless."""

from __future__ import annotations

import contextlib
import email.utils
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from dray.base.errors import DrayError, Unauthorized, Unavailable
from dray.base.reference import Reference
from dray.registry.answers import ERROR_LIMIT, go_request, refusal
from dray.registry.challenges import parse_challenges
from dray.registry.model import Credentials, Unreachable
from dray.registry.settings import Endpoint
from dray.registry.tokens import Authorizer, Scopes
from dray.registry.transport import Response, Transport, same_host

T = TypeVar("T")

LONGEST_WAIT = 60.0  # seconds that a registry's Retry-After can make us wait
_FIRST_WAIT = 0.25


class Retry(Unavailable):
    """The registry asks to come again, after `seconds`."""

    def __init__(self, error: DrayError, seconds: float | None) -> None:
        super().__init__(error.message)
        self.seconds = seconds


class Session:
    """One endpoint of one repository (`name` serves for scopes and messages)."""

    def __init__(
        self,
        endpoint: Endpoint,
        name: Reference,
        auth: Credentials,
        transport: Transport,
        *,
        push: bool = False,
        offline: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.name = name
        self.push = push
        self.transport = transport
        self.authorizer = Authorizer(endpoint, auth, transport, offline=offline)
        self.answered = False  # something here speaks HTTP

    @property
    def scope(self) -> str:
        """The right that most requests need."""
        return f"repository:{self.name.path}:{'pull,push' if self.push else 'pull'}"

    def url(self, rest: str) -> str:
        """Return the URL of something below the repository: `manifests/latest`."""
        return f"{self.endpoint.url}/v2/{self.name.path}/{rest}"

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview | None = None,
        scopes: Scopes | None = None,
        patience: float | None = None,
    ) -> Response:
        """Ask, authenticating if that is demanded. The answer may be any but a refusal of credentials that could
        have been given."""
        wanted = scopes if scopes is not None else (self.scope,)
        # To another host (an upload's absolute Location) goes no authorization, and none is fetched for it.
        mine = same_host(url, self.endpoint.url)
        for attempt in range(3):
            sent = {"Accept-Encoding": "identity", **(headers or {})}
            header = ""
            if mine:
                with self._named(method, url):
                    header = self.authorizer.header(wanted)
            if header:
                sent["Authorization"] = header
            response = self.transport.send(
                method, url, endpoint=self.endpoint, headers=sent, body=body, patience=patience
            )
            self.answered = True
            ours = mine and same_host(response.url, self.endpoint.url)
            if response.status != 401 or not ours or attempt == 2:
                return response
            challenges = parse_challenges(response.headers("WWW-Authenticate"))
            try:
                with self._named(method, url):
                    again = self.authorizer.answer(challenges, wanted, refused=header)
            except BaseException:
                response.close()
                raise
            if not again:
                return response
            response.start_of_body(ERROR_LIMIT)
        return response

    @contextlib.contextmanager
    def _named(self, method: str, url: str) -> Iterator[None]:
        """Have a refusal of credentials name the request, as dockerd does for pulls."""
        try:
            yield
        except Unauthorized as error:
            raise Unauthorized(
                error.message if self.push else f"{go_request(method, url)}: {error.message}"
            ) from error

    def expect(self, response: Response, *statuses: int, name: Reference | None = None) -> Response:
        """Return an answer of one of these statuses; raise what any other means. 429 and 5xx raise `Retry`."""
        if response.status in statuses:
            return response
        body = response.start_of_body(ERROR_LIMIT)
        challenges = parse_challenges(response.headers("WWW-Authenticate"))
        error = refusal(
            response.status, body, challenges, name=name or self.name, request=response.request, push=self.push
        )
        if isinstance(error, Unavailable):
            raise Retry(error, retry_after(response.header("Retry-After")))
        raise error

    def retrying(self, operation: Callable[[], T], *, attempts: int | None = None) -> T:
        """Do something that may be done twice, again while the registry is busy or breaks off."""
        if attempts is None:  # a mirror that has trouble is passed over at once
            attempts = 1 if self.endpoint.mirror else self.transport.settings.attempts
        for attempt in range(attempts):
            try:
                return operation()
            except Unreachable:
                raise
            except Unavailable as error:
                if attempt + 1 >= attempts or self.transport.closed.is_set():
                    raise
                asked = error.seconds if isinstance(error, Retry) else None
                backoff = _FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25)  # noqa: S311 - spreads clients
                self.transport.wait(backoff if asked is None else max(asked, backoff))
        raise AssertionError("at least one attempt is made")


def retry_after(value: str, *, now: Callable[[], float] = time.time) -> float | None:
    """Read Retry-After: seconds or a date; None without a usable one, at most LONGEST_WAIT."""
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_WAIT)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return min(max(date.timestamp() - now(), 0.0), LONGEST_WAIT)
