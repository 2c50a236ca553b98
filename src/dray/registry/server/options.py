"""The options of `dray registry serve` and `dray registry gc`: names, defaults, checks. Data that needs no server.

Both the command line of `dray` and the server's own (`python -m dray.registry.server`) are made from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dray.base.errors import InvalidParameter

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]*):(\d+)", re.ASCII)
DEFAULT_ADDRESS = "127.0.0.1:5000"
DEFAULT_ROOT = "/var/lib/dray-registry"


def parse_seconds(text: str) -> float:
    """Read a duration such as `30s`, `1h30m` or `7d`; `0` is none. Returns seconds."""
    parts = re.fullmatch(r"(?:\d+(?:\.\d+)?[smhd])+", text, re.ASCII)
    if text == "0":
        return 0.0
    if parts is None:
        raise InvalidParameter(f'invalid duration "{text}" (write 30s, 15m, 12h or 7d)')
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", text))


def parse_address(text: str) -> tuple[str, int]:
    """Read `host:port`; without a host it is every address."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise InvalidParameter(f'invalid address "{text}" (write host:port, such as {DEFAULT_ADDRESS})')
    return match[1].strip("[]"), int(match[2])


def _check(kind: str, text: str) -> None:
    if kind == "address":
        parse_address(text)
    elif kind == "duration":
        parse_seconds(text)
    elif kind == "url" and not re.match(r"https?://[^/]+$", text):
        raise InvalidParameter(f'invalid address "{text}" (write https://host or https://host:port)')
    elif kind == "auth" and text not in ("none", "htpasswd", "token"):
        raise InvalidParameter(f'unknown kind of authentication "{text}" (none, htpasswd or token)')


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `kind`: bool, string, list, address (repeatable), duration, url or auth. `gc`: also of `gc`."""

    name: str
    kind: str
    help: str
    default: str = ""
    gc: bool = False

    def check(self, text: str) -> str:
        """Return the text if it is a value of this option; InvalidParameter otherwise."""
        _check(self.kind, text)
        return text


OPTIONS = (
    Option("listen", "address", "Listen here (host:port); may be given several times", DEFAULT_ADDRESS),
    Option("root", "string", "Folder of the blobs and names", DEFAULT_ROOT, gc=True),
    Option("s3-bucket", "string", "Keep blobs and names in this bucket instead (needs dray[s3])", gc=True),
    Option("s3-prefix", "string", "Begin the bucket's keys with this", gc=True),
    Option("s3-endpoint", "string", "Address of an S3-compatible store that is not Amazon's", gc=True),
    Option("s3-region", "string", "Region of the bucket", gc=True),
    Option("s3-redirect", "bool", "Send clients to the bucket for blobs, by presigned addresses"),
    Option("tls-cert", "string", "Serve HTTPS with this certificate (PEM, with its chain)"),
    Option("tls-key", "string", "The certificate's key"),
    Option("tls-client-ca", "string", "Demand client certificates that this CA signed"),
    Option("auth", "auth", "Who may come: none (everybody), htpasswd or token", "none"),
    Option("htpasswd", "string", "File of users and bcrypt hashes (htpasswd -B); read again when it changes"),
    Option("access", "string", "File of rules (TOML or JSON): who may pull, push or delete what"),
    Option("token-realm", "string", "Address of an external token service; its tokens are checked by --token-key"),
    Option("token-issuer", "string", "Issuer that tokens must name", "dray"),
    Option("token-service", "string", "Service (audience) that tokens must name", "dray-registry"),
    Option("token-key", "string", "Public key or certificate (PEM) of the external issuer (needs dray[token])"),
    Option("token-lifetime", "duration", "How long our own tokens are good", "5m"),
    Option("read-only", "bool", "Refuse pushes and deletions"),
    Option("proxy", "url", "Be a pull-through cache of this registry"),
    Option("proxy-username", "string", "User at that registry"),
    Option("proxy-password-file", "string", "File with the user's password"),
    Option("proxy-certs", "string", "Folder of certificates by registry, laid out as /etc/docker/certs.d is"),
    Option("gc-interval", "duration", "Collect garbage this often (0: never)", "1h"),
    Option("gc-grace", "duration", "Spare what was pushed or asked for so recently", "1h", gc=True),
    Option("delete-untagged", "bool", "Let garbage collection remove manifests that no tag leads to", gc=True),
    Option("upload-expiry", "duration", "Forget uploads that nobody went on with for so long", "7d", gc=True),
    Option("access-log", "string", "Append the access log to this file instead of standard output"),
)
BY_NAME = {option.name: option for option in OPTIONS}


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked options by name."""

    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def seconds(self, name: str) -> float:
        """Return a duration in seconds."""
        return parse_seconds(self.values[name])

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where to listen."""
        return [parse_address(text) for text in self.values["listen"]]


def check_together(values: Mapping[str, Any]) -> Settings:
    """Check options that belong together; InvalidParameter names the one that is missing or too much."""

    def needs(one: str, *others: str) -> None:
        missing = [other for other in others if not values[other]]
        if values[one] and missing:
            raise InvalidParameter(f"--{one} needs --{missing[0]}")

    for one, other in (
        ("tls-cert", "tls-key"),
        ("tls-key", "tls-cert"),
        ("tls-client-ca", "tls-cert"),
        ("token-realm", "token-key"),
        ("token-key", "token-realm"),
        ("proxy-username", "proxy-password-file"),
        ("proxy-password-file", "proxy-username"),
        ("proxy-username", "proxy"),
        ("proxy-certs", "proxy"),
        ("s3-prefix", "s3-bucket"),
        ("s3-endpoint", "s3-bucket"),
        ("s3-region", "s3-bucket"),
        ("s3-redirect", "s3-bucket"),
    ):
        needs(one, other)
    auth = values["auth"]
    if auth == "htpasswd" or (auth == "token" and not values["token-realm"]):
        if not values["htpasswd"]:
            raise InvalidParameter(
                f"--auth {auth} needs --htpasswd, the file of users (make it with: htpasswd -Bc)"
            )
    elif values["htpasswd"]:
        raise InvalidParameter("--htpasswd needs --auth htpasswd or --auth token (with our own token endpoint)")
    if values["token-realm"] and auth != "token":
        raise InvalidParameter("--token-realm needs --auth token")
    if values["access"] and (auth == "none" or values["token-realm"]):
        raise InvalidParameter("--access needs --auth htpasswd, or --auth token with our own token endpoint")
    return Settings(values)
