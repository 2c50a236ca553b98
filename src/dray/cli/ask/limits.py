"""Resource limits by process (ulimits), restart policies, logging and security options, health checks."""

from __future__ import annotations

import json

from dray.base.errors import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.flags import Values

ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)


def parse_ulimit(text: str) -> dict[str, Any]:
    """Read `name=soft[:hard]`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidParameter(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise InvalidParameter(f"invalid ulimit type: {name}")
    if not value:
        raise InvalidParameter(f"invalid ulimit argument: {text}")
    parts = value.split(":")
    if len(parts) > 2:
        raise InvalidParameter(f"too many limit value arguments - {value}, can only have up to two, `soft[:hard]`")
    numbers = []
    for part in parts:
        try:
            numbers.append(int(part))
        except ValueError:
            raise InvalidParameter(f'strconv.ParseInt: parsing "{part}": invalid syntax') from None
    soft, hard = numbers[0], numbers[-1]
    if hard != -1:
        if soft == -1:
            raise InvalidParameter(
                "ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), "
                + f"hard: {hard}"
            )
        if soft > hard:
            raise InvalidParameter(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return {"Name": name, "Hard": hard, "Soft": soft}


def normalize_capabilities(add: list[str], drop: list[str]) -> tuple[list[str], list[str]]:
    """Return both lists in the kernel's names (`ALL` but for itself), sorted, without what is both given and taken."""

    def names(given: list[str]) -> set[str]:
        upper = {one.strip().upper() for one in given}
        return {one if one == "ALL" or one.startswith("CAP_") else f"CAP_{one}" for one in upper}

    added, dropped = names(add), names(drop)
    if "ALL" in added:
        added = {"ALL"}
    if "ALL" in dropped:
        dropped = {"ALL"}
    return sorted(added), sorted(dropped - added)


def parse_restart(text: str) -> dict[str, Any]:
    """Read a restart policy, `on-failure:3` or a bare name."""
    if not text:
        return {"Name": "", "MaximumRetryCount": 0}
    name, colon, count = text.partition(":")
    if not colon:
        return {"Name": name, "MaximumRetryCount": 0}
    if not name:
        raise InvalidParameter("invalid restart policy format: no policy provided before colon")
    if not count:
        return {"Name": name, "MaximumRetryCount": 0}
    try:
        return {"Name": name, "MaximumRetryCount": int(count)}
    except ValueError:
        raise InvalidParameter("invalid restart policy format: maximum retry count must be an integer") from None


def parse_log_options(driver: str, options: list[str]) -> dict[str, str]:
    """Return logging options as a mapping; the `none` driver has none."""
    if driver == "none" and options:
        raise InvalidParameter("invalid logging opts for driver none")
    return dict(option.partition("=")[::2] for option in options)


def parse_storage_options(options: list[str]) -> dict[str, str]:
    """Return storage options as a mapping."""
    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise InvalidParameter("invalid storage option")
        found[key] = value
    return found


def parse_security_options(options: list[str]) -> tuple[list[str], bool]:
    """Return the options, a seccomp profile read in, and whether the system paths are unconfined."""
    found, unconfined = [], False
    for option in options:
        if option == "systempaths=unconfined":
            unconfined = True
            continue
        key, equals, value = option.partition("=")
        if not equals and key != "no-new-privileges":
            key, equals, value = option.partition(":")
            if not equals:
                raise InvalidParameter(f'Invalid --security-opt: "{option}"')
        if key == "seccomp" and value not in ("unconfined", "builtin"):
            found.append(f"seccomp={_profile(value)}")
            continue
        found.append(option)
    return found, unconfined


def _profile(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return json.dumps(json.load(file), separators=(",", ":"), ensure_ascii=False)
    except OSError as error:
        raise InvalidParameter(
            f"opening seccomp profile ({path}) failed: open {path}: {(error.strerror or '').lower()}"
        ) from error
    except ValueError as error:
        raise InvalidParameter(f"compacting json for seccomp profile ({path}) failed: {error}") from error


_HEALTH = ("health-interval", "health-timeout", "health-start-period", "health-start-interval")


def parse_health(values: Values) -> dict[str, Any] | None:
    """Return the health check that the flags make; None when they make none."""
    some = any(values[name] for name in (*_HEALTH, "health-cmd", "health-retries"))
    if values["no-healthcheck"]:
        if some:
            raise InvalidParameter("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not some:
        return None
    for name in _HEALTH:
        if values[name] < 0:
            raise InvalidParameter(f"--{name} cannot be negative")
    if values["health-retries"] < 0:
        raise InvalidParameter("--health-retries cannot be negative")
    health: dict[str, Any] = {}
    if values["health-cmd"]:
        health["Test"] = ["CMD-SHELL", values["health-cmd"]]
    for key, name in (
        ("Interval", "health-interval"),
        ("Timeout", "health-timeout"),
        ("StartPeriod", "health-start-period"),
        ("StartInterval", "health-start-interval"),
        ("Retries", "health-retries"),
    ):
        if values[name]:
            health[key] = values[name]
    return health
