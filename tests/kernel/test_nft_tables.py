from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

import pytest
from netlab import output, private_host

from dray.linux import nftables_expressions as nft
from dray.linux.nftables import (
    ACCEPT,
    DROP,
    HOOK_FORWARD,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    TYPE_IPV4,
    TYPE_PROTOCOL,
    TYPE_SERVICE,
    Batch,
    Element,
    Hook,
    Nftables,
    Set,
    Watch,
    field,
)
from dray.network.firewall import FAMILIES, Firewall
from dray.network.model import Network, Pool
from dray.network.rules import Published

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True)
def host() -> Iterator[int]:
    with private_host() as netns:
        yield netns


@pytest.fixture
def tables() -> Iterator[Nftables]:
    made = Nftables.open()
    yield made
    made.close()


NETWORKS = [
    Network(
        id="1",
        name="bridge",
        driver="bridge",
        interface="dray0",
        pools=[Pool(subnet="172.17.0.0/16"), Pool(subnet="fd00:9::/64")],
    ),
    Network(
        id="2",
        name="inner",
        driver="bridge",
        interface="br-in",
        internal=True,
        pools=[Pool(subnet="172.18.0.0/16")],
        options={"com.docker.network.bridge.enable_icc": "false"},
    ),
    Network(
        id="3",
        name="snat",
        driver="bridge",
        interface="br-snat",
        pools=[Pool(subnet="172.19.0.0/20")],
        options={
            "com.docker.network.host_ipv4": "10.0.0.9",
            "com.docker.network.bridge.gateway_mode_ipv4": "nat-unprotected",
        },
    ),
]


def test_nft_reads_our_tables_as_we_mean_them() -> None:
    firewall = Firewall("dray", FAMILIES)
    firewall.start(
        NETWORKS,
        [
            Published("tcp", "0.0.0.0", 8080, "172.17.0.2", 80, "web"),
            Published("udp", "10.0.0.1", 53, "172.17.0.2", 5353),
            Published("sctp", "::", 9, "fd00:9::2", 10),
        ],
    )
    firewall.guard(NFPROTO_IPV4, ["eth0"])
    listed = re.sub(r"\s+", " ", output(None, "nft", "list", "ruleset"))
    for line in (
        'tcp . 8080 comment "web" : 172.17.0.2 . 80',
        "udp . 10.0.0.1 . 53 : 172.17.0.2 . 5353",
        "sctp . 9 : fd00:9::2 . 10",
        "set bridges { type ifname elements = {",
        '"br-in" comment "inner"',
        'elements = { "dray0" . "dray0" comment "bridge", ',
        'set unprotected { type ifname elements = { "br-snat" comment "snat" } }',
        'set guarded { type ifname elements = { "eth0" } }',
        "type nat hook prerouting priority dstnat; policy accept; fib daddr type local jump publish",
        "ip6 daddr != ::1 fib daddr type local jump publish",
        "dnat ip to meta l4proto . ip daddr . th dport map @published ",
        "dnat ip6 to meta l4proto . th dport map @published_any ",
        "iifname @bridges ip daddr 127.0.0.0/8 drop",
        'ip saddr 172.17.0.0/16 oifname != "dray0" masquerade',
        'ip saddr 172.19.0.0/20 oifname != "br-snat" snat to 10.0.0.9',
        'ip6 saddr fd00:9::/64 oifname "dray0" ct status dnat masquerade',
        "ct state established,related accept",
        "oifname @bridges drop",
    ):
        assert line in listed
    assert 'oifname != "br-in" masquerade' not in listed
    firewall.close()


