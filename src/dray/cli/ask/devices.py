"""Devices: given to a container, limited in rate, allowed by rule, and GPUs."""

from __future__ import annotations

import re

from dray.base.errors import InvalidParameter
from dray.base.units import parse_bytes
from dray.cli.flags import parse_csv, parse_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RULE = re.compile(r"[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}", re.ASCII)
_CDI = re.compile(r"[A-Za-z][\w.-]*/[A-Za-z][\w-]*=[A-Za-z0-9][\w.:-]*", re.ASCII)


def _is_mode(text: str) -> bool:
    return bool(text) and len(set(text)) == len(text) and set(text) <= set("rwm")


def is_cdi(text: str) -> bool:
    """Whether a device is named in the Container Device Interface's way (`vendor/class=name`)."""
    return _CDI.fullmatch(text) is not None


def check_device(text: str) -> str:
    """Check `host[:container][:mode]`."""
    if is_cdi(text):
        return text
    parts = text.split(":")
    if not text or len(parts) > 3:
        raise InvalidParameter(f"bad format for path: {text}")
    mode = parts[-1] if len(parts) == 3 else ""
    path = parts[-1] if len(parts) == 2 and not _is_mode(parts[-1]) else parts[1] if len(parts) == 3 else parts[0]
    if len(parts) == 3 and not _is_mode(mode):
        raise InvalidParameter(f"bad mode specified: {mode}")
    if not path.startswith("/"):
        raise InvalidParameter(f"{path} is not an absolute path")
    return text


def parse_device(text: str) -> dict[str, Any]:
    """Return a device as the API has it."""
    source, *rest = text.split(":")
    target, mode = source, "rwm"
    if len(rest) == 2:
        target, mode = rest
    elif len(rest) == 1:
        if _is_mode(rest[0]):
            mode = rest[0]
        else:
            target = rest[0]
    return {"PathOnHost": source, "PathInContainer": target or source, "CgroupPermissions": mode}


def check_rule(text: str) -> str:
    """Check a rule of the devices cgroup (`c 1:3 rwm`)."""
    if _RULE.fullmatch(text) is None:
        raise InvalidParameter(f"invalid device cgroup format '{text}'")
    return text


def _split(text: str) -> tuple[str, str]:
    path, colon, rest = text.rpartition(":")
    if not colon or not rest or ":" in path:
        raise InvalidParameter(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise InvalidParameter(f"bad format for device path: {text}")
    return path, rest


def parse_weight(text: str) -> dict[str, Any]:
    """Read `device:weight`."""
    path, rest = _split(text)
    try:
        weight = parse_int(rest, 16, signed=False)
    except InvalidParameter:
        weight = -1
    if weight != 0 and not 10 <= weight <= 1000:
        raise InvalidParameter(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": weight}


def parse_bps(text: str) -> dict[str, Any]:
    """Read `device:bytes-per-second`."""
    path, rest = _split(text)
    try:
        return {"Path": path, "Rate": parse_bytes(rest)}
    except InvalidParameter:
        raise InvalidParameter(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. "
            "Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        ) from None


def parse_iops(text: str) -> dict[str, Any]:
    """Read `device:operations-per-second`."""
    path, rest = _split(text)
    try:
        return {"Path": path, "Rate": parse_int(rest, signed=False)}
    except InvalidParameter:
        raise InvalidParameter(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. Number must be a positive integer"
        ) from None


def parse_gpus(text: str) -> dict[str, Any]:
    """Read a GPU request, comma-separated fields."""
    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [], "Options": {}}
    capabilities = ["gpu"]
    seen: set[str] = set()
    for field in parse_csv(text):
        key, equals, value = field.partition("=")
        if key in seen:
            raise InvalidParameter(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if not equals:
            seen.add("count")
            key, value = "count", field
        if key == "driver":
            request["Driver"] = value
        elif key == "count":
            try:
                request["Count"] = -1 if value == "all" else int(value)
            except ValueError:
                raise InvalidParameter(
                    f'invalid count ({value}): value must be either "all" or an integer: invalid syntax'
                ) from None
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            capabilities = [*value.split(","), "gpu"]
        elif key == "options":
            request["Options"] = dict(one.partition("=")[::2] for one in parse_csv(value))
        else:
            raise InvalidParameter(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and request["DeviceIDs"] is None:
        request["Count"] = 1
    request["Capabilities"] = [capabilities]
    return request
