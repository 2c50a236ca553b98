"""The network as the kernel has it beside what the engine's records say: bridges, interfaces, addresses, routes,
published ports, mounts of volumes. Everything of the kernel is read from the kernel.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.engines import Engine, until

PREDEFINED = ("host", "none")


def _json(*command: str) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def _inside(pid: int, *command: str) -> Any:
    return _json("nsenter", "-t", str(pid), "-n", *command)


def _compare(what: str, kernel: Iterable[object], records: Iterable[object]) -> list[str]:
    have, want = Counter(kernel), Counter(records)
    return [f"{what}: left over: {one}" for one in sorted(map(str, (have - want).elements()))] + [
        f"{what}: missing: {one}" for one in sorted(map(str, (want - have).elements()))
    ]


class Records:
    """What the engine says there is: its networks, and its running containers with their memberships."""

    def __init__(self, engine: Engine) -> None:
        self.networks = {one["Name"]: one for one in engine.get("/networks") if one["Name"] not in PREDEFINED}
        ids = [one["Id"] for one in engine.get("/containers/json")]
        self.containers = [engine.get(f"/containers/{one}/json") for one in ids]

    def bridge(self, name: str) -> str:
        """The host's interface of a network."""
        network = self.networks[name]
        return str(network["Options"].get("com.docker.network.bridge.name") or f"br-{network['Id'][:12]}")

    @staticmethod
    def memberships(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """A container's endpoints by network."""
        found: dict[str, dict[str, Any]] = container["NetworkSettings"]["Networks"]
        return {name: one for name, one in found.items() if name not in PREDEFINED}


def _bridges(records: Records, links: list[dict[str, Any]]) -> list[str]:
    found = [link for link in links if link.get("linkinfo", {}).get("info_kind") == "bridge"]
    trouble = _compare("bridges", (link["ifname"] for link in found), map(records.bridge, records.networks))
    have = [
        f"{link['ifname']} {address['local']}/{address['prefixlen']}"
        for link in found
        for address in link["addr_info"]
        if address["scope"] == "global"
    ]
    want = []
    for name, network in records.networks.items():
        for pool in network["IPAM"]["Config"]:
            prefix = ipaddress.ip_network(pool["Subnet"]).prefixlen
            want.append(f"{records.bridge(name)} {pool['Gateway']}/{prefix}")
    return trouble + _compare("addresses of bridges", have, want)


def _ports_of_bridges(records: Records, links: list[dict[str, Any]]) -> list[str]:
    owners = {f"dray/{one['Id']}": one["Name"] for one in records.containers}
    have = [
        f"{owners.get(link.get('ifalias', ''), link.get('ifalias'))} on {link.get('master')}"
        for link in links
        if link.get("linkinfo", {}).get("info_kind") == "veth" and link["ifname"] not in ("host0", "wire0")
    ]
    want = [
        f"{container['Name']} on {records.bridge(name)}"
        for container in records.containers
        for name in records.memberships(container)
    ]
    return _compare("veth pairs", have, want)


def _insides(records: Records) -> list[str]:
    trouble = []
    for container in records.containers:
        pid, name = container["State"]["Pid"], container["Name"]
        links = [link for link in _inside(pid, "ip", "-j", "addr") if link["ifname"] != "lo"]
        have = [
            f"{link['address']} {address['local']} {'up' if 'UP' in link['flags'] else 'down'}"
            for link in links
            for address in link["addr_info"]
            if address["family"] == "inet"
        ] + [f"{link['ifname']} without address" for link in links if not link["addr_info"]]
        endpoints = records.memberships(container)
        want = [f"{end['MacAddress']} {end['IPAddress']} up" for end in endpoints.values()]
        trouble += _compare(f"addresses in {name}", have, want)
        # The first network by name carries the default route, as all have the same priority here.
        gateways = [endpoints[key]["Gateway"] for key in sorted(endpoints) if endpoints[key]["Gateway"]]
        routes = [route["gateway"] for route in _inside(pid, "ip", "-j", "route", "show", "default")]
        trouble += _compare(f"default route in {name}", routes, gateways[:1])
    return trouble


def _addresses(records: Records) -> list[str]:
    given = Counter(
        (name, end["IPAddress"])
        for container in records.containers
        for name, end in records.memberships(container).items()
    )
    return [f"address given twice: {one}" for one, times in given.items() if times > 1]


def _text(value: Any) -> str:
    if isinstance(value, dict) and "elem" in value:
        value = value["elem"]["val"]
    parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
    return " ".join(str(part) for part in parts)


def _firewall(records: Records) -> list[str]:
    held: dict[str, list[str]] = {}
    for item in _json("nft", "-j", "list", "table", "ip", "dray")["nftables"]:
        for kind in ("map", "set"):
            if kind in item:
                pairs = item[kind].get("elem", [])
                words = [" → ".join(map(_text, one)) if isinstance(one, list) else _text(one) for one in pairs]
                held[item[kind]["name"]] = words
    want = []
    for container in records.containers:
        endpoints = records.memberships(container)
        carrier = next((endpoints[key] for key in sorted(endpoints) if endpoints[key]["Gateway"]), None)
        for port, bindings in (container["NetworkSettings"]["Ports"] or {}).items():
            number, protocol = port.split("/")
            for binding in bindings or []:
                if ":" not in binding["HostIp"] and carrier is not None:
                    host = "" if binding["HostIp"] == "0.0.0.0" else f"{binding['HostIp']} "
                    want.append(f"{protocol} {host}{binding['HostPort']} → {carrier['IPAddress']} {number}")
    trouble = _compare("published ports", held["published"] + held["published_any"], want)
    return trouble + _compare("bridges in the firewall", held["bridges"], map(records.bridge, records.networks))


def _volumes(engine: Engine, records: Records) -> list[str]:
    """Mounts that volumes' options make: there for running containers, and no others."""
    root = f"{engine.data_root}/volumes/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    have = [point for line in lines if (point := line.split(" ")[4]).startswith(root)]
    optioned = {one["Name"] for one in engine.get("/volumes")["Volumes"] or [] if one["Options"]}
    want = {
        mount["Source"]
        for container in records.containers
        for mount in container["Mounts"]
        if mount["Type"] == "volume" and mount["Name"] in optioned
    }
    return _compare("mounts of volumes", have, want)


def differences(engine: Engine) -> list[str]:
    """Where kernel and records differ now; empty when they agree."""
    records = Records(engine)
    links = _json("ip", "-j", "-d", "addr")
    return [
        *_bridges(records, links),
        *_ports_of_bridges(records, links),
        *_insides(records),
        *_addresses(records),
        *_firewall(records),
        *_volumes(engine, records),
    ]


def agree(engine: Engine, *, after: str = "") -> None:
    """Insist that kernel and records agree, within the moment that an engine's background work takes."""
    last: list[str] = []

    def none() -> bool:
        last[:] = differences(engine)
        return not last

    try:
        until(none, timeout=5)
    except AssertionError:
        raise AssertionError(f"{after}:\n" + "\n".join(last)) from None
