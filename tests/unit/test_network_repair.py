"""Which sandboxes are looked into when the daemon is back."""

from __future__ import annotations

from dray.linux.links import Link
from dray.network.model import Endpoint
from dray.network.repair import damaged


def link(name: str, alias: str = "") -> Link:
    return Link(index=1, name=name, flags=1, mac="", mtu=1500, master=0, kind="veth", alias=alias)


def held(container: str, *, veth: str = "", interface: str = "eth0") -> dict[str, Endpoint]:
    return {
        "net": Endpoint(
            id="e",
            network_id="net",
            network_name="net",
            driver="bridge",
            container_id=container,
            container_name=container,
            veth=veth,
            interface=interface,
        )
    }


def test_only_those_that_show_it() -> None:
    running = {
        "whole": held("whole", veth="veth1"),
        "lacking": held("lacking", veth="veth2"),
        "grown": held("grown", veth="veth3"),
        "wired": held("wired"),  # macvlan: nothing of it is to be seen from the host
        "host": held("host", interface=""),
    }
    present = [
        link("lo"),
        link("veth1", "dray/whole"),
        link("veth3", "dray/grown"),
        link("veth4", "dray/grown"),
        link("veth5", "other/whole"),
        link("veth6", "dray/ended"),
        link("br-1", "dray/net"),
    ]
    keep = {"veth1", "veth2", "veth3", "br-1"}
    assert damaged(running, present, owner="dray", keep=keep) == ["lacking", "grown", "wired"]
