"""An overlay network between two daemons, each in a namespace that stands for its host."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from netlab import LocalNamespaces, MemoryRecords, Server, entered, output, private_host, private_neighbour, say
from test_network_ports import A

from dray.base.errors import InvalidParameter, Unsupported
from dray.network import encryption, peers
from dray.network.asks import NetworkAsk
from dray.network.controller import Controller
from dray.network.model import NetworkConfig, Pool, SandboxAsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

VNI, ADDRESS, PEERS = (f"com.dray.overlay.{name}" for name in ("vni", "address", "peers"))
HOSTS = ("192.0.2.1", "192.0.2.9")


@dataclass
class Pair:
    """Two daemons, the namespaces of their hosts, and the peer table of each."""

    daemons: list[Controller]
    hosts: list[int]
    tables: list[Path]

    def peers(self, number: int, *addresses: str, endpoints: list[str] | None = None) -> None:
        peers = [{"host": one, "endpoints": endpoints or []} for one in addresses]
        self.tables[number].write_text(json.dumps({"peers": peers}))


def overlay(number: int, table: Path) -> NetworkAsk:
    pool = Pool(subnet="10.5.0.0/16", ip_range=f"10.5.{number + 1}.0/24", gateway="10.5.0.1")
    options = {VNI: "4096", ADDRESS: HOSTS[number], PEERS: str(table)}
    return NetworkAsk(name="shop", driver="overlay", pools=[pool], options=options)


@pytest.fixture
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setattr(peers, "SECONDS", 0.05)
    with private_host() as first, private_neighbour(first) as second:
        made = Pair([], [first, second], [tmp_path / "peers0.json", tmp_path / "peers1.json"])
        for number, host in enumerate(made.hosts):
            made.peers(number, *HOSTS)
            with entered(host):
                daemon = Controller(MemoryRecords(), NetworkConfig(bridge=f"b{number}"), LocalNamespaces())
                made.daemons.append(daemon)
                await daemon.start({})
                await daemon.create(overlay(number, made.tables[number]))
        yield made
        for daemon, host in zip(made.daemons, made.hosts, strict=True):
            with entered(host):
                await daemon.close(wipe=True)
                assert "vx-" not in output(None, "ip", "link")


async def test_containers_on_two_hosts_reach_each_other(pair: Pair) -> None:
    ends = []
    for daemon, host in zip(pair.daemons, pair.hosts, strict=True):
        with entered(host):
            ends.append(await daemon.attach(A, SandboxAsk(mode="shop", name="c")))
    assert [end.endpoints[0].ipv4 for end in ends] == ["10.5.1.0", "10.5.2.0"]
    server = Server(ends[1].netns, 80)
    try:
        assert say(ends[0].netns, "10.5.2.0", 80) == "10.5.1.0 hi"
        assert "mtu 1450" in output(ends[0].netns, "ip", "link", "show", "eth0")
        assert "default" not in output(ends[0].netns, "ip", "route")
    finally:
        server.close()
        for end in ends:
            end.close()


async def test_the_peer_table_is_followed(pair: Pair) -> None:
    def entries() -> str:
        return output(pair.hosts[0], "bridge", "fdb", "show")

    assert "00:00:00:00:00:00 dev vx-" in entries()
    pair.peers(0, "192.0.2.77", endpoints=["02:42:0a:05:02:02"])
    for _ in range(100):
        await asyncio.sleep(0.02)
        if "192.0.2.77" in entries():
            break
    found = entries()
    assert found.count("dst 192.0.2.77") == 2
    assert "02:42:0a:05:02:02 dev vx-" in found
    assert not [line for line in found.splitlines() if line.startswith("00:00") and "dst 192.0.2.9" in line]
    pair.tables[0].write_text("nonsense")  # what was programmed stays
    await asyncio.sleep(0.15)
    assert entries().count("dst 192.0.2.77") == 2


def frame(vni: int) -> bytes:
    """A VXLAN packet with an Ethernet broadcast in it that nobody can mistake."""
    return (
        bytes.fromhex("0800000000")[:4]
        + vni.to_bytes(3, "big")
        + b"\0"
        + b"\xff" * 6
        + b"\x02" * 6
        + b"\x88\xb5"
        + b"INTRUDER" * 8
    )


async def test_frames_of_a_host_that_is_no_peer_are_dropped(pair: Pair) -> None:
    """The protection taken away (a table that names the sender), the same frame is delivered."""
    with entered(pair.hosts[0]):
        end = await pair.daemons[0].attach(A, SandboxAsk(mode="shop", name="c"))
    with entered(end.netns or -1):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    tap.settimeout(0.3)
    with entered(pair.hosts[1]):
        output(None, "ip", "address", "add", "192.0.2.66/24", "dev", "eth0")
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind(("192.0.2.66", 0))
    with tap, sender:
        sender.sendto(frame(4096), ("192.0.2.1", 4789))
        with pytest.raises(TimeoutError):
            tap.recv(200)
        pair.peers(0, "192.0.2.66")
        for _ in range(100):
            await asyncio.sleep(0.02)
            if "192.0.2.66" in output(pair.hosts[0], "bridge", "fdb", "show"):
                break
        sender.sendto(frame(4096), ("192.0.2.1", 4789))
        assert b"INTRUDER" in tap.recv(200)
    end.close()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"encrypted": "maybe"}, InvalidParameter, "invalid value 'maybe' of option encrypted"),
        ({"encrypted": ""}, InvalidParameter, "make it root's, mode 0600"),
        ({VNI: ""}, InvalidParameter, r"needs the option com\.dray\.overlay\.vni"),
        ({VNI: "16777216"}, InvalidParameter, "1 to 16777215"),
        ({ADDRESS: "here"}, InvalidParameter, "invalid host address 'here'"),
        ({PEERS: "peers.json"}, InvalidParameter, "must be an absolute path"),
        ({PEERS: "/nosuch/peers.json"}, InvalidParameter, "cannot be read: No such file"),
        ({"com.docker.network.bridge.enable_icc": "false"}, InvalidParameter, "unknown option com.docker"),
        ({}, InvalidParameter, "another network has the number 4096"),
    ],
)
async def test_networks_that_cannot_be(
    pair: Pair, change: dict[str, str], kind: type[Exception], words: str
) -> None:
    ask = overlay(0, pair.tables[0])
    ask = msgspec.structs.replace(
        ask, name="two", pools=[Pool(subnet="10.6.0.0/16")], options=ask.options | change
    )
    with entered(pair.hosts[0]):
        before = output(None, "ip", "-br", "link")
        with pytest.raises(kind, match=words):
            await pair.daemons[0].create(ask)
        assert output(None, "ip", "-br", "link") == before


KEY = "5e" * 32


def keyed(pair: Pair, number: int, *keys: str, mode: int = 0o600) -> None:
    """Write a daemon's table with keys."""
    table = {"peers": [{"host": one} for one in HOSTS], "keys": list(keys)}
    pair.tables[number].write_text(json.dumps(table))
    pair.tables[number].chmod(mode)


