"""Times as the Engine API writes them: RFC 3339 in UTC with nanoseconds, or Go's zero time for "never"."""

from __future__ import annotations

import calendar
import re
import time

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern

NEVER = "0001-01-01T00:00:00Z"

_RFC3339 = pattern(
    r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(Z|[+-]\d\d:\d\d)?)?", re.ASCII
)
_DURATION = pattern(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_DURATION_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def now() -> int:
    """Return the present as unix nanoseconds."""
    return time.time_ns()


def rfc3339(nanoseconds: int) -> str:
    """Print unix nanoseconds as Go's RFC3339Nano does (trailing zeros of the fraction dropped); 0 is "never"."""
    if nanoseconds == 0:
        return NEVER
    seconds, fraction = divmod(nanoseconds, 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def parse_timestamp(text: str, *, reference: int | None = None) -> int:
    """Read a `since`/`until` value as unix nanoseconds.

    Unix seconds with an optional fraction, RFC 3339 (date alone too), or a Go duration before `reference` (now).
    """
    if re.fullmatch(r"\d+(\.\d{1,9})?", text, re.ASCII):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * 10**9 + int(fraction.ljust(9, "0") or 0)
    if match := _RFC3339.fullmatch(text):
        year, month, day, hour, minute, second = (int(group or 0) for group in match.groups()[:6])
        moment = calendar.timegm((year, month, day, hour, minute, second)) * 10**9
        moment += int((match[7] or "").ljust(9, "0") or 0)
        zone = match[8]
        if zone and zone != "Z":
            offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
            moment -= (offset if zone[0] == "+" else -offset) * 10**9
        return moment
    if (duration := parse_duration(text)) is not None:
        return (reference if reference is not None else now()) - duration
    raise InvalidParameter(f'invalid timestamp "{text}": use unix seconds, RFC 3339 or a duration such as 10m')


def parse_duration(text: str) -> int | None:
    """Read a Go duration (`1h30m`, `500ms`) as nanoseconds, or None if it is not one."""
    pieces = _DURATION.findall(text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        return None
    return int(sum(float(number) * _DURATION_UNITS[unit] for number, unit in pieces))
