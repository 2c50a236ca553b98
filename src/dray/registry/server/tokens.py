"""Bearer tokens: JSON Web Tokens with scopes (distribution's token authentication).

Our own are signed with HMAC-SHA256 and a key that lies in the storage; an external issuer's are checked with its public
key (RS256, ES256, EdDSA; never an algorithm that the token chooses among others). A token's `access` lists
`{"type": "repository", "name", "actions"}`; it says what its bearer may do, whatever the rules say by now, so it lives
for minutes only.

`/token` gives them: GET with Basic credentials (or none, where a rule lets anonymous clients in), or POST with a
password or refresh token (OAuth2). A refresh token names its user and is good as long as that user has the password it
was given for, at most 90 days.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from dray.base.errors import InvalidParameter
from dray.registry.server.access import DELETE, LIST, PULL, PUSH, Identity, Wish
from dray.registry.server.authentication import Rules, Users, parse_basic
from dray.registry.server.call import Call, reply_json
from dray.registry.server.errors import Refusal

_REFRESH = 90 * 86400.0
_SKEW = 30.0  # seconds that two machines' clocks may differ
_HEADER = {"alg": "HS256", "typ": "JWT"}
_PUBLIC = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA"]
KEY = "token-key"  # in the storage
Claims = dict[str, Any]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def sign(claims: Claims, key: bytes) -> str:
    """Return a token of ours."""
    head = f"{_encode(json.dumps(_HEADER).encode())}.{_encode(json.dumps(claims).encode())}"
    return f"{head}.{_encode(hmac.digest(key, head.encode(), 'sha256'))}"


def verify(token: str, key: bytes, *, issuer: str, audience: str) -> Claims | None:
    """Return the claims of a token of ours, None if it is not one, or not one any more."""
    head, dot, signature = token.rpartition(".")
    try:
        if not dot or not hmac.compare_digest(_decode(signature), hmac.digest(key, head.encode(), "sha256")):
            return None
        header, claims = (json.loads(_decode(part)) for part in head.split("."))
    except ValueError:
        return None
    if header != _HEADER or claims.get("iss") != issuer or claims.get("aud") != audience:
        return None
    return claims if claims.get("nbf", 0) - _SKEW <= time.time() < claims.get("exp", 0) else None


def external(path: str, *, issuer: str, audience: str) -> Callable[[str], Claims | None]:
    """Return a checker of an external issuer's tokens."""
    try:
        import jwt
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise InvalidParameter("--token-key needs PyJWT and cryptography: pip install 'dray[token]'") from None
    pem = Path(path).read_bytes()
    try:
        if b"BEGIN CERTIFICATE" in pem:
            key: Any = x509.load_pem_x509_certificate(pem).public_key()
        else:
            key = serialization.load_pem_public_key(pem)
    except ValueError:
        raise InvalidParameter(f"{path}: not a public key or certificate in PEM") from None

    def check(token: str) -> Claims | None:
        try:
            claims: Claims = jwt.decode(
                token,
                key,
                algorithms=_PUBLIC,
                audience=audience,
                issuer=issuer,
                leeway=_SKEW,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, TypeError, ValueError):
            return None
        return claims

    return check


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who shows a token, and what it grants."""

    user: str
    granted: frozenset[tuple[str, str]] = field(default_factory=frozenset)  # (repository, action)
    catalog: bool = False
    rules: Rules | None = None  # of our own users; an external issuer's catalogue scope shows every name

    def may(self, wish: Wish) -> bool:
        """Look it up among the token's scopes."""
        if not wish.repository:
            return True
        if wish.repository == "*":
            return self.catalog
        if wish.action == LIST:
            return self.catalog and (self.rules is None or self.rules.grants(self.user, wish))
        return bool({(wish.repository, wish.action), (wish.repository, "*")} & self.granted)


def bearer(claims: Claims, rules: Rules | None = None) -> Bearer:
    """Read a token's claims."""
    granted: set[tuple[str, str]] = set()
    catalog = False
    for entry in claims.get("access") or ():
        if not isinstance(entry, dict):
            continue
        name, kind, actions = entry.get("name", ""), entry.get("type"), entry.get("actions") or ()
        if kind == "repository":
            granted.update((name, action) for action in actions)
        catalog = catalog or (kind == "registry" and name == "catalog" and "*" in actions)
    return Bearer(str(claims.get("sub", "")), frozenset(granted), catalog, rules)


