"""Encryption between the hosts of overlay networks: which IPsec states and policies there are to be.

Encrypted networks have a UDP port of their own (`PORT`), so that a policy by port is a policy by network: everything
to that port is encrypted or is not sent, and what comes to it in the clear is dropped, by a policy and once more by
the firewall (`rules.py`). The clear networks of the same hosts are untouched. On the wire there is ESP, no UDP.

Keys come with the peer table. Of each key, and for each direction between two hosts, a pair of keys is derived
(HKDF, RFC 5869), so that no two states share one. What is received may be under any of the table's keys, what is sent
is under the first. A key is changed by adding the new one at the end on all hosts, then moving it to the front on
all, then taking away the old.

States outlive the daemon, as the network does. They are found again by their request number, made of the owner's name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import re
import stat
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dray.base.errors import InvalidParameter, Unsupported
from dray.linux import xfrm
from dray.linux.xfrm import IN, OUT, Policy, State, Xfrm

PORT = 4790
MTU = 1400  # Ethernet's 1,500 without VXLAN's 50, and ESP's header, IV, padding and check value
_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII | re.IGNORECASE)
_GONE = (errno.ESRCH, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What one network wants: its host's address, the peers', and keys, the one to send with first."""

    address: str
    peers: tuple[str, ...]
    keys: tuple[str, ...]


def check_keys(path: str, descriptor: int, keys: Sequence[str]) -> None:
    """Raise InvalidParameter for keys that are none, or that others than root can read."""
    status = os.fstat(descriptor)
    if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (0, os.geteuid()):
        raise InvalidParameter(
            f"the peer table {path} holds keys, and others than root can read it: make it root's, mode 0600"
        )
    if not keys:
        raise InvalidParameter(
            f'the peer table {path} names no keys: an encrypted network needs "keys": ["…"], each 64 hexadecimal '
            "digits, as 'openssl rand -hex 32' makes them"
        )
    for key in keys:
        if not _KEY.fullmatch(key):
            raise InvalidParameter(f"a key in the peer table {path} is not 64 hexadecimal digits")


def derive(key: str, source: str, destination: str, request: int) -> State:
    """Return the state of one direction under a key of the table."""
    info = f"dray overlay {source} {destination} ".encode()
    pseudo = hmac.digest(bytes(32), bytes.fromhex(key), "sha256")
    material = block = b""
    for number in range(1, 4):
        block = hmac.digest(pseudo, block + info + bytes((number,)), "sha256")
        material += block
    spi = int.from_bytes(hashlib.sha256(material[64:]).digest()[:4], "big") | 1 << 31  # 0 to 255 are reserved
    return State(source, destination, spi, request, material[:32], material[32:64])


class Encryption:
    """States and policies of one daemon. Opens its socket when the first network wants encryption."""

    def __init__(self, owner: str) -> None:
        self._request = zlib.crc32(b"dray " + owner.encode()) | 1
        self._wanted: dict[str, Secrets] = {}  # network → what it wants
        self._policies: dict[tuple[int, str, str], Policy] = {}

    def set(self, network_id: str, secrets: Secrets | None) -> None:
        """Encrypt (or no longer encrypt) a network's frames. InvalidParameter if another network between the same
        hosts has other keys; Unsupported if the kernel cannot."""
        wanted = {key: found for key, found in self._wanted.items() if key != network_id}
        if secrets is not None:
            for other in wanted.values():
                if other.address == secrets.address and other.keys != secrets.keys and (
                    set(other.peers) & set(secrets.peers)
                ):  # fmt: skip
                    raise InvalidParameter(
                        "another encrypted network between the same hosts has other keys: let both have the same table"
                    )
            wanted[network_id] = secrets
        elif network_id not in self._wanted:
            return
        self._apply(wanted)
        self._wanted = wanted

    def _apply(self, wanted: Mapping[str, Secrets]) -> None:
        states = {(one.destination, one.spi): one for one in self._states(wanted)}
        policies = {(one.direction, one.source, one.destination): one for one in self._demands(wanted)}
        socket = Xfrm()
        try:
            with ExitStack() as undo:
                undo.callback(self._restore, socket, policies)
                self._change(socket, states, policies)
                undo.pop_all()
        finally:
            socket.close()
        self._policies = policies

    def _change(
        self,
        socket: Xfrm,
        states: Mapping[tuple[str, int], State],
        policies: Mapping[tuple[int, str, str], Policy],
    ) -> None:
        # First what is demanded, then the means: at no moment is a frame sent or let in in the clear.
        changed = [one for key, one in policies.items() if self._policies.get(key) != one]
        first = [one for one in changed if (one.direction, one.source, one.destination) not in self._policies]
        socket.apply([xfrm.policy_request(one) for one in first])
        present = {(one.destination, one.spi): one for one in socket.states(self._request)}
        new = [one for key, one in states.items() if key not in present]
        socket.apply([xfrm.state_request(one) for one in new], ignore=[errno.EEXIST])
        socket.apply([xfrm.policy_request(one) for one in changed if one not in first])  # send under the new key
        gone = [one for key, one in self._policies.items() if key not in policies]
        socket.apply([xfrm.forget_policy_request(one) for one in gone], ignore=_GONE)
        stale = [one for key, one in present.items() if key not in states]
        socket.apply([xfrm.forget_state_request(one) for one in stale], ignore=_GONE)

    def _restore(self, socket: Xfrm, failed: Mapping[tuple[int, str, str], Policy]) -> None:
        """Put the policies back as they were: the change did not succeed."""
        extra = [one for key, one in failed.items() if key not in self._policies]
        with contextlib.suppress(OSError, Unsupported):
            socket.apply([xfrm.forget_policy_request(one) for one in extra], ignore=_GONE)
            socket.apply([xfrm.policy_request(one) for one in self._policies.values()])

    def _states(self, wanted: Mapping[str, Secrets]) -> list[State]:
        return [
            derive(key, *ends, self._request)
            for one in wanted.values()
            for peer in one.peers
            for key in one.keys
            for ends in ((one.address, peer), (peer, one.address))
        ]

    def _demands(self, wanted: Mapping[str, Secrets]) -> list[Policy]:
        found: list[Policy] = []
        for one in wanted.values():
            found.append(Policy(IN, "", one.address, PORT, priority=200))
            found.append(Policy(OUT, one.address, "", PORT, priority=200))
            for peer in one.peers:
                spi = derive(one.keys[0], one.address, peer, self._request).spi
                found.append(Policy(IN, peer, one.address, PORT, 100, self._request))
                found.append(Policy(OUT, one.address, peer, PORT, 100, self._request, spi))
        return found
