from __future__ import annotations

import pytest

from dray.base.errors import InvalidParameter
from dray.network import hostfiles
from dray.network.model import Endpoint

ENDPOINT = Endpoint(
    id="e",
    network_id="n",
    network_name="bridge",
    driver="bridge",
    container_id="c",
    container_name="web",
    ipv4="172.17.0.2",
    ipv6="fd00::2",
)


def test_hosts_has_localhost_first_then_extra_then_own() -> None:
    text = hostfiles.hosts(
        hostname="web",
        domainname="example.com",
        endpoints=[ENDPOINT],
        extra_hosts=["db:10.0.0.5", "six:[fd00::9]", "gate:host-gateway", "eq=10.0.0.6"],
        links=[("172.17.0.3", ["db", "abc", "db"])],
        host_gateway=["172.17.0.1"],
    )
    assert text.splitlines()[:2] == ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    assert text.splitlines()[6:] == [
        "10.0.0.5\tdb",
        "fd00::9\tsix",
        "172.17.0.1\tgate",
        "10.0.0.6\teq",
        "172.17.0.3\tdb abc",
        "172.17.0.2\tweb.example.com web",
        "fd00::2\tweb.example.com web",
    ]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("db", 'bad format for add-host: "db"'),
        (":1.2.3.4", "bad format"),
        ("db:nowhere", 'invalid IP address in add-host: "nowhere"'),
        ("db:host-gateway", "unable to derive the IP value for host-gateway"),
    ],
)
def test_bad_extra_hosts(extra: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        hostfiles.hosts(hostname="web", extra_hosts=[extra])


HOST = """# comment
nameserver 127.0.0.53  ; stub
nameserver 192.0.2.53
nameserver 2001:db8::53
domain old.example
search a.example b.example
options edns0 trust-ad
"""


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, ["nameserver 192.0.2.53", "search a.example b.example", "options edns0 trust-ad"]),
        (
            {"ipv6": True},
            [
                "nameserver 192.0.2.53",
                "nameserver 2001:db8::53",
                "search a.example b.example",
                "options edns0 trust-ad",
            ],
        ),
        (
            {"servers": ["127.0.0.1"], "search": ["."], "options": ["ndots:2"]},
            ["nameserver 127.0.0.1", "options ndots:2"],
        ),
        ({"search": ["c.example"], "options": ["x"]}, ["nameserver 192.0.2.53", "search c.example", "options x"]),
        (
            {"host_mode": True},
            [
                "nameserver 127.0.0.53",
                "nameserver 192.0.2.53",
                "nameserver 2001:db8::53",
                "search a.example b.example",
                "options edns0 trust-ad",
            ],
        ),
    ],
)
def test_resolv_conf(settings: dict[str, object], lines: list[str]) -> None:
    assert hostfiles.plain(hostfiles.resolving(HOST, **settings)).splitlines()[1:] == lines  # type: ignore[arg-type]


def test_resolv_conf_falls_back_on_public_servers() -> None:
    assert "nameserver 8.8.8.8\nnameserver 8.8.4.4\n" in hostfiles.plain(
        hostfiles.resolving("nameserver 127.0.0.1\n")
    )
    assert "2001:4860:4860::8888" in hostfiles.plain(hostfiles.resolving("", ipv6=True))


def test_bad_settings_are_named() -> None:
    with pytest.raises(InvalidParameter, match="dns\\.example is not an ip address"):
        hostfiles.resolving("", servers=["dns.example"])
    with pytest.raises(InvalidParameter, match="is not a valid domain"):
        hostfiles.resolving("", search=["a b\nnameserver 6.6.6.6"])
    with pytest.raises(InvalidParameter, match="invalid hostname"):
        hostfiles.check_hostname("-x")
    hostfiles.check_hostname("web-1.example")


def test_a_container_on_the_hosts_network_resolves_its_own_name() -> None:
    origin = "127.0.0.1 localhost\n192.0.2.1 here"
    assert hostfiles.hosts(hostname="here", origin=origin) == origin + "\n"
    made = hostfiles.hosts(hostname="web", origin=origin, extra_hosts=["db:192.0.2.9"])
    assert made == origin + "\n192.0.2.9\tdb\n127.0.1.1\tweb\n"


def test_the_resolvers_form_of_resolv_conf() -> None:
    lines = hostfiles.embedded(hostfiles.resolving(HOST)).splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        "nameserver 127.0.0.11",
        "search a.example b.example",
        "options edns0 trust-ad ndots:0",
    ]
    # What a container cannot reach is asked from the host's namespace.
    assert "# ExtServers: [host(127.0.0.53) 192.0.2.53 host(2001:db8::53)]" in lines
    assert "# Based on host file: '/etc/resolv.conf' (internal resolver)" in lines
    assert "# Overrides: []" in lines


def test_servers_and_options_that_were_asked_for() -> None:
    found = hostfiles.resolving(HOST, servers=["127.0.0.1", "127.0.0.11", "192.0.2.1"], options=["ndots:2"])
    # Its own loopback, and never the resolver itself: that would go round in circles.
    assert found.servers == (("127.0.0.1", False), ("192.0.2.1", False))
    assert found.ndots
    text = hostfiles.embedded(found)
    assert "\noptions ndots:2\n" in text
    assert "# Overrides: [nameservers options]\n" in text
    assert not hostfiles.resolving(HOST, options=["ndots:0"]).ndots
    assert hostfiles.resolving("", ipv6=True).servers[:2] == (("8.8.8.8", False), ("8.8.4.4", False))
    assert hostfiles.resolving("nameserver fe80::1%eth0\n", ipv6=True).servers == (("fe80::1%eth0", True),)
