"""What a container gets for a name."""

from __future__ import annotations

import socket

import dns.message
import dns.rcode
import dns.reversename
import pytest

from dray.network.dns import answers, message
from dray.network.dns.model import Member, Membership, Sandbox, Server
from dray.network.dns.zone import Zone

APP, BACK = Membership("n1", "app"), Membership("n2", "back.end")
WEB = Member("e1", "n1", ["web", "www", "0123456789ab"], "172.18.0.2", "fd00::2")
DB = Member("e2", "n1", ["db", "data"], "172.18.0.3")
DB2 = Member("e3", "n1", ["db2", "data"], "172.18.0.4")
FAR = Member("e4", "n2", ["far", "web"], "172.19.0.2")


@pytest.fixture
def zone() -> Zone:
    made = Zone()
    for member in (WEB, DB, DB2, FAR):
        made.add(member)
    return made


def sandbox(*networks: Membership, **settings: object) -> Sandbox:
    return Sandbox(id="c", networks=list(networks), **settings)  # type: ignore[arg-type]


def lookup(zone: Zone, asks: Sandbox, name: str, version: int = 4) -> list[str] | None:
    found = zone.lookup(asks, name, version)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return None if found is None else sorted(socket.inet_ntop(family, address) for address in found)


def test_names_aliases_ids_and_shared_aliases(zone: Zone) -> None:
    asks = sandbox(APP)
    assert lookup(zone, asks, "web") == lookup(zone, asks, "www") == ["172.18.0.2"]
    assert lookup(zone, asks, "0123456789ab") == ["172.18.0.2"]
    assert lookup(zone, asks, "data") == ["172.18.0.3", "172.18.0.4"]
    assert lookup(zone, asks, "web", 6) == ["fd00::2"]
    assert lookup(zone, asks, "db", 6) == []  # it is there, but has no IPv6
    assert lookup(zone, asks, "nobody") is None


def test_only_networks_that_are_shared(zone: Zone) -> None:
    assert lookup(zone, sandbox(APP), "far") is None
    assert lookup(zone, sandbox(), "web") is None
    assert lookup(zone, sandbox(APP), "far.back.end") is None
    both = sandbox(BACK, APP)
    assert lookup(zone, both, "far") == ["172.19.0.2"]
    assert lookup(zone, both, "web") == ["172.19.0.2"]  # the first network that knows it
    assert lookup(zone, both, "web.app") == ["172.18.0.2"]
    assert lookup(zone, both, "web.back.end") == ["172.19.0.2"]
    assert lookup(zone, both, "web.end") is None


def test_links_come_first_and_hide_the_name(zone: Zone) -> None:
    asks = sandbox(Membership("n1", "app", {"Store": "DB", "web": "db2"}))
    assert lookup(zone, asks, "store") == ["172.18.0.3"]
    assert lookup(zone, asks, "web") == ["172.18.0.4"]


def test_what_is_gone_is_not_found(zone: Zone) -> None:
    version = zone.version
    zone.remove("e2")
    zone.remove("unknown")
    assert zone.version == version + 1
    assert lookup(zone, sandbox(APP), "db") is None
    assert lookup(zone, sandbox(APP), "data") == ["172.18.0.4"]
    zone.add(Member("e3", "n1", ["renamed"], "172.18.0.4"))
    assert lookup(zone, sandbox(APP), "db2") is None
    assert lookup(zone, sandbox(APP), "renamed") == ["172.18.0.4"]
    for endpoint in ("e1", "e3", "e4"):
        zone.remove(endpoint)
    assert len(zone) == 0
    assert not zone._networks


def test_an_address_that_another_has_by_now_keeps_its_name(zone: Zone) -> None:
    zone.add(Member("e9", "n1", ["new"], "172.18.0.2"))
    zone.remove("e1")
    assert reverse(zone, sandbox(APP), "172.18.0.2") == "new.app"


