"""Registry credentials: from config.json, or from a credential helper (`docker-credential-NAME`).

Helpers speak over standard streams (verbs `get`, `store`, `erase`, `list`); a `Username` of `<token>` marks an
identity token. Entries without a helper are base64 of `user:password` in `auths`.
"""

from __future__ import annotations

import base64
import json

from dray.base.errors import DrayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.config import Config

INDEX_SERVER = "https://index.docker.io/v1/"
_TOKEN = "<token>"  # noqa: S105 - what helpers say instead of a user name
_NOT_FOUND = "credentials not found in native keychain"


def hostname(server: str) -> str:
    """Return a registry's host of an address or a key of `auths`."""
    return server.partition("://")[2].partition("/")[0] if "://" in server else server.partition("/")[0]


def auth_key(domain: str) -> str:
    """Return the key under which a registry's credentials are kept."""
    return INDEX_SERVER if domain in ("docker.io", "index.docker.io", "registry-1.docker.io") else domain


class HelperError(DrayError):
    """A credential helper is missing or failed."""


def _helper(name: str, verb: str, data: str) -> str:
    import subprocess

    program = f"docker-credential-{name}"
    try:
        done = subprocess.run([program, verb], input=data.encode(), capture_output=True, check=False)
    except OSError as error:
        raise HelperError(
            f'error getting credentials - err: exec: "{program}": executable file not found in $PATH, out: ``'
        ) from error
    out = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode:
        if _NOT_FOUND in out:
            raise KeyError(data)
        raise HelperError(f"error getting credentials - err: exit status {done.returncode}, out: `{out}`")
    return out


class Credentials:
    """The user's registry credentials, wherever each is kept."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def helper_for(self, server: str) -> str:
        """Return the helper that keeps a registry's credentials; empty for the file."""
        helpers = self._config.mapping("credHelpers")
        return str(helpers.get(server) or helpers.get(hostname(server)) or self._config.text("credsStore"))

    def get(self, server: str) -> dict[str, str]:
        """Return `{username, password, identitytoken, serveraddress}` as far as known; empty without any."""
        helper = self.helper_for(server)
        if helper:
            try:
                found = json.loads(_helper(helper, "get", server))
            except KeyError:
                return {}
            if found.get("Username") == _TOKEN:
                return {"identitytoken": found.get("Secret", ""), "serveraddress": server}
            return {
                "username": found.get("Username", ""),
                "password": found.get("Secret", ""),
                "serveraddress": server,
            }
        auths = self._config.mapping("auths")
        entry = auths.get(server)
        if entry is None:
            entry = next((value for key, value in auths.items() if hostname(key) == hostname(server)), None)
        return self._read(server, entry) if isinstance(entry, dict) else {}

    @staticmethod
    def _read(server: str, entry: dict[str, Any]) -> dict[str, str]:
        found = {
            key: str(entry[key])
            for key in ("username", "password", "identitytoken", "registrytoken")
            if entry.get(key)
        }
        if entry.get("auth"):
            try:
                user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
            except ValueError:
                raise HelperError(
                    f"invalid auth configuration file: the entry for {server} is not base64"
                ) from None
            if not colon or not user:
                raise HelperError("invalid auth configuration file")
            found |= {"username": user, "password": password.strip("\0")}
        return {**found, "serveraddress": server} if found else {}

    def store(self, auth: dict[str, str]) -> str:
        """Keep credentials; returns the helper that took them, empty for the file."""
        server = auth["serveraddress"]
        helper = self.helper_for(server)
        if helper:
            token = auth.get("identitytoken")
            secret = {
                "ServerURL": server,
                "Username": _TOKEN if token else auth.get("username", ""),
                "Secret": token or auth.get("password", ""),
            }
            _helper(helper, "store", json.dumps(secret))
            entry: dict[str, str] = {}
        else:
            pair = f"{auth.get('username', '')}:{'' if auth.get('identitytoken') else auth.get('password', '')}"
            entry = {"auth": base64.b64encode(pair.encode()).decode()}
            if auth.get("identitytoken"):
                entry["identitytoken"] = auth["identitytoken"]
        self._config.data.setdefault("auths", {})[server] = entry
        self._config.save()
        return helper

    def erase(self, server: str) -> bool:
        """Forget a registry's credentials; returns whether there were any."""
        auths = self._config.mapping("auths")
        host = hostname(server)
        keys = {server, host, f"https://{host}", f"http://{host}"} & set(auths)
        helper = self.helper_for(server)
        if helper:
            try:
                _helper(helper, "erase", server)
            except KeyError:
                pass
        for key in keys:
            del auths[key]
        if keys:
            self._config.save()
        return bool(keys)

    def all(self) -> dict[str, dict[str, str]]:
        """Return every registry's credentials, by key (a build may need any of them)."""
        found = {}
        names = set(self._config.mapping("auths")) | set(self._config.mapping("credHelpers"))
        store = self._config.text("credsStore")
        if store:
            names |= set(json.loads(_helper(store, "list", "unused") or "{}"))
        for name in names:
            if auth := self.get(name):
                found[name] = auth
        return found


def header_for(config: Config, reference: str) -> str | None:
    """Return the auth header's value for an image's registry; None without credentials."""
    from dray.base.reference import parse
    from dray.client.images import encode_auth

    auth = Credentials(config).get(auth_key(parse(reference).domain))
    return encode_auth(auth) if auth else None
