"""The default bridge, published ports, host and none, names and resolvers."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import subprocess
import time
from pathlib import Path

import pytest

from support.engines import Engine, until
from support.world import HOST_ADDRESS, HOST_ADDRESS_6

WEB = "variants:web"


def page(address: str, port: int, *, timeout: float = 10) -> str:
    """GET / of a published port; tries again while the server is still starting."""
    deadline = time.monotonic() + timeout
    while True:
        connection = http.client.HTTPConnection(address, port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except (ConnectionError, http.client.HTTPException, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        finally:
            connection.close()


def fetch(address: str, port: int) -> list[str]:
    """The last line of a page, fetched inside a container of busybox; its wget crashes on some addresses."""
    return ["sh", "-c", f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} {port} | tail -n 1"]


def host_port(engine: Engine, name: str, port: str) -> int:
    return int(engine.ports(name)[port][0]["HostPort"])


def test_address_and_route(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    address = engine.address("box")
    gateway = f"{engine.subnet}1"
    assert address.startswith(engine.subnet)
    assert f"inet {address}/24" in engine.ok("exec", "box", "ip", "addr", "show", "eth0")
    routes = engine.ok("exec", "box", "ip", "route").splitlines()
    assert f"default via {gateway} dev eth0" in [line.strip() for line in routes]
    assert engine.docker("exec", "box", "ping", "-c1", "-W2", gateway).returncode == 0
    network = engine.inspect("box")["NetworkSettings"]["Networks"]["bridge"]
    assert (network["Gateway"], network["IPPrefixLen"]) == (gateway, 24)
    mac = engine.ok("exec", "box", "cat", "/sys/class/net/eth0/address")
    assert network["MacAddress"] == mac


def test_containers_reach_each_other_by_address(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", WEB)
    address = engine.address("web")
    out = until(
        lambda: engine.docker("run", "--rm", "busybox", *fetch(address, 80)).stdout,
        what="the page",
    )
    assert out == "busybox page\n"
    assert page(address, 80) == "busybox page\n"


def test_addresses_are_given_back(engine: Engine) -> None:
    seen = set()
    for _ in range(6):
        engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
        seen.add(ipaddress.ip_address(engine.address("box")))
        engine.ok("rm", "-f", "box")
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    address = engine.address("box")
    engine.ok("stop", "-t", "0", "box")
    assert engine.address("box") == ""
    engine.ok("start", "box")
    assert engine.address("box").startswith(engine.subnet)
    assert address.startswith(engine.subnet)


def test_published_port_from_everywhere(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-p", "18080:80", WEB)
    assert "0.0.0.0:18080->80/tcp" in engine.ok("ps", "--format", "{{.Ports}}")
    for address in ("127.0.0.1", HOST_ADDRESS, f"{engine.subnet}1", "::1", HOST_ADDRESS_6):
        assert page(address, 18080) == "busybox page\n", address
    for target in (HOST_ADDRESS, f"{engine.subnet}1"):
        assert engine.ok("run", "--rm", "busybox", *fetch(target, 18080)) == "busybox page", target
    # The container reaches itself by the host's address: a hairpin.
    assert engine.ok("exec", "web", *fetch(HOST_ADDRESS, 18080)) == "busybox page"


def test_port_command(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-p", "127.0.0.1:18080:80", "-p", "127.0.0.1:18053:53/udp", WEB)
    assert engine.ok("port", "web").splitlines() == ["53/udp -> 127.0.0.1:18053", "80/tcp -> 127.0.0.1:18080"]
    assert engine.ok("port", "web", "80") == "127.0.0.1:18080"
    assert "no public port" in engine.fails("port", "web", "81").lower()


def test_port_of_one_address_only(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-p", "127.0.0.1:18080:80", WEB)
    assert page("127.0.0.1", 18080) == "busybox page\n"
    with pytest.raises(OSError, match=r"refused|timed out"):
        socket.create_connection((HOST_ADDRESS, 18080), timeout=1).close()


def test_random_port(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-p", "80", WEB)
    port = host_port(engine, "web", "80/tcp")
    assert port > 1024
    assert page("127.0.0.1", port) == "busybox page\n"
    engine.ok("restart", "-t", "0", "web")
    assert page("127.0.0.1", host_port(engine, "web", "80/tcp")) == "busybox page\n"


def test_publish_all(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-P", WEB)
    assert set(engine.ports("web")) == {"80/tcp", "53/udp"}
    assert page("127.0.0.1", host_port(engine, "web", "80/tcp")) == "busybox page\n"


def test_range(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-p", "18080-18082:80-82", WEB)
    assert {key: value[0]["HostPort"] for key, value in engine.ports("web").items() if value} == {
        "80/tcp": "18080",
        "81/tcp": "18081",
        "82/tcp": "18082",
    }
    assert page("127.0.0.1", 18080) == "busybox page\n"


def test_range_for_one_port(engine: Engine) -> None:
    for name in ("one", "two"):
        engine.ok("run", "-d", "--name", name, "-p", "18080-18081:80", WEB)
    assert {host_port(engine, name, "80/tcp") for name in ("one", "two")} == {18080, 18081}
    engine.fails("run", "-d", "--name", "three", "-p", "18080-18081:80", WEB, status=125)


def test_taken_port(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-p", "18080:80", WEB)
    message = engine.fails("run", "-d", "--name", "late", "-p", "18080:80", WEB, status=125)
    assert "18080" in message
    assert "port is already allocated" in message
    state = engine.state("late")
    assert (state["Status"], state["Running"]) == ("created", False)
    assert state["ExitCode"] in (0, 128)
    engine.ok("rm", "-f", "web")
    engine.ok("start", "late")
    assert page("127.0.0.1", 18080) == "busybox page\n"


def test_port_taken_by_a_program_of_the_host(engine: Engine) -> None:
    with socket.create_server(("0.0.0.0", 18080)):
        message = engine.fails("run", "-d", "--name", "late", "-p", "18080:80", WEB, status=125)
    assert "address already in use" in message or "port is already allocated" in message
    assert engine.state("late")["Status"] == "created"
    engine.ok("start", "late")


def test_port_is_free_after_the_container(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-p", "18080:80", WEB)
    engine.ok("stop", "-t", "0", "web")
    with socket.create_server(("0.0.0.0", 18080)):
        pass
    assert not (engine.ports("web") or {}).get("80/tcp")


def test_udp(nginx_engine: Engine) -> None:
    engine = nginx_engine
    engine.ok(
        *("run", "-d", "--name", "echo", "-p", "18053:53/udp", "nginx"),
        *("socat", "UDP-RECVFROM:53,fork", "EXEC:cat"),
    )
    for address in ("127.0.0.1", HOST_ADDRESS):
        assert _ask(address, 18053) == b"x\n", address


def _ask(address: str, port: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.5)
        asking.connect((address, port))
        for _ in range(20):
            try:
                asking.send(b"x\n")
                return asking.recv(100)
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.05)
    raise AssertionError(f"no answer from {address}:{port}")


def test_source_address_is_seen(nginx_engine: Engine) -> None:
    """A request through a published port shows the client's address where the path allows it."""
    engine = nginx_engine
    engine.ok("run", "-d", "--name", "web", "-p", "18080:80", "nginx")
    page(HOST_ADDRESS, 18080)
    until(lambda: "GET / HTTP/1.1" in engine.ok("logs", "web"), what="the request in the log")


