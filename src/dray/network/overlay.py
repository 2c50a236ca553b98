"""The overlay driver: one network of containers on several hosts, without a swarm.

    host A                                                             host B
    sandbox ═ veth ── br-<id> ── vx-<id> ═ VXLAN over UDP ═ vx-<id> ── br-<id> ── veth ═ sandbox

Every daemon creates the network itself, with the same number and subnet and a range of addresses of its own:

    docker network create -d overlay --subnet 10.5.0.0/16 --ip-range 10.5.1.0/24 \
        -o com.dray.overlay.vni=4096 -o com.dray.overlay.address=192.0.2.1 \
        -o com.dray.overlay.peers=/etc/dray/peers.json shop

The peer table is a file, read again whenever it changes (`refresh`):

    {"peers": [{"host": "192.0.2.2", "endpoints": ["02:42:0a:05:02:02"]}, {"host": "192.0.2.3"}]}

Broadcasts, and frames to an address that is in no list and was not heard from, go to every peer; those to a listed
MAC address go to its host alone. (A container's MAC address is 02:42: and the four bytes of its IPv4 address.)
Frames from a host that is not in the table are dropped before the VXLAN interface sees them.

With `--opt encrypted` the table has keys as well, and frames are encrypted between the hosts (`encryption.py`):

    {"peers": [...], "keys": ["<64 hexadecimal digits>"]}

The network is the containers' alone: the host has no address on it and there is no way out by it; a container that
needs the world joins a bridge network as well.
"""

from __future__ import annotations

import errno
import os
from ipaddress import ip_address

import msgspec

from dray.base.errors import InvalidParameter
from dray.base.malformed import MALFORMED
from dray.linux import link_kinds, links
from dray.linux.links import Links
from dray.network import bandwidth, encryption, options
from dray.network.bridge import BridgeDriver
from dray.network.model import Endpoint, Network, parse_flag
from dray.network.rules import VXLAN_PORT

_PREFIX = "com.dray.overlay."
VNI = _PREFIX + "vni"
ADDRESS = _PREFIX + "address"
PEERS = _PREFIX + "peers"
ENCRYPTED = "encrypted"
_MTU = "1450"  # Ethernet's 1,500 without VXLAN's, UDP's and IP's headers
_EVERYONE = "00:00:00:00:00:00"
_OPTIONS = (
    VNI,
    ADDRESS,
    PEERS,
    ENCRYPTED,
    options.NAME,
    options.MTU,
    options.INTERFACE_PREFIX,
    *bandwidth.OPTIONS,
)


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host of the overlay and MAC addresses that are known to be on it."""

    host: str
    endpoints: list[str] = []


class PeerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of peers holds."""

    peers: list[Peer]
    keys: list[str] = []


