"""Users, and what they may do: htpasswd files, rules, Basic authentication.

An htpasswd file has lines `user:hash` with bcrypt hashes (`htpasswd -B`). Checking a password costs the same whether
or not the user exists; at most two are checked at a time, and only so many wait: who guesses passwords gets 429, not
the machine. A password that was right is remembered for five minutes, under a key of this process.

The access file (TOML, or JSON of the same shape) has rules; what no rule grants is refused. Without a file every user
may do everything.

    [[rule]]
    users = ["alice", "bob"]          # "*": every user; "@anonymous": also who shows no credentials
    repositories = ["team/*"]         # "*" stands for anything, also for "/"
    actions = ["pull", "push"]        # pull, push, delete; "*" for all. The catalogue lists what may be pulled
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import fnmatch
import hashlib
import hmac
import json
import os
import secrets
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dray.base.errors import InvalidParameter
from dray.registry.server.access import DELETE, LIST, PULL, PUSH, Identity, Wish
from dray.registry.server.errors import Refusal

ANONYMOUS = "@anonymous"
_REMEMBER = 300.0  # seconds
_AT_ONCE = 2
_WAITING = 16
_PREFIXES = (b"$2y$", b"$2b$", b"$2a$")
_LONGEST = 72  # bytes of a password that bcrypt looks at


@dataclass(frozen=True, slots=True)
class Rule:
    """Grants actions on repositories to users."""

    users: tuple[str, ...]
    repositories: tuple[str, ...]
    actions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules; `None` rules: every user (nobody without credentials) may do everything."""

    rules: tuple[Rule, ...] | None = None

    def grants(self, user: str, wish: Wish) -> bool:
        """Tell whether a user ("" none) is granted a wish. The catalogue and the base path are open to whoever may
        come at all."""
        if self.rules is None:
            return bool(user)
        names = {user, "*", ANONYMOUS} if user else {ANONYMOUS}
        mine = [rule for rule in self.rules if names & set(rule.users)]
        if wish.repository in ("", "*"):
            return bool(user) or bool(mine)
        action = PULL if wish.action == LIST else wish.action
        return any(
            action in rule.actions
            and any(fnmatch.fnmatchcase(wish.repository, pattern) for pattern in rule.repositories)
            for rule in mine
        )


def _strings(rule: dict[str, Any], key: str, path: str) -> tuple[str, ...]:
    value = rule.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise InvalidParameter(f'{path}: every rule needs "{key}", a list of strings')
    return tuple(value)


def read_rules(path: str) -> Rules:
    """Read an access file; InvalidParameter says what is wrong with it."""
    text = Path(path).read_text()
    try:
        document = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except ValueError as error:
        raise InvalidParameter(f"{path}: {error}") from None
    if (
        not isinstance(document, dict)
        or set(document) - {"rule"}
        or not isinstance(document.get("rule", []), list)
    ):
        raise InvalidParameter(f"{path}: it has [[rule]] entries and nothing else")
    rules = []
    for rule in document.get("rule", []):
        if not isinstance(rule, dict) or (unknown := set(rule) - {"users", "repositories", "actions"}):
            raise InvalidParameter(f"{path}: a rule has users, repositories and actions, not {sorted(unknown)}")
        actions = set(_strings(rule, "actions", path))
        if "*" in actions:
            actions = {PULL, PUSH, DELETE}
        if wrong := actions - {PULL, PUSH, DELETE}:
            raise InvalidParameter(f"{path}: unknown action {sorted(wrong)[0]!r} (pull, push, delete or *)")
        rules.append(Rule(_strings(rule, "users", path), _strings(rule, "repositories", path), frozenset(actions)))
    return Rules(tuple(rules))