def test_none(engine: Engine) -> None:
    out = engine.ok("run", "--rm", "--network", "none", "busybox", "sh", "-c", "ip -o link; ip route")
    assert [line.split(": ")[1] for line in out.splitlines() if ": lo:" in line or "eth" in line] == ["lo"]


def test_host(engine: Engine) -> None:
    names = engine.ok("run", "--rm", "--network", "host", "busybox", "cat", "/etc/hosts")
    assert names.startswith(Path("/etc/hosts").read_text().rstrip("\n"))
    out = engine.ok("run", "--rm", "--network", "host", "busybox", "sh", "-c", "hostname; ip -o link show host0")
    assert out.splitlines()[0] == socket.gethostname()
    assert "host0" in out


def test_of_another_container(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", WEB)
    out = until(
        lambda: (
            engine.docker("run", "--rm", "--network", "container:web", "busybox", *fetch("127.0.0.1", 80)).stdout
        ),
        what="the page",
    )
    assert out == "busybox page\n"
    message = engine.fails("run", "--network", "container:web", "-p", "1:1", "busybox", "true", status=125)
    assert "conflicting options" in message


def test_hosts_file(engine: Engine) -> None:
    engine.ok(
        *("run", "-d", "--name", "box", "-h", "box.example.org", "--add-host", "other:10.1.2.3"),
        *("--add-host", "gate:host-gateway", "busybox", "sleep", "600"),
    )
    lines = [line.split() for line in engine.ok("exec", "box", "cat", "/etc/hosts").splitlines()]
    assert ["127.0.0.1", "localhost"] in lines
    assert ["10.1.2.3", "other"] in lines
    assert [f"{engine.subnet}1", "gate"] in lines
    assert [engine.address("box"), "box.example.org", "box"] in lines
    assert not [line for line in lines if socket.gethostname() in line]


def test_resolvers(engine: Engine) -> None:
    out = engine.ok(
        *("run", "--rm", "--dns", "192.0.2.53", "--dns-search", "example.org", "--dns-option", "ndots:3"),
        *("busybox", "cat", "/etc/resolv.conf"),
    )
    lines = [line.split() for line in out.splitlines() if line and not line.startswith("#")]
    assert ["nameserver", "192.0.2.53"] in lines
    assert ["search", "example.org"] in lines
    assert ["options", "ndots:3"] in lines
    assert len([line for line in lines if line[0] == "nameserver"]) == 1


def test_files_belong_to_the_container(engine: Engine) -> None:
    out = engine.ok("run", "--rm", "busybox", "sh", "-c", "echo 1.2.3.4 x >> /etc/hosts && tail -n1 /etc/hosts")
    assert out == "1.2.3.4 x"
    assert "1.2.3.4" not in engine.ok("run", "--rm", "busybox", "cat", "/etc/hosts")


def test_mac_and_links_disappear(engine: Engine) -> None:
    before = _links()
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    assert len(_links() - before) == 1
    engine.ok("rm", "-f", "box")
    assert _links() == before


def _links() -> set[str]:
    listed = subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True)
    return {link["ifname"] for link in json.loads(listed.stdout)}