class OverlayDriver(BridgeDriver):
    """Driver of overlay networks: a bridge without addresses, and a VXLAN interface on it."""

    name = "overlay"

    def __init__(self, host: Links, *, owner: str) -> None:
        super().__init__(host, owner=owner)
        self._encryption = encryption.Encryption(owner)
        self._entries: dict[str, set[tuple[str, str]]] = {}  # VXLAN interface → (MAC address, peer)
        self._read: dict[str, tuple[int, int, int]] = {}  # network → identity of the file when it was read

    def validate(self, network: Network) -> None:
        """Check every option; an unknown one is refused by name."""
        for option in network.options:
            if option not in _OPTIONS:
                raise InvalidParameter(f"unknown option {option} of the overlay network driver")
        for option in (VNI, ADDRESS, PEERS):
            if not network.options.get(option):
                raise InvalidParameter(f"an overlay network without a swarm needs the option {option}")
        vni = network.options[VNI]
        if not vni.isdecimal() or not 1 <= int(vni) < 1 << 24:
            raise InvalidParameter(f"invalid value {vni!r} of option {VNI}: it is 1 to 16777215")
        _address(network.options[ADDRESS], ADDRESS)
        if not os.path.isabs(network.options[PEERS]):
            raise InvalidParameter(f"option {PEERS} must be an absolute path: {network.options[PEERS]}")
        encrypted = network.options.get(ENCRYPTED, "false")
        if encrypted and parse_flag(encrypted, True) != parse_flag(encrypted, False):
            raise InvalidParameter(f"invalid value {encrypted!r} of option {ENCRYPTED}: it is true or false")
        read_peers(network.options[PEERS], keys=is_encrypted(network))
        plain = {key: value for key, value in network.options.items() if not key.startswith((_PREFIX, ENCRYPTED))}
        super().validate(msgspec.structs.replace(network, options=plain))

    def up(self, network: Network) -> None:
        """Make the bridge and the VXLAN interface, and program the peers."""
        super().up(_switch(network))
        name = vxlan_name(network)
        if is_encrypted(network):
            self._encrypt(network)  # before a frame can be sent
        if self._host.find(name) is None:
            made = link_kinds.vxlan_request(
                name,
                vni=int(network.options[VNI]),
                local=network.options[ADDRESS],
                port=encryption.PORT if is_encrypted(network) else VXLAN_PORT,
                mtu=options.mtu(_switch(network)),
            )
            try:
                self._host.apply([made])
            except OSError as error:
                if error.errno == errno.EEXIST:
                    raise InvalidParameter(
                        f"another network has the number {network.options[VNI]} ({VNI})"
                    ) from None
                raise link_kinds.missing(error, "vxlan") from None
            self._entries.pop(name, None)
        port = links.port_request(name, hairpin=False, isolated=False, alias="")
        self._host.apply([links.enslave_request(name, self._indices[network.interface]), port])
        self._read.pop(network.id, None)
        self.refresh(network)

    def down(self, network: Network) -> None:
        """Delete the VXLAN interface and the bridge."""
        self._entries.pop(vxlan_name(network), None)
        self._read.pop(network.id, None)
        if self._host.find(vxlan_name(network)) is not None:
            self._host.apply([links.delete_request(vxlan_name(network))])
        self._encryption.set(network.id, None)
        super().down(network)

    def plug(self, network: Network, endpoint: Endpoint, netns: int) -> None:
        """Make the veth pair, one end a port of the bridge, the other in the sandbox."""
        super().plug(_switch(network), endpoint, netns)

    def refresh(self, network: Network) -> bool:
        """Program the forwarding entries anew if the peer table has changed; tell whether it had.

        InvalidParameter for a table that cannot be read: what was programmed stays.
        """
        path = network.options[PEERS]
        try:
            status = os.stat(path)
        except OSError as error:
            raise InvalidParameter(f"the peer table {path} cannot be read: {error.strerror}") from None
        identity = status.st_ino, status.st_size, status.st_mtime_ns
        if self._read.get(network.id) == identity:
            return False
        link = self._host.find(vxlan_name(network))
        if link is None:
            return False
        if is_encrypted(network):
            self._encrypt(network)
        wanted = {
            (mac.lower(), peer.host)
            for peer in read_peers(path).peers
            if peer.host != network.options[ADDRESS]
            for mac in (_EVERYONE, *peer.endpoints)
        }
        present = self._entries.get(link.name, set())
        gone, new = sorted(present - wanted), sorted(wanted - present)
        self._host.apply([link_kinds.forwarding_request(link.index, mac, peer, remove=True) for mac, peer in gone])
        self._host.apply([link_kinds.forwarding_request(link.index, mac, peer) for mac, peer in new])
        self._entries[link.name] = wanted
        self._read[network.id] = identity
        return True

    def peers(self, network: Network) -> tuple[int, list[str]]:
        """Return a network's number and the hosts that may send frames of it: those that are programmed."""
        entries = self._entries.get(vxlan_name(network), set())
        return int(network.options[VNI]), sorted({host for _, host in entries})

    def _encrypt(self, network: Network) -> None:
        table = read_peers(network.options[PEERS], keys=True)
        address = network.options[ADDRESS]
        others = tuple(dict.fromkeys(peer.host for peer in table.peers if peer.host != address))
        keys = tuple(key.lower() for key in table.keys)
        self._encryption.set(network.id, encryption.Secrets(address, others, keys))


def is_encrypted(network: Network) -> bool:
    """Return whether a network's frames are encrypted between the hosts. The bare option means yes, as Docker's."""
    value = network.options.get(ENCRYPTED)
    return value is not None and (not value or parse_flag(value, False))


def vxlan_name(network: Network) -> str:
    """Return the name of a network's VXLAN interface."""
    return f"vx-{network.id[:12]}"


def read_peers(path: str, *, keys: bool = False) -> PeerTable:
    """Read a peer table, with its keys if they are wanted; InvalidParameter says what is wrong with it."""
    try:
        with open(path, "rb") as file:
            table = msgspec.json.decode(file.read(), type=PeerTable)
            if keys:
                encryption.check_keys(path, file.fileno(), table.keys)
    except OSError as error:
        raise InvalidParameter(f"the peer table {path} cannot be read: {error.strerror}") from None
    except MALFORMED as error:
        raise InvalidParameter(
            f'the peer table {path} is not of the form {{"peers": [{{"host": ADDRESS}}]}}: {error}'
        ) from None
    for peer in table.peers:
        _address(peer.host, f"peer table {path}")
        for mac in peer.endpoints:
            if len(mac.split(":")) != 6 or len(mac) != 17:
                raise InvalidParameter(f"the peer table {path} names {mac!r}: not a MAC address")
    return table


def _switch(network: Network) -> Network:
    """Return what the bridge beneath is: no addresses of the host, and room for VXLAN's headers (and ESP's)."""
    mtu = str(encryption.MTU) if is_encrypted(network) else _MTU
    return msgspec.structs.replace(network, pools=[], ipv6=False, options={options.MTU: mtu} | network.options)


def _address(text: str, where: str) -> None:
    try:
        plain = ip_address(text).version == 4
    except ValueError:
        plain = False
    if not plain:
        raise InvalidParameter(f"invalid host address {text!r} in {where}: it is an IPv4 address")
