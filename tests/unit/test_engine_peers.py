"""What the resolver is told of a container."""

from __future__ import annotations

from dray.engine.peers import members, named, sandbox
from dray.network import endpoints, hostfiles
from dray.network.dns.model import Member, Membership, Server
from dray.network.model import Endpoint


def endpoint(network: str, address: str, *names: str, **more: object) -> Endpoint:
    return Endpoint(
        id=address, network_id=f"id-{network}", network_name=network, driver="bridge", container_id="c",
        container_name=names[0], ipv4=address, names=list(names), **more,  # type: ignore[arg-type]
    )  # fmt: skip


APP = endpoint("app", "172.18.0.2", "web", "www", "web", links=["db:store", "cache"])
DEFAULT = endpoint("bridge", "172.17.0.2", "web")
INSIDE = endpoint("inside", "172.19.0.2", "web", internal=True)
SETTINGS = hostfiles.resolving("nameserver 127.0.0.53\nnameserver 192.0.2.53\n")


def test_the_default_bridge_has_no_names() -> None:
    assert named([DEFAULT, APP]) == [APP]
    assert members([DEFAULT, APP]) == [Member("172.18.0.2", "id-app", ["web", "www"], "172.18.0.2")]


def test_links_are_names_of_one_network() -> None:
    asks = sandbox("c", [APP], SETTINGS)
    assert asks.networks == [Membership("id-app", "app", {"store": "db", "cache": "cache"})]
    assert asks.servers == [Server("127.0.0.53", host=True), Server("192.0.2.53")]


def test_only_a_network_that_leads_outside_forwards() -> None:
    assert sandbox("c", [APP], SETTINGS).forward
    assert not sandbox("c", [INSIDE], SETTINGS).forward
    assert sandbox("c", [INSIDE, DEFAULT], SETTINGS).forward
    assert not sandbox("c", [], SETTINGS).forward


def test_a_renamed_container_keeps_its_aliases() -> None:
    renamed = endpoints.renamed(APP, "web", "front")
    assert (renamed.container_name, renamed.names) == ("front", ["front", "www"])
    aliased = endpoint("app", "172.18.0.3", "db", "data", aliases=["db", "data"])
    assert endpoints.renamed(aliased, "db", "store").names == ["store", "db", "data"]
