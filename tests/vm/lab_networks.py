"""What `test_vm_networks.py` runs inside the machine, one function a test; an exception is a failure.

Two namespaces stand for two hosts on a wire, each with the networking of a daemon.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from netlab import LocalNamespaces, MemoryRecords, Server, entered, output, private_host, private_neighbour, say

from dray.linux.links import Links
from dray.network import peers
from dray.network.asks import NetworkAsk
from dray.network.controller import Controller
from dray.network.model import Attachment, NetworkConfig, Pool, SandboxAsk

A, B = "a" * 64, "b" * 64
HOSTS = ("192.0.2.1", "192.0.2.9")
KEYS = ("5e" * 32, "6f" * 32)
PORT = 4790
OVERLAY = "com.dray.overlay."


async def daemon(name: str) -> Controller:
    made = Controller(MemoryRecords(), NetworkConfig(bridge=name), LocalNamespaces())
    await made.start({})
    return made


# -- an encrypted overlay


class Pair:
    """Two daemons with one encrypted network, and a container on each."""

    def __init__(self, hosts: list[int], folder: Path) -> None:
        self.hosts = hosts
        self.tables = [folder / "peers0", folder / "peers1"]
        self.daemons: list[Controller] = []
        self.ends: list[Attachment] = []

    def keys(self, number: int, *keys: str) -> None:
        path = self.tables[number]
        path.touch(0o600)
        path.write_text(json.dumps({"peers": [{"host": host} for host in HOSTS], "keys": keys}))

    async def start(self, number: int) -> None:
        self.keys(number, KEYS[0])
        pool = Pool(subnet="10.5.0.0/16", ip_range=f"10.5.{number + 1}.0/24", gateway="10.5.0.1")
        options = {"encrypted": "", OVERLAY + "vni": "4096", OVERLAY + "address": HOSTS[number]}
        options[OVERLAY + "peers"] = str(self.tables[number])
        with entered(self.hosts[number]):
            self.daemons.append(await daemon(f"b{number}"))
            await self.daemons[number].create(
                NetworkAsk(name="shop", driver="overlay", pools=[pool], options=options)
            )
            self.ends.append(await self.daemons[number].attach(A, SandboxAsk(mode="shop", name="c")))


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    peers.SECONDS = 0.2
    with private_host() as first, private_neighbour(first) as second, tempfile.TemporaryDirectory() as folder:
        made = Pair([first, second], Path(folder))
        for number in (0, 1):
            await made.start(number)
        yield made
        for number, controller in enumerate(made.daemons):
            made.ends[number].close()
            with entered(made.hosts[number]):
                await controller.close(wipe=True)
                left = output(None, "ip", "xfrm", "state") + output(None, "ip", "xfrm", "policy")
                assert not left.strip(), left


def tap(netns: int, interface: str, kind: int) -> socket.socket:
    with entered(netns):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        made.bind((interface, kind))
    made.settimeout(1.5)
    return made


def seen(wire: socket.socket) -> list[bytes]:
    """All frames that have come by."""
    found = []
    wire.setblocking(False)
    try:
        while True:
            found.append(wire.recv(2000))
    except BlockingIOError:
        wire.settimeout(1.5)
        return found


def is_clear(frame: bytes) -> bool:
    """Whether it is UDP, to the port of encrypted networks or the one of clear ones."""
    return frame[12:14] == b"\x08\0" and frame[23] == 17 and frame[36:38] in (b"\x12\xb5", b"\x12\xb6")


def forged(port: int, host_mac: bytes) -> bytes:
    """A clear VXLAN frame that says it is of the other host, with a broadcast in it that nobody can mistake."""
    inner = b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + b"INTRUDER" * 8
    vxlan = b"\x08\0\0\0" + (4096).to_bytes(3, "big") + b"\0" + inner
    udp = struct.pack(">HHHH", 40000, port, 8 + len(vxlan), 0) + vxlan
    addresses = socket.inet_aton(HOSTS[1]) + socket.inet_aton(HOSTS[0])
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:]
    return host_mac + bytes.fromhex("020000000009") + b"\x08\0" + head + udp


def chains(host: int, name: str) -> None:
    output(host, "nft", "flush", "chain", "ip", "dray-b0", name)


async def encrypted() -> None:
    """What goes over the wire is ESP and nothing else, whatever is taken away but everything at once."""
    async with pair() as lab:
        first, second = (end.netns or -1 for end in lab.ends)
        wire = tap(lab.hosts[1], "eth0", 0x0003)
        server = Server(second, 80)
        answer = say(first, "10.5.2.0", 80, timeout=20)
        assert answer == "10.5.1.0 hi", (answer, output(lab.hosts[0], "ip", "-s", "xfrm", "state"))
        frames = seen(wire)
        assert any(frame[23] == 50 for frame in frames), frames
        assert not [frame for frame in frames if is_clear(frame) or b"10.5.1.0 hi" in frame]
        assert "mtu 1400" in output(first, "ip", "link", "show", "eth0")
        server.close()
        await incoming(lab, first)
        await outgoing(lab, first, wire)
        wire.close()


async def incoming(lab: Pair, inside: int) -> None:
    """A clear frame, even in the name of a peer, is dropped by the policy and by the firewall, by each alone."""
    with entered(lab.hosts[0]), Links.open() as links:
        wire = links.find("wire")
    assert wire is not None
    mac = bytes.fromhex(wire.mac.replace(":", ""))
    caught = tap(inside, "eth0", 0x88B5)
    sender = tap(lab.hosts[1], "eth0", 0x0800)

    def delivered() -> bool:
        sender.send(forged(PORT, mac))
        try:
            return b"INTRUDER" in caught.recv(200)
        except TimeoutError:
            return False

    assert not delivered()
    chains(lab.hosts[0], "raw")
    assert not delivered(), "without the firewall's rule"
    lab.daemons[0]._firewall.restore()  # type: ignore[union-attr]
    output(lab.hosts[0], "ip", "xfrm", "policy", "flush")
    assert not delivered(), "without the policies"
    chains(lab.hosts[0], "raw")
    assert delivered(), "with neither, so that the frame is a good one"
    caught.close()
    sender.close()


async def outgoing(lab: Pair, inside: int, wire: socket.socket) -> None:
    """With the policies gone (`incoming`), nothing leaves in the clear either, until that rule is gone as well."""
    seen(wire)
    output(inside, "ip", "neighbour", "replace", "10.5.2.0", "lladdr", "02:42:0a:05:02:00", "dev", "eth0")
    say(inside, "10.5.2.0", 81, udp=True, timeout=1)
    assert not [frame for frame in seen(wire) if is_clear(frame)]
    chains(lab.hosts[0], "outgoing")
    say(inside, "10.5.2.0", 81, udp=True, timeout=1)
    assert [frame for frame in seen(wire) if is_clear(frame)], "with neither, so that there was something to see"


async def rotation() -> None:
    """Keys are changed while frames go on; a host without the key hears nothing."""
    async with pair() as lab:
        server = Server(lab.ends[1].netns, 80)
        for keys in (KEYS, KEYS[::-1], KEYS[1:]):
            for number in (0, 1):
                lab.keys(number, *keys)
                with entered(lab.hosts[number]):
                    lab.daemons[number]._peers.follow()
                answer = say(lab.ends[0].netns, "10.5.2.0", 80, timeout=20)
                assert answer == "10.5.1.0 hi", (keys, number, answer)
        assert output(lab.hosts[0], "ip", "xfrm", "state").count("proto esp") == 2, "the old keys are gone"
        lab.keys(1, KEYS[0])
        with entered(lab.hosts[1]):
            lab.daemons[1]._peers.follow()
        assert say(lab.ends[0].netns, "10.5.2.0", 80, timeout=2) == "TimeoutError"
        server.close()


# -- interfaces on a parent


async def talk(
    network: NetworkAsk, *, beyond: str = "", shown: str = "", vlan: bool = False, private: bool = True
) -> None:
    """Two containers of a network talk to each other, and to a server on the other host at `beyond`."""
    with private_host() as first, private_neighbour(first) as second:
        if vlan:
            output(second, "ip", "link", "add", "link", "eth0", "name", "eth0.10", "type", "vlan", "id", "10")
            output(second, "ip", "address", "add", "10.10.0.9/24", "dev", "eth0.10")
            output(second, "ip", "link", "set", "eth0.10", "up")
        controller = await daemon("b0")
        made = await controller.create(network)
        ends = [await controller.attach(name, SandboxAsk(mode="shop", name=name[:1])) for name in (A, B)]
        servers = [Server(ends[1].netns, 80), Server(second, 80)]
        own, other = (end.endpoints[0].ipv4 for end in ends)
        answer = say(ends[0].netns, other, 80, timeout=10)
        assert answer == f"{own} hi", answer
        if beyond:
            answer = say(ends[0].netns, beyond, 80, timeout=10)
            assert answer == f"{own} hi", answer
        assert shown in output(ends[0].netns, "ip", "-d", "link", "show", "eth0"), shown
        for one in (*servers, *ends):
            one.close()
        for name, end in zip((A, B), ends, strict=True):
            await controller.detach(name, end.endpoints)
        await controller.remove("shop")
        if made.interface != "wire":
            assert made.interface not in output(None, "ip", "-br", "link")
        await controller.close(wipe=True)


def ask(driver: str, subnet: str, **options: str) -> NetworkAsk:
    return NetworkAsk(name="shop", driver=driver, pools=[Pool(subnet=subnet)], options=options)


async def ipvlan() -> None:
    wire = "192.0.2.0/24"
    near = Pool(subnet=wire, ip_range="192.0.2.64/26", gateway="192.0.2.254")
    l2 = NetworkAsk(name="shop", driver="ipvlan", pools=[near], options={"parent": "wire", "ipvlan_mode": "l2"})
    await talk(l2, beyond="192.0.2.9", shown="mode l2")
    for mode in ("l3", "l3s"):
        # The other host has a route to 172.16.0.0/12 by this one, whose interface answers for its ipvlans.
        await talk(ask("ipvlan", "172.29.0.0/24", parent="wire", ipvlan_mode=mode), shown=f"mode {mode}")


async def vlan() -> None:
    near = Pool(subnet="10.10.0.0/24", ip_range="10.10.0.64/26", gateway="10.10.0.254")
    for driver in ("macvlan", "ipvlan"):
        network = NetworkAsk(name="shop", driver=driver, pools=[near], options={"parent": "wire.10"})
        await talk(network, beyond="10.10.0.9", vlan=True)


async def dummy() -> None:
    for driver in ("macvlan", "ipvlan"):
        await talk(ask(driver, "10.11.0.0/24"))


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())
    print("passed")