def test_many_connections(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "web", "-p", "127.0.0.1:18080:80", WEB)
    for _ in range(100):
        assert page("127.0.0.1", 18080) == "busybox page\n"


@pytest.mark.parametrize("bad", ["70000:80", "80:80/nosuch", "a:80"])
def test_bad_ports_are_refused(engine: Engine, bad: str) -> None:
    assert engine.docker("create", "-p", bad, "busybox").returncode != 0


def test_network_list_and_inspect(engine: Engine) -> None:
    listed = {one["Name"]: one for one in engine.get("/networks")}
    assert {name: listed[name]["Driver"] for name in ("bridge", "host", "none")} == {
        "bridge": "bridge",
        "host": "host",
        "none": "null",
    }
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    bridge = engine.inspect("bridge", kind="network")
    (member,) = bridge["Containers"].values()
    assert (member["Name"], member["IPv4Address"]) == ("box", f"{engine.address('box')}/24")
    assert bridge["IPAM"]["Config"][0]["Gateway"] == f"{engine.subnet}1"


def test_links_are_names_of_containers(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "db", "-h", "store", "busybox", "sleep", "600")
    engine.ok("run", "-d", "--name", "web", "--link", "db:data", "busybox", "sleep", "600")
    assert engine.inspect("web")["HostConfig"]["Links"] == ["/db:/web/data"]
    assert engine.inspect("web/data")["Id"] == engine.inspect("db")["Id"]
    names = {one["Names"][0]: one["Names"] for one in engine.get("/containers/json")}
    assert names == {"/db": ["/db", "/web/data"], "/web": ["/web"]}
    assert "data store db" in engine.ok("exec", "web", "cat", "/etc/hosts")
    # Both may get other names, and the link stays.
    engine.ok("rename", "db", "base")
    engine.ok("rename", "web", "site")
    assert engine.inspect("site")["HostConfig"]["Links"] == ["/base:/site/data"]
    engine.restart()
    engine.ok("restart", "-t", "0", "site")
    assert "data store base" in engine.ok("exec", "site", "cat", "/etc/hosts")
    # A link can be taken away; the containers stay.
    assert "No such link: site/other" in engine.fails("rm", "--link", "site/other")
    engine.ok("rm", "--link", "site/data")
    assert engine.inspect("site")["HostConfig"]["Links"] is None
    engine.ok("restart", "-t", "0", "site")
    assert "data" not in engine.ok("exec", "site", "cat", "/etc/hosts")
    assert engine.state("base")["Running"]


def test_what_the_hosts_network_cannot_have_is_refused(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "host", "--network", "host", "busybox", "sleep", "600")
    message = engine.fails("create", "--link", "host:x", "busybox")
    assert "conflicting options: host type networking can't be used with links" in message
    message = engine.fails("create", "--network", "host", "--mac-address", "92:d0:c6:0a:29:33", "busybox")
    assert "conflicting options: mac-address and the network mode" in message


def test_no_container_joins_its_own_network(engine: Engine) -> None:
    engine.ok("create", "--name", "me", "--network", "container:me", "busybox", "true")
    assert "cannot join own network namespace" in engine.fails("start", "me")
    engine.ok("create", "--name", "one", "--network", "container:two", "busybox", "true")
    engine.ok("create", "--name", "two", "--network", "container:one", "busybox", "true")
    assert "cannot join network namespace of a non running container" in engine.fails("start", "one")


def test_a_link_to_a_container_that_shares_anothers_network(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "db", "busybox", "sleep", "600")
    engine.ok("run", "-d", "--name", "aside", "--network", "container:db", "busybox", "sleep", "600")
    address = engine.address("db")
    assert f"{address}\tx" in engine.ok("run", "--rm", "--link", "aside:x", "busybox", "cat", "/etc/hosts")


def test_a_link_to_a_container_that_is_gone_is_no_more(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "db", "busybox", "sleep", "600")
    engine.ok("create", "--name", "web", "--link", "db", "busybox", "cat", "/etc/hosts")
    engine.ok("stop", "-t", "0", "db")
    assert "Cannot link to a non running container: /db AS /web/db" in engine.fails("start", "web")
    engine.ok("rm", "db")
    assert "db" not in engine.ok("start", "-a", "web").split()