def reverse(zone: Zone, asks: Sandbox, address: str) -> str | None:
    return zone.reverse(asks, str(dns.reversename.from_address(address)).rstrip("."))


def test_addresses_have_names(zone: Zone) -> None:
    assert reverse(zone, sandbox(APP), "172.18.0.2") == "web.app"
    assert reverse(zone, sandbox(APP), "fd00::2") == "web.app"
    assert reverse(zone, sandbox(APP), "172.19.0.2") is None
    assert reverse(zone, sandbox(BACK), "172.19.0.2") == "far.back.end"
    for noise in ("in-addr.arpa", "x.in-addr.arpa", "1.2.3.in-addr.arpa", "1.ip6.arpa", "zz" * 32 + ".ip6.arpa"):
        assert zone.reverse(sandbox(APP), noise) is None


UPSTREAM = {"servers": [Server("192.0.2.53")], "forward": True}


def ask(zone: Zone, asks: Sandbox, name: str, kind: str = "A") -> dns.message.Message | None:
    asked = dns.message.make_query(name, kind)
    found, _ = answers.local(message.parse_query(asked.to_wire()), asks, zone, message.TCP_LIMIT)
    return None if found is None else dns.message.from_wire(found)


def test_other_names_are_forwarded(zone: Zone) -> None:
    asks = sandbox(APP, **UPSTREAM)
    assert ask(zone, asks, "example.com") is None
    assert ask(zone, asks, "nobody") is None
    assert ask(zone, asks, "web", "TXT") is None
    assert ask(zone, asks, "1.2.0.192.in-addr.arpa", "PTR") is None
    found = ask(zone, asks, "WEB")
    assert found is not None
    assert [str(one) for one in found.answer[0]] == ["172.18.0.2"]
    assert found.answer[0].name == found.question[0].name
    nothing = ask(zone, asks, "db", "AAAA")
    assert nothing is not None
    assert (nothing.rcode(), nothing.answer) == (dns.rcode.NOERROR, [])
    mail = ask(zone, asks, "web", "MX")
    assert mail is not None
    assert mail.answer == []


def test_an_internal_network_forwards_nothing(zone: Zone) -> None:
    for asks in (sandbox(APP, servers=[Server("192.0.2.53")]), sandbox(APP, forward=True)):
        for kind in ("A", "AAAA", "TXT", "PTR", "MX", "ANY"):
            refused = ask(zone, asks, "secret.example.com", kind)
            assert refused is not None
            assert refused.rcode() == dns.rcode.SERVFAIL
        assert ask(zone, asks, "web") is not None


def test_with_ndots_a_plain_name_is_the_search_domains_business(zone: Zone) -> None:
    asks = sandbox(APP, ndots=True, **UPSTREAM)
    empty = ask(zone, asks, "nobody")
    assert empty is not None
    assert (empty.rcode(), empty.answer) == (dns.rcode.NOERROR, [])
    assert ask(zone, asks, "nobody.example") is None
    assert ask(zone, asks, "nobody", "TXT") is None


def test_addresses_take_turns(zone: Zone) -> None:
    first = set()
    for _ in range(64):
        found = ask(zone, sandbox(APP), "data")
        assert found is not None
        first.add(str(found.answer[0][0]))
    assert first == {"172.18.0.3", "172.18.0.4"}


def test_other_operations_and_versions(zone: Zone) -> None:
    asked = dns.message.make_query("web", "A", use_edns=0)
    asked.set_opcode(4)
    found, _ = answers.local(message.parse_query(asked.to_wire()), sandbox(APP), zone, 512)
    assert found is not None
    assert dns.message.from_wire(found).rcode() == dns.rcode.NOTIMP
    asked = dns.message.make_query("web", "A", use_edns=1)
    found, _ = answers.local(message.parse_query(asked.to_wire()), sandbox(APP), zone, 512)
    assert found is not None
    assert dns.message.from_wire(found).rcode() == dns.rcode.BADVERS
