"""Content digests as OCI writes them: `sha256:<64 hex digits>` (image-spec, descriptor.md)."""

from __future__ import annotations

import hashlib
import re
import secrets

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern

_LENGTHS = {"sha256": 64, "sha512": 128}
_DIGEST = pattern(r"(sha256|sha512):([0-9a-f]+)", re.ASCII)


def is_digest(text: str) -> bool:
    """Tell whether `text` is a well-formed digest of an algorithm we can check."""
    match = _DIGEST.fullmatch(text)
    return match is not None and len(match[2]) == _LENGTHS[match[1]]


def parse(text: str) -> tuple[str, str]:
    """Split a digest into (algorithm, hex digits); InvalidParameter if it is not one."""
    if not is_digest(text):
        raise InvalidParameter(f"invalid checksum digest format: {text}")
    algorithm, _, digits = text.partition(":")
    return algorithm, digits


def of(data: bytes) -> str:
    """Return the sha256 digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def hasher(digest: str) -> hashlib._Hash:
    """Return a fresh hash object of the digest's algorithm."""
    return hashlib.new(parse(digest)[0])


def new_id() -> str:
    """Return a random 64-digit object id that does not read as a number.

    A short id made of digits alone could be taken for a count or a pid by scripts (moby `stringid`).
    """
    while True:
        candidate = secrets.token_hex(32)
        if not candidate[:12].isdigit():
            return candidate
