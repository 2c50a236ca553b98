"""Platforms of images: what this host runs, and which of several manifests suits it best.

Names and rules are those of containerd's `platforms`: `os[/architecture[/variant]]`, aliases such as x86_64 and
aarch64, arm64 without a variant is v8, arm without one is v7. An arm64 host also runs 32-bit arm, an amd64 host
386, and a host of a variant runs every lower variant of its architecture.
"""

from __future__ import annotations

import functools
import os
import re

import msgspec

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern

_ALIASES = {
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "i386": ("386", None),
    "i686": ("386", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "ppc64el": ("ppc64le", None),
}
_OS_ALIASES = {"macos": "darwin"}
_WORD = pattern(r"[A-Za-z0-9_.-]+", re.ASCII)


class Platform(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """The `platform` of a descriptor (image-spec image-index.md)."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def normalized(self) -> Platform:
        """The platform by its usual names, with the variant spelled out only where it is not the usual one."""
        architecture, variant = _ALIASES.get(self.architecture.lower(), (self.architecture.lower(), None))
        variant = (self.variant or variant or "").lower()
        if architecture == "arm":
            variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
        elif (architecture, variant) in (("arm64", "8"), ("arm64", "v8"), ("amd64", "v1")):
            variant = ""
        system = _OS_ALIASES.get(self.os.lower(), self.os.lower())
        return Platform(architecture=architecture, os=system, variant=variant or None)


def parse(text: str) -> Platform:
    """Read `os/architecture/variant`, `os/architecture`, an architecture, or an os alone (this host's architecture)."""
    parts = text.split("/")
    if not 1 <= len(parts) <= 3 or not all(_WORD.fullmatch(part) for part in parts):
        raise InvalidParameter(f'"{text}": invalid platform: expected os[/architecture[/variant]]')
    if len(parts) > 1:
        variant = parts[2] if len(parts) == 3 else None
        return Platform(os=parts[0], architecture=parts[1], variant=variant).normalized
    if parts[0].lower() in ("linux", "windows", "darwin", "macos", "freebsd"):
        return Platform(os=parts[0], architecture=host().architecture).normalized
    if parts[0].lower() in _ALIASES or parts[0].lower() in _KNOWN:
        return Platform(os="linux", architecture=parts[0]).normalized
    raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')


_KNOWN = frozenset(
    {"amd64", "386", "arm64", "arm", "ppc64le", "s390x", "riscv64", "mips64le", "mips64", "loong64", "wasm"}
)


@functools.cache
def host() -> Platform:
    """Return the platform of this machine."""
    return Platform(os="linux", architecture=os.uname().machine).normalized


def _variant_number(variant: str | None, default: int) -> int:
    text = (variant or "").removeprefix("v")
    return int(text) if text.isdigit() else default


def rank(candidate: Platform, wanted: Platform) -> int | None:
    """Tell how well `candidate` serves `wanted`: 0 is exact, larger is worse, None is not at all."""
    have, want = candidate.normalized, wanted.normalized
    if have.os != want.os:
        return None
    if have.architecture == want.architecture:
        default = {"arm": 7, "arm64": 8}.get(want.architecture, 1)
        distance = _variant_number(want.variant, default) - _variant_number(have.variant, default)
        return distance if distance >= 0 else None
    if want.architecture == "arm64" and have.architecture == "arm":
        return 100 + 8 - _variant_number(have.variant, 7)
    if want.architecture == "amd64" and have.architecture == "386":
        return 100
    return None
