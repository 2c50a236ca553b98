"""`dray network` create, connect, disconnect, ls, rm."""

from __future__ import annotations

import ipaddress

from dray.base.errors import DrayError, InvalidParameter
from dray.cli.ask.environment import check_label, to_map
from dray.cli.ask.flags import check_ip, check_link
from dray.cli.command import MANY, Command, StatusError
from dray.cli.commands.volume import natural_key
from dray.cli.flags import Flag
from dray.cli.output import Column, Listing, label_text, local_time, short_id, timestamp
from dray.client.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values


def _holds(subnet: str, address: str) -> bool:
    try:
        network = ipaddress.ip_network(subnet, strict=False)
        return ipaddress.ip_address(address.partition("/")[0]) in network
    except ValueError as error:
        raise InvalidParameter(f"invalid subnet {subnet}: {error}") from None


def consolidate(
    subnets: list[str], ranges: list[str], gateways: list[str], auxiliary: dict[str, str]
) -> list[dict[str, Any]]:
    """Give each subnet its range, gateway and reserved addresses, as the API has them."""
    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise InvalidParameter("every ip-range or gateway must have a corresponding subnet")
    for index, one in enumerate(subnets):
        for other in subnets[index + 1 :]:
            if _holds(one, other) or _holds(other, one):
                raise InvalidParameter("multiple overlapping subnet configuration is not supported")
    pools: dict[str, dict[str, Any]] = {one: {"Subnet": one} for one in subnets}

    def place(text: str, what: str) -> dict[str, Any]:
        for subnet, pool in pools.items():
            if _holds(subnet, text):
                return pool
        raise InvalidParameter(f"no matching subnet for {what} {text}")

    for text in ranges:
        pool = place(text, "range")
        if "IPRange" in pool:
            raise InvalidParameter(
                f"cannot configure multiple ranges ({text}, {pool['IPRange']}) on the same subnet ({pool['Subnet']})"
            )
        pool["IPRange"] = text
    for text in gateways:
        pool = place(text, "gateway")
        if "Gateway" in pool:
            raise InvalidParameter(
                f"cannot configure multiple gateways ({text}, {pool['Gateway']}) for the same subnet ({pool['Subnet']})"
            )
        pool["Gateway"] = text
    for name, text in auxiliary.items():
        place(text, "aux-address").setdefault("AuxiliaryAddresses", {})[name] = text
    return list(pools.values())


def run_create(app: App, values: Values, arguments: list[str]) -> int:
    """Create a network."""
    pools = consolidate(values["subnet"], values["ip-range"], values["gateway"], values["aux-address"])
    body: dict[str, Any] = {
        "Name": arguments[0],
        "Driver": values["driver"],
        "Scope": values["scope"],
        **({"EnableIPv4": values["ipv4"]} if "ipv4" in values.changed else {}),
        **({"EnableIPv6": values["ipv6"]} if "ipv6" in values.changed else {}),
        "IPAM": {"Driver": values["ipam-driver"], "Options": values["ipam-opt"], "Config": pools},
        "Internal": values["internal"],
        "Attachable": values["attachable"],
        "Ingress": values["ingress"],
        "ConfigOnly": values["config-only"],
        "ConfigFrom": {"Network": values["config-from"]} if values["config-from"] else None,
        "Options": values["opt"],
        "Labels": to_map(values["label"]),
    }
    answer = app.client.networks.create(body)
    if answer.get("Warning"):
        app.error(f"WARNING: {answer['Warning']}")
    app.line(answer["Id"])
    return 0


def run_connect(app: App, values: Values, arguments: list[str]) -> int:
    """Connect a container to a network."""
    options = {}
    for text in values["driver-opt"]:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidParameter("invalid key/value pair format in driver options")
        options[name] = value
    ipam = {}
    for key, flag in (("IPv4Address", "ip"), ("IPv6Address", "ip6"), ("LinkLocalIPs", "link-local-ip")):
        if values[flag]:
            ipam[key] = values[flag]
    endpoint = {
        "IPAMConfig": ipam,
        "Links": values["link"] or None,
        "Aliases": values["alias"],
        "DriverOpts": options,
        "GwPriority": values["gw-priority"],
    }
    app.client.networks.connect(arguments[0], {"Container": arguments[1], "EndpointConfig": endpoint})
    return 0


def run_disconnect(app: App, values: Values, arguments: list[str]) -> int:
    """Disconnect a container from a network."""
    app.client.networks.disconnect(arguments[0], {"Container": arguments[1], "Force": values["force"]})
    return 0


