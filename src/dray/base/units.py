"""Sizes and durations as Docker reads and prints them (docker/go-units)."""

from __future__ import annotations

import re

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern

_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = pattern(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp])?(?:i?b)?", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str) -> int:
    """Read a size such as `20m`, `1.5g` or `4096` (powers of 1024)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidParameter(f"invalid size: '{text}'")
    return int(float(match[1]) * _BINARY[(match[2] or "").lower()])


def _scaled(size: float, base: float, units: tuple[str, ...], digits: int) -> str:
    index = 0
    while size >= base and index < len(units) - 1:
        size /= base
        index += 1
    return f"{size:.{digits}g}{units[index]}"


def human_size(size: float, digits: int = 3) -> str:
    """Print a size in powers of 1000 with `digits` significant digits: `4.26MB` (units.HumanSizeWithPrecision)."""
    return _scaled(size, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"), digits)


def bytes_size(size: float) -> str:
    """Print a size in powers of 1024 with four significant digits: `1.944GiB` (units.BytesSize)."""
    return _scaled(size, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"), 4)


def human_duration(seconds: float) -> str:
    """Print a duration in words, as the STATUS column does (units.HumanDuration)."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"
