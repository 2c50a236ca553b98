"""API versions: `1.NN`, compared part by part as numbers (1.9 is older than 1.10)."""

from __future__ import annotations

import re

from dray.api.models import API_VERSION
from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern

Version = tuple[int, int]

MINIMUM: Version = (1, 24)
NEWEST: Version = (int(API_VERSION.split(".")[0]), int(API_VERSION.split(".")[1]))

# Below this, errors are plain text: clients of that age do not read JSON errors.
JSON_ERRORS: Version = (1, 24)

_FORM = pattern(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.[0-9]{1,4})?", re.ASCII)


def parse(text: str) -> Version:
    """Read a version; InvalidParameter if it is not one."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"invalid API version: {text!r}")
    return int(match[1]), int(match[2])


def text(version: Version) -> str:
    """Write a version as clients do."""
    return f"{version[0]}.{version[1]}"


def check(version: Version) -> None:
    """Refuse what we do not speak, in Docker's words."""
    if version > NEWEST:
        raise InvalidParameter(
            f"client version {text(version)} is too new. Maximum supported API version is {text(NEWEST)}"
        )
    if version < MINIMUM:
        raise InvalidParameter(
            f"client version {text(version)} is too old. Minimum supported API version is {text(MINIMUM)}, "
            "please upgrade your client to a newer version"
        )