def listing(*, full: bool) -> Listing:
    """Return the list of networks."""

    def created(one: dict[str, Any]) -> str:
        text = one.get("Created") or ""
        _, dot, rest = text.partition(".")
        digits = "".join(letter for letter in rest if letter.isdigit()).rstrip("0") if dot else ""
        return local_time(timestamp(text), f".{digits}" if digits else "") if text else ""

    def truth(key: str) -> Any:
        return lambda one: "true" if one.get(key) else "false"

    columns = {
        "ID": Column("NETWORK ID", lambda one: one["Id"] if full else short_id(one["Id"])),
        "Name": Column("NAME", lambda one: one["Name"]),
        "Driver": Column("DRIVER", lambda one: one.get("Driver") or ""),
        "Scope": Column("SCOPE", lambda one: one.get("Scope") or ""),
        "IPv4": Column("IPV4", truth("EnableIPv4")),
        "IPv6": Column("IPV6", truth("EnableIPv6")),
        "Internal": Column("INTERNAL", truth("Internal")),
        "Labels": Column("LABELS", lambda one: label_text(one.get("Labels"))),
        "CreatedAt": Column("CREATED AT", created),
    }
    return Listing(
        "*network.networkContext",
        columns,
        ("ID", "Name", "Driver", "Scope"),
        methods={"Label": lambda one, name: (one.get("Labels") or {}).get(name, "")},
        raw=(("network_id", "ID"), ("name", "Name"), ("driver", "Driver"), ("scope", "Scope")),
        quiet="ID",
    )


def run_ls(app: App, values: Values, arguments: list[str]) -> int:
    """List networks."""
    form = values["format"]
    if not form and not values["quiet"]:
        form = app.config.text("networksFormat")
    networks = sorted(app.client.networks.list(values["filter"]), key=lambda one: natural_key(one["Name"]))
    app.out(listing(full=values["no-trunc"]).render(networks, form, quiet=values["quiet"]))
    return 0


def run_rm(app: App, values: Values, arguments: list[str]) -> int:
    """Remove networks."""
    status = 0
    for name in arguments:
        try:
            app.client.networks.remove(name)
        except ConnectError:
            raise
        except DrayError as error:
            if values["force"] and error.status == 404:
                continue
            app.error(str(error))
            status = 1
            continue
        app.line(name)
    if status:
        raise StatusError(1, "exit status 1")
    return 0


def check_subnet(text: str) -> str:
    """Check an address with its prefix length."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidParameter(f"invalid CIDR address: {text}") from None
    return text


COMMANDS = {
    "network create": Command(
        "[OPTIONS] NETWORK",
        run_create,
        flags=(
            Flag("attachable", "bool", "Let containers be attached by hand (swarm)"),
            Flag("aux-address", "map", "Address the driver must leave alone (name=ip)"),
            Flag("config-from", "string", "Network to take the settings from"),
            Flag("config-only", "bool", "Make a network of settings only"),
            Flag("driver", "string", "Network driver", short="d", default="bridge"),
            Flag("gateway", "strings", "Gateway of a subnet", check=check_ip, label="ipSlice"),
            Flag("ingress", "bool", "Make it the swarm's routing mesh"),
            Flag("internal", "bool", "Give it no way out"),
            Flag(
                "ip-range",
                "strings",
                "Range that container addresses come from",
                check=check_subnet,
                label="ipNetSlice",
            ),
            Flag("ipam-driver", "string", "Address management driver", default="default"),
            Flag("ipam-opt", "map", "Address management option (name=value)"),
            Flag("ipv4", "bool", "Give addresses of IPv4", default=True),
            Flag("ipv6", "bool", "Give addresses of IPv6"),
            Flag("label", "list", "Set a label (name=value)", check=check_label),
            Flag("opt", "map", "Driver option (name=value)", short="o"),
            Flag("scope", "string", "Scope of the network"),
            Flag("subnet", "strings", "Subnet, in CIDR form"),
        ),
        args=(1, 1),
    ),
    "network connect": Command(
        "[OPTIONS] NETWORK CONTAINER",
        run_connect,
        flags=(
            Flag("alias", "strings", "Further name of the container in the network"),
            Flag("driver-opt", "strings", "Driver option (name=value)"),
            Flag("gw-priority", "int", "The highest provides the default gateway"),
            Flag("ip", "string", "IPv4 address"),
            Flag("ip6", "string", "IPv6 address"),
            Flag("link", "list", "Link to another container", check=check_link),
            Flag("link-local-ip", "strings", "Link-local address", check=check_ip, label="ipSlice"),
        ),
        args=(2, 2),
    ),
    "network disconnect": Command(
        "[OPTIONS] NETWORK CONTAINER",
        run_disconnect,
        flags=(Flag("force", "bool", "Disconnect it even if it is gone", short="f"),),
        args=(2, 2),
    ),
    "network ls": Command(
        "[OPTIONS]",
        run_ls,
        flags=(
            Flag("filter", "filter", "Show only networks that match (name=value)", short="f"),
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("no-trunc", "bool", "Shorten nothing"),
            Flag("quiet", "bool", "Print IDs only", short="q"),
        ),
    ),
    "network rm": Command(
        "NETWORK [NETWORK...]",
        run_rm,
        flags=(Flag("force", "bool", "Do not fail for a network that does not exist", short="f"),),
        args=(1, MANY),
    ),
}