@pytest.mark.parametrize(
    ("keys", "mode", "words"),
    [
        ([], 0o600, "names no keys"),
        (["5e"], 0o600, "is not 64 hexadecimal digits"),
        ([KEY], 0o640, "others than root can read it: make it root's, mode 0600"),
    ],
)
async def test_keys_that_cannot_be(pair: Pair, keys: list[str], mode: int, words: str) -> None:
    keyed(pair, 0, *keys, mode=mode)
    ask = overlay(0, pair.tables[0])
    pools = [Pool(subnet="10.6.0.0/16")]
    ask = msgspec.structs.replace(ask, name="two", pools=pools, options=ask.options | {VNI: "7", "encrypted": ""})
    with entered(pair.hosts[0]), pytest.raises(InvalidParameter, match=words):
        await pair.daemons[0].create(ask)


async def test_encryption_or_a_word_about_the_kernel(pair: Pair) -> None:
    """What it does to frames is tested where the kernel has it (tests/vm/test_vm_networks.py)."""
    keyed(pair, 0, KEY)
    ask = overlay(0, pair.tables[0])
    pools = [Pool(subnet="10.6.0.0/16")]
    ask = msgspec.structs.replace(ask, name="two", pools=pools, options=ask.options | {VNI: "7", "encrypted": ""})
    with entered(pair.hosts[0]):
        before = output(None, "ip", "xfrm", "policy")
        made = await asyncio.gather(pair.daemons[0].create(ask), return_exceptions=True)
        if isinstance(made[0], Unsupported):
            assert "modprobe -a xfrm_user esp4" in str(made[0])
            assert "vx-" in output(None, "ip", "-br", "link"), "the other network goes on"
        else:
            assert "proto esp" in output(None, "ip", "xfrm", "policy")
            await pair.daemons[0].remove("two")
        assert output(None, "ip", "xfrm", "policy") == before


def test_each_direction_and_each_key_has_keys_of_its_own() -> None:
    states = [
        encryption.derive(key, *ends, 1)
        for key in (KEY, "5f" * 32)
        for ends in (("192.0.2.1", "192.0.2.2"), ("192.0.2.2", "192.0.2.1"))
    ]
    assert len({state.cipher_key for state in states} | {state.auth_key for state in states}) == 8
    assert len({state.spi for state in states}) == 4
    assert all(state.spi > 255 for state in states)
