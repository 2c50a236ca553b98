"""Networks of a new container: `--network` in its short and long form, and the flags that speak of the first one."""

from __future__ import annotations

from dray.base.errors import InvalidParameter
from dray.cli.flags import parse_csv, parse_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.flags import Values


def parse_network(text: str) -> dict[str, Any]:
    """Read a network: a name, or `name=…,alias=…,ip=…`."""
    attachment: dict[str, Any] = {"target": "", "aliases": [], "options": {}, "links": [], "local": []}
    if "=" not in text:
        attachment["target"] = text
        return attachment
    for field in parse_csv(text):
        raw, equals, raw_value = field.partition("=")
        key, value = raw.strip().lower(), raw_value.strip()
        if not equals or not key:
            raise InvalidParameter(f"invalid field {field}")
        if key == "name":
            attachment["target"] = value
        elif key == "alias":
            attachment["aliases"].append(value)
        elif key == "driver-opt":
            name, has_value, option = value.partition("=")
            if not has_value or not name:
                raise InvalidParameter("invalid key value pair format in driver options")
            attachment["options"][name.strip().lower()] = option.strip()
        elif key in ("ip", "ip6", "mac-address"):
            attachment[key] = value
        elif key == "link-local-ip":
            attachment["local"].append(value)
        elif key == "gw-priority":
            try:
                attachment["gw-priority"] = parse_int(value)
            except InvalidParameter as error:
                raise InvalidParameter(f"invalid gw-priority ({value}): {error}") from None
        else:
            raise InvalidParameter(f"invalid field key {key}")
    if not attachment["target"]:
        raise InvalidParameter("network name/id is not specified")
    return attachment


def is_user_defined(mode: str) -> bool:
    """Whether a network mode names a network that a user made."""
    return mode not in ("default", "bridge", "host", "none") and not mode.startswith("container:")


def _merge_flags(first: dict[str, Any], values: Values) -> None:
    """Add what the plain flags say of the first network; a thing said twice is an error."""
    aliases = values["network-alias"] + values["net-alias"]
    if first["aliases"] and aliases:
        raise InvalidParameter("conflicting options: cannot specify both --network-alias and per-network alias")
    first["aliases"] = first["aliases"] or aliases
    if is_user_defined(first["target"]):
        # On the default bridge a link is the older kind, which stands in the host's part of the request.
        first["links"] = values["link"]
    for key, flag in (("ip", "ip"), ("ip6", "ip6"), ("mac-address", "mac-address")):
        given = values[flag]
        if given and first.get(key):
            words = {
                "ip": "per-network IPv4 address",
                "ip6": "per-network IPv6 address",
                "mac-address": "per-network MAC address",
            }
            raise InvalidParameter(f"conflicting options: cannot specify both --{flag} and {words[key]}")
        if given:
            first[key] = given
    if first["local"] and values["link-local-ip"]:
        raise InvalidParameter(
            "conflicting options: cannot specify both --link-local-ip and per-network link-local IP addresses"
        )
    first["local"] = first["local"] or values["link-local-ip"]


def endpoint(attachment: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of one attachment as the API has them."""
    ipam: dict[str, Any] = {}
    if attachment.get("ip"):
        ipam["IPv4Address"] = attachment["ip"]
    if attachment.get("ip6"):
        ipam["IPv6Address"] = attachment["ip6"]
    if attachment["local"]:
        ipam["LinkLocalIPs"] = attachment["local"]
    return {
        "IPAMConfig": ipam or None,
        "Links": attachment["links"] or None,
        "Aliases": attachment["aliases"] or None,
        "MacAddress": attachment.get("mac-address", ""),
        "DriverOpts": attachment["options"] or None,
        "GwPriority": attachment.get("gw-priority", 0),
    }


def parse_networks(values: Values) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the network mode and the endpoints by network.

    A single network that nothing is said of has no endpoint in the request: the mode names it.
    """
    given: list[dict[str, Any]] = [dict(one) for one in values["network"] + values["net"]]
    implied = not given
    if implied:
        given = [parse_network("default")]
    endpoints: dict[str, dict[str, Any]] = {}
    for index, attachment in enumerate(given):
        target = attachment["target"]
        if index == 0:
            _merge_flags(attachment, values)
        if not target.strip():
            raise InvalidParameter("no name set for network")
        if attachment["aliases"] and not is_user_defined(target):
            raise InvalidParameter("network-scoped aliases are only supported for user-defined networks")
        if target in endpoints:
            raise InvalidParameter(f'network "{target}" is specified multiple times')
        settings = endpoint(attachment)
        if implied or len(given) > 1 or any(settings.values()):
            endpoints[target] = settings
    if len({is_user_defined(one["target"]) for one in given}) > 1:
        raise InvalidParameter(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
        )
    return given[0]["target"], endpoints
