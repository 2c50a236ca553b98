"""Options of networks and of the daemon's networking: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dray.base.errors import InvalidParameter
from dray.daemon import config
from dray.network import bandwidth, detour, overlay


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("10mbit", 1_250_000), ("8000", 1000), ("1.5gbit", 187_500_000), ("2mbps", 2_000_000), ("500Kbit", 62_500)],
)
def test_rates(text: str, bytes_per_second: int) -> None:
    assert bandwidth.parse(bandwidth.EGRESS, text) == bytes_per_second


@pytest.mark.parametrize("text", ["", "fast", "-1mbit", "10 mbit", "1kbit", "10mbits", "0"])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"com\.dray\.network\.bandwidth\.ingress"):
        bandwidth.parse(bandwidth.INGRESS, text)


def test_an_endpoints_rate_goes_before_its_networks() -> None:
    network = {bandwidth.INGRESS: "80mbit", bandwidth.EGRESS: "80mbit"}
    assert bandwidth.rates({bandwidth.EGRESS: "8mbit"}, network) == (10_000_000, 1_000_000)
    assert bandwidth.rates({}, {}) == (0, 0)


def test_keys_of_the_daemon() -> None:
    flags = ["--default-network-opt", "bridge=a=b", "--default-network-opt", "bridge=c=d=e"]
    loaded, _ = config.load([*flags, "--respect-host-firewall", "--bridge-accept-fwmark", "0x10/0xf0"])
    assert loaded["default-network-opts"] == {"bridge": {"a": "b", "c": "d=e"}}
    assert loaded["respect-host-firewall"] is True
    assert config.accept_mark(loaded["bridge-accept-fwmark"]) == (0x10, 0xF0)
    assert config.accept_mark("7") == (7, 0xFFFFFFFF)


@pytest.mark.parametrize("flags", [("--bridge-accept-fwmark", "x"), ("--bridge-accept-fwmark", "1/0x100000000")])
def test_marks_that_are_none(flags: tuple[str, str]) -> None:
    with pytest.raises(InvalidParameter, match="bridge-accept-fwmark"):
        config.load(flags)


def test_respecting_a_firewall_needs_one() -> None:
    with pytest.raises(InvalidParameter, match="respect-host-firewall"):
        config.load(["--respect-host-firewall", "--iptables=false"])


@pytest.mark.parametrize(
    "text", ["", "{}", '{"peers": [{}]}', '{"peers": [{"host": "x"}]}', '{"peers": [{"host": "1.2.3.4", "more": 1}]}',
             '{"peers": [{"host": "1.2.3.4", "endpoints": ["02:42"]}]}', '{"peers": [{"host": "fd00::1"}]}'],
)  # fmt: skip
def test_peer_tables_that_are_none(tmp_path: Path, text: str) -> None:
    table = tmp_path / "peers.json"
    table.write_text(text)
    with pytest.raises(InvalidParameter, match=r"peers\.json"):
        overlay.read_peers(str(table))


def test_names_of_interfaces_fit() -> None:
    assert all(len(name) <= 15 for name in detour.names("dray-" + "x" * 15))