def test_five_thousand_ports_are_five_thousand_elements_and_no_rule_more() -> None:
    firewall = Firewall("dray", FAMILIES)
    firewall.start(NETWORKS, [])
    rules = output(None, "nft", "list", "ruleset").count("comment")
    ports = [Published("tcp", "0.0.0.0", 10000 + n, "172.17.0.2", 80) for n in range(5000)]
    firewall.publish(ports)
    with_ports = output(None, "nft", "list", "ruleset")
    assert with_ports.count("comment") == rules
    assert with_ports.count(" : 172.17.0.2 . 80") == 5000
    firewall.unpublish(ports[:2500])
    firewall.unpublish(ports[:2500])
    assert output(None, "nft", "list", "ruleset").count(" : 172.17.0.2 . 80") == 2500
    again = Firewall("dray", FAMILIES)
    again.start(NETWORKS, ports[:10])
    assert output(None, "nft", "list", "ruleset").count(" : 172.17.0.2 . 80") == 10
    again.remove()
    assert output(None, "nft", "list", "ruleset") == ""
    again.close()
    firewall.close()


def test_a_batch_is_done_as_a_whole_or_not_at_all(tables: Nftables) -> None:
    batch = Batch(NFPROTO_IPV4, "whole")
    batch.add_table()
    batch.add_set(Set("ports", (TYPE_PROTOCOL, TYPE_SERVICE)))
    batch.add_rule("nosuch", [nft.verdict(nft.VERDICT_DROP)])
    with pytest.raises(OSError, match="nftables ip whole: add rule to nosuch") as error:
        tables.commit(batch)
    assert error.value.errno == errno.ENOENT
    assert not tables.has_table(NFPROTO_IPV4, "whole")


def test_elements_come_back_as_they_were_put(tables: Nftables) -> None:
    batch = Batch(NFPROTO_IPV4, "mine")
    batch.add_table()
    batch.add_set(Set("ports", (TYPE_PROTOCOL, TYPE_SERVICE), (TYPE_IPV4, TYPE_SERVICE)))
    elements = [
        Element(field(b"\x06") + field(bytes((n // 256, n % 256))), bytes(4) + field(b"\0P"), f"number {n}")
        for n in range(1000)
    ]
    batch.add_elements("ports", elements)
    tables.commit(batch)
    found = tables.elements(NFPROTO_IPV4, "mine", "ports")
    assert sorted(found, key=lambda e: e.key) == elements
    assert tables.elements(NFPROTO_IPV4, "mine", "other") == []
    assert tables.elements(NFPROTO_IPV6, "mine", "ports") == []


def test_base_chains_of_others_are_seen(tables: Nftables) -> None:
    output(None, "nft", "add table inet fw")
    output(None, "nft", "add chain inet fw forward_all { type filter hook forward priority -5; policy drop; }")
    (chain,) = tables.base_chains()
    assert (chain.family, chain.table, chain.name) == (1, "fw", "forward_all")
    assert chain.hook == Hook("filter", HOOK_FORWARD, -5, DROP)
    output(None, "nft", "chain inet fw forward_all { policy accept; }")
    assert tables.base_chains()[0].hook.policy == ACCEPT


def test_only_deletions_by_others_are_told_of(tables: Nftables) -> None:
    watch = Watch(tables)
    batch = Batch(NFPROTO_IPV4, "mine")
    batch.add_table()
    tables.commit(batch)
    batch = Batch(NFPROTO_IPV4, "mine")
    batch.delete_table()
    batch.add_table()
    tables.commit(batch)
    assert not watch.deleted("mine")
    output(None, "nft", "add table ip other")
    output(None, "nft", "delete table ip other")
    assert not watch.deleted("mine")
    output(None, "nft", "delete table ip mine")
    assert watch.deleted("mine")
    watch.close()


def test_a_table_is_told_from_a_later_one_of_its_name(tables: Nftables) -> None:
    batch = Batch(NFPROTO_IPV4, "mine")
    batch.add_table()
    assert tables.table_handle(NFPROTO_IPV4, "mine") is None
    tables.commit(batch)
    first = tables.table_handle(NFPROTO_IPV4, "mine")
    tables.commit(batch)  # it is there already
    assert tables.table_handle(NFPROTO_IPV4, "mine") == first != 0
    output(None, "nft", "flush ruleset")
    tables.commit(batch)
    assert tables.table_handle(NFPROTO_IPV4, "mine") not in (first, None, 0)
