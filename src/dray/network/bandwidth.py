"""Bandwidth of an endpoint: `com.dray.network.bandwidth.ingress` and `.egress`, as seen by the container.

Options of an endpoint (`docker network connect --driver-opt`, `docker run --network name=…,driver-opt=…`) or of a
network, for every endpoint of it that says nothing itself. Values are tc's: `10mbit`, `1.5gbit`, `500kbit`, and in
bytes `2mbps`; a bare number is bits per second.

Egress is limited at the container's own interface, ingress at the host's end of its veth pair; a macvlan or
ipvlan endpoint has no such end, so that its ingress cannot be limited. A container that was given CAP_NET_ADMIN
can take its egress limit away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern
from dray.linux import traffic
from dray.linux.links import Links
from dray.linux.netlink import Request
from dray.network.model import Endpoint

INGRESS = "com.dray.network.bandwidth.ingress"
EGRESS = "com.dray.network.bandwidth.egress"
OPTIONS = (INGRESS, EGRESS)
_RATE = pattern(r"(\d+(?:\.\d+)?)([kmg]?)(bit|bps|)", re.ASCII | re.IGNORECASE)
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_LEAST = 8_000  # bits per second: below it a single packet waits for seconds


def parse(option: str, text: str) -> int:
    """Read a rate as bytes per second; InvalidParameter names the option."""
    found = _RATE.fullmatch(text)
    bits = 0.0
    if found is not None:
        bits = float(found[1]) * _SCALE[found[2].lower()] * (8 if found[3].lower() == "bps" else 1)
    if bits < _LEAST:
        raise InvalidParameter(f"invalid value {text!r} of option {option}: a rate such as 10mbit, at least 8kbit")
    return int(bits / 8)


def rates(endpoint: Mapping[str, str], network: Mapping[str, str]) -> tuple[int, int]:
    """Return (ingress, egress) in bytes per second, 0 for no limit: the endpoint's option, else the network's."""
    asked = [(option, endpoint.get(option) or network.get(option, "")) for option in OPTIONS]
    ingress, egress = (parse(option, text) if text else 0 for option, text in asked)
    return ingress, egress


def limit_ingress(host: Links, endpoint: Endpoint) -> None:
    """Limit what reaches an endpoint that is plugged in."""
    if not endpoint.ingress_rate:
        return
    link = host.find(endpoint.veth)
    if link is not None:
        host.apply([traffic.limit_request(link.index, endpoint.ingress_rate)])


def egress_requests(endpoint: Endpoint, index: int) -> list[Request]:
    """Return what limits the endpoint's own interface, of this index in its sandbox."""
    return [traffic.limit_request(index, endpoint.egress_rate)] if endpoint.egress_rate else []