def read_htpasswd(path: str) -> dict[str, bytes]:
    """Read users and hashes; InvalidParameter names the line that is wrong."""
    users = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        user, colon, hashed = line.strip().partition(b":")
        if not colon or not user or not hashed.startswith(_PREFIXES):
            raise InvalidParameter(
                f"{path}, line {number}: not a user with a bcrypt hash (make it with: htpasswd -B)"
            )
        users[user.decode(errors="surrogateescape")] = hashed
    return users


class Users:
    """The users of an htpasswd file, and their passwords."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._read = (0, 0)
        self._users: dict[str, bytes] = {}
        self._key = secrets.token_bytes(32)
        self._good: dict[bytes, float] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="bcrypt")
        self._waiting = 0
        self._refresh()
        self._nobody = next(iter(self._users.values()), b"$2b$05$" + b"." * 53)

    def _refresh(self) -> None:
        status = os.stat(self._path)
        if self._read != (stamp := (status.st_mtime_ns, status.st_ino)):
            self._users, self._read = read_htpasswd(self._path), stamp
            self._good.clear()

    def fingerprint(self, user: str) -> str | None:
        """Return something that changes with the user's password, None if there is no such user."""
        with contextlib.suppress(OSError, InvalidParameter):
            self._refresh()  # a file half-way changed: the users of before
        hashed = self._users.get(user)
        return None if hashed is None else hashlib.sha256(hashed).hexdigest()[:16]

    async def check(self, user: str, password: str) -> bool:
        """Tell whether a password is the user's. TOOMANYREQUESTS if too many passwords wait to be checked."""
        known = self.fingerprint(user) is not None
        hashed = self._users[user] if known else self._nobody
        secret = password.encode(errors="surrogateescape")
        mark = hmac.digest(
            self._key, b"\0".join((user.encode(errors="surrogateescape"), hashed, secret)), "sha256"
        )
        if self._good.get(mark, 0.0) > time.monotonic():
            return True
        if self._waiting >= _WAITING:
            raise Refusal("TOOMANYREQUESTS", message="too many passwords to check", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(self._threads, _matches, secret, hashed)
        finally:
            self._waiting -= 1
        if not right or not known:
            return False
        now = time.monotonic()
        self._good = {one: until for one, until in self._good.items() if until > now}
        self._good[mark] = now + _REMEMBER
        return True

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _matches(secret: bytes, hashed: bytes) -> bool:
    import bcrypt

    try:
        return bcrypt.checkpw(secret[:_LONGEST], hashed)
    except ValueError:  # a damaged hash
        return False


def parse_basic(header: str) -> tuple[str, str] | None:
    """Return (user, password) of an Authorization header, None if it is not a Basic one."""
    scheme, _, rest = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(rest.strip(), validate=True).decode(errors="surrogateescape")
    except (binascii.Error, ValueError):
        return None
    user, colon, password = text.partition(":")
    return (user, password) if colon and user else None


@dataclass(frozen=True, slots=True)
class Person:
    """A user, with the rules that hold for them."""

    user: str
    rules: Rules = field(default_factory=Rules)

    def may(self, wish: Wish) -> bool:
        """Ask the rules."""
        return self.rules.grants(self.user, wish)


class BasicGuard:
    """Demands a user and a password with every request."""

    def __init__(self, users: Users, rules: Rules, *, realm: str = "dray-registry") -> None:
        self._users = users
        self._rules = rules
        self._challenge = {"WWW-Authenticate": f'Basic realm="{realm}"'}

    async def admit(self, header: str, wishes: tuple[Wish, ...], *, origin: str) -> Identity:
        """Check the password, then the rules."""
        user = ""
        if header:
            given = parse_basic(header)
            if given is None or not await self._users.check(*given):
                raise Refusal("UNAUTHORIZED", headers=self._challenge)
            user = given[0]
        person = Person(user, self._rules)
        if all(person.may(wish) for wish in wishes) and (user or wishes[0].repository):
            return person
        if not user:
            raise Refusal("UNAUTHORIZED", headers=self._challenge)
        raise Refusal("DENIED", [{"action": wish.action, "repository": wish.repository} for wish in wishes])
