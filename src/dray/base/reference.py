"""Image references: `[domain/]path[:tag][@digest]`, and Docker's familiar short forms of them.

Grammar: distribution/reference. `nginx` is familiar for `docker.io/library/nginx:latest`.
"""

from __future__ import annotations

import re

from msgspec import Struct

from dray.base import digest as digests
from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern

DEFAULT_DOMAIN = "docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = pattern(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII)
_PATH = pattern(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = pattern(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)


class Reference(Struct, frozen=True):
    """A normalized reference; `tag` and `digest` are None when the text had none."""

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The canonical name: domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as Docker shows it: no default domain, no `library/`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(OFFICIAL_PREFIX)
        return rest if "/" not in rest else self.path

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def familiar(self) -> str:
        """The reference as Docker shows it."""
        return self.familiar_name + self._suffix()

    @property
    def canonical(self) -> str:
        """The reference in full; the key of the image store."""
        return self.name + self._suffix()

    def tagged(self) -> Reference:
        """Return the reference with the default tag if it names neither tag nor digest."""
        if self.tag or self.digest:
            return self
        return Reference(self.domain, self.path, DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """Return the name with another tag and no digest."""
        if not _TAG.fullmatch(tag):
            raise InvalidParameter(f"invalid tag format: {tag!r}")
        return Reference(self.domain, self.path, tag)


def parse(text: str) -> Reference:
    """Parse a familiar or canonical reference; InvalidParameter in Docker's words if it is malformed."""
    rest, digest = text, None
    if "@" in rest:
        rest, _, digest = rest.partition("@")
        if not digests.is_digest(digest):
            raise InvalidParameter("invalid reference format")
    tag = None
    head, colon, tail = rest.rpartition(":")
    if colon and "/" not in tail:
        rest, tag = head, tail
        if not _TAG.fullmatch(tag):
            raise InvalidParameter("invalid reference format")
    if re.fullmatch(r"[0-9a-f]{64}", rest):
        raise InvalidParameter(f"invalid repository name ({rest}), cannot specify 64-byte hexadecimal strings")
    domain, slash, path = rest.partition("/")
    if not slash or not ("." in domain or ":" in domain or domain == "localhost" or domain.lower() != domain):
        domain, path = DEFAULT_DOMAIN, rest
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_PREFIX + path
    if path.lower() != path:
        raise InvalidParameter(f"invalid reference format: repository name ({path}) must be lowercase")
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path) or len(path) > 255:
        raise InvalidParameter("invalid reference format")
    return Reference(domain, path, tag, digest)