class TokenGuard:
    """Demands a token that grants the request; says in the challenge where to get it, and for which scope."""

    def __init__(
        self,
        check: Callable[[str], Claims | None],
        *,
        realm: Callable[[str], str],
        service: str,
        rules: Rules | None = None,
    ) -> None:
        self._check = check
        self._rules = rules
        self._realm = realm
        self._service = service

    async def admit(self, header: str, wishes: tuple[Wish, ...], *, origin: str) -> Identity:
        """Check the token and its scopes."""
        scheme, _, token = header.partition(" ")
        claims = self._check(token.strip()) if scheme.lower() == "bearer" else None
        who = None if claims is None else bearer(claims, self._rules)
        if who is not None and all(who.may(wish) for wish in wishes):
            return who
        raise Refusal(
            "UNAUTHORIZED", headers={"WWW-Authenticate": self._challenge(wishes, origin, refused=who is not None)}
        )

    def _challenge(self, wishes: tuple[Wish, ...], origin: str, *, refused: bool) -> str:
        parts = [f'realm="{self._realm(origin)}"', f'service="{self._service}"']
        scopes = [wish.scope for wish in wishes if wish.scope]
        if scopes:
            head = scopes[0].rpartition(":")[0]
            parts.append(f'scope="{head}:{",".join(scope.rpartition(":")[2] for scope in scopes)}"')
        if refused:
            parts.append('error="insufficient_scope"')
        return "Bearer " + ",".join(parts)


class Issuer:
    """Gives out tokens to the users of an htpasswd file, within the rules."""

    def __init__(
        self, users: Users, rules: Rules, key: bytes, *, issuer: str, service: str, lifetime: float
    ) -> None:
        self._users = users
        self._rules = rules
        self._key = key
        self._issuer = issuer
        self._service = service
        self._lifetime = lifetime

    def check(self, token: str) -> Claims | None:
        """Return the claims of an access token."""
        claims = verify(token, self._key, issuer=self._issuer, audience=self._service)
        return None if claims is None or "refresh" in claims else claims

    async def answer(self, call: Call) -> web.StreamResponse:
        """GET or POST of the token endpoint."""
        if call.request.method == "POST":
            form = parse_qs((await call.body(1 << 16)).decode(errors="replace"))
            fields = {name: values[0] for name, values in form.items()}
            scopes = " ".join(form.get("scope", [])).split()
            user = await self._by_form(fields)
            refresh = fields.get("access_type") == "offline" or fields.get("grant_type") == "refresh_token"
        elif call.request.method == "GET":
            scopes = " ".join(call.request.query.getall("scope", [])).split()
            user = await self._by_header(call.request.headers.get("Authorization", ""))
            refresh = call.query.get("offline_token") == "true"
        else:
            raise Refusal("UNSUPPORTED", headers={"Allow": "GET, POST"})
        token = self._claims(user, self._lifetime) | {"access": [*map(self._grant(user), scopes)]}
        signed = sign(token, self._key)
        document = {"token": signed, "access_token": signed, "expires_in": int(self._lifetime)}
        document["issued_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if refresh and user:
            again = self._claims(user, _REFRESH) | {"refresh": self._users.fingerprint(user)}
            document["refresh_token"] = sign(again, self._key)
        return reply_json(document, {"Cache-Control": "no-store"})

    def _claims(self, user: str, lifetime: float) -> Claims:
        now = time.time()
        return {
            "iss": self._issuer,
            "aud": self._service,
            "sub": user,
            "jti": secrets.token_hex(8),
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now + lifetime),
        }

    async def _by_header(self, header: str) -> str:
        if not header:
            return ""
        given = parse_basic(header)
        if given is None or not await self._users.check(*given):
            raise Refusal("UNAUTHORIZED", message="wrong user or password")
        return given[0]

    async def _by_form(self, fields: dict[str, str]) -> str:
        if fields.get("grant_type") == "password":
            if await self._users.check(fields.get("username", ""), fields.get("password", "")):
                return fields["username"]
        elif fields.get("grant_type") == "refresh_token":
            claims = verify(
                fields.get("refresh_token", ""), self._key, issuer=self._issuer, audience=self._service
            )
            if claims and claims.get("refresh") and claims["refresh"] == self._users.fingerprint(claims["sub"]):
                return str(claims["sub"])
        raise Refusal("UNAUTHORIZED", message="wrong user, password or refresh token")

    def _grant(self, user: str) -> Callable[[str], dict[str, Any]]:
        """Return a function from a scope that was asked for to what of it is granted."""

        def grant(scope: str) -> dict[str, Any]:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if kind == "registry" and name == "catalog":
                allowed = ["*"] if self._rules.grants(user, Wish(PULL, "*")) else []
            else:
                wanted = actions.split(",") if kind == "repository" else []
                wanted = [PULL, PUSH, DELETE] if "*" in wanted else wanted
                allowed = [action for action in wanted if self._rules.grants(user, Wish(action, name))]
            return {"type": kind, "name": name, "actions": allowed}

        return grant


def new_key() -> bytes:
    """Return a fresh signing key."""
    return hashlib.sha256(secrets.token_bytes(64)).hexdigest().encode()
