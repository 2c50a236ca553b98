"""IPsec's states and policies over netlink (linux/xfrm.h, ip-xfrm(8)): ESP in transport mode between IPv4 hosts.

Ciphers are AES-256 in CBC mode with HMAC-SHA-256 (RFC 3602, RFC 4868): keys here are put in by hand, and under such
keys a counter mode must not be used (RFC 4106, 2): a state that is made anew would use its nonces again. For the same
reason there is no window against replay: the other side would refuse a sender that has begun to count anew.

Functions build one message each; `Xfrm` is a socket with the verbs. A kernel without IPsec, or without ESP, answers
EPROTONOSUPPORT, which becomes Unsupported with the names of the modules.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from dray.base.errors import Unsupported
from dray.linux import netlink
from dray.linux.netlink import Netlink, Request

NETLINK_XFRM = 6
_NEWSA, _DELSA, _GETSA, _DELPOLICY, _UPDPOLICY = 0x10, 0x11, 0x12, 0x14, 0x19
_ALG_CRYPT, _TMPL, _ALG_AUTH_TRUNC, _EXTRA_FLAGS = 2, 5, 20, 24
_SEQUENCE_MAY_WRAP = 2
_TRANSPORT = 0
IN, OUT = 0, 1
ALLOW, BLOCK = 0, 1
CIPHER_KEY, AUTH_KEY = 32, 32  # bytes
_INFINITE = 0xFFFFFFFFFFFFFFFF

_SELECTOR = struct.Struct("=16s16s2s2s2s2sHBBB3xii")  # struct xfrm_selector
_ID = struct.Struct("=16s4sB3x")  # struct xfrm_id
_LIFETIME = struct.Struct("=8Q").pack(*[_INFINITE] * 4, *[0] * 4)  # struct xfrm_lifetime_cfg: no end
_CURRENT = bytes(32)  # struct xfrm_lifetime_cur
_STATE_TAIL = struct.Struct(
    "=12xIIHBBB7x"
)  # rest of struct xfrm_usersa_info: seq, reqid, family, mode, window, flags
_STATE_ID = struct.Struct("=16s4sHBx")  # struct xfrm_usersa_id
_POLICY_TAIL = struct.Struct("=IIBBBB4x")  # rest of struct xfrm_userpolicy_info: priority, index, dir, action, …
_POLICY_ID = struct.Struct("=IB3x")  # rest of struct xfrm_userpolicy_id
_TEMPLATE = struct.Struct("=24sH2x16sIBBBxIII")  # struct xfrm_user_tmpl
_STATE_SIZE, _REQUEST_AT = 224, 208


@dataclass(frozen=True, slots=True)
class State:
    """A security association: packets from `source` to `destination` under the index `spi`. `request` marks whose it
    is; the keys are CIPHER_KEY and AUTH_KEY bytes."""

    source: str
    destination: str
    spi: int
    request: int
    cipher_key: bytes = b""
    auth_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is demanded of UDP packets to a port: ESP under a state of `request` (and `spi`, unless 0); without a
    request they are dropped. `source` empty: of whatever host. A lower `priority` comes first."""

    direction: int
    source: str
    destination: str
    port: int
    priority: int
    request: int = 0
    spi: int = 0


def _address(text: str) -> bytes:
    return (IPv4Address(text).packed if text else bytes(4)) + bytes(12)


def _selector(source: str, destination: str, port: int) -> bytes:
    return _SELECTOR.pack(
        *(_address(destination), _address(source), port.to_bytes(2, "big"), b"\xff\xff" if port else bytes(2)),
        *(bytes(2), bytes(2), socket.AF_INET, 32 if destination else 0, 32 if source else 0),
        *(socket.IPPROTO_UDP if port else 0, 0, 0),
    )


def _id(destination: str, spi: int) -> bytes:
    return _ID.pack(_address(destination), spi.to_bytes(4, "big"), socket.IPPROTO_ESP)


def _algorithm(name: str, key: bytes, *lengths: int) -> bytes:
    return struct.pack(f"=64s{1 + len(lengths)}I", name.encode(), len(key) * 8, *lengths) + key


def state_request(state: State) -> Request:
    """Make a state."""
    body = _selector("", "", 0) + _id(state.destination, state.spi) + _address(state.source) + _LIFETIME + _CURRENT
    body += _STATE_TAIL.pack(0, state.request, socket.AF_INET, _TRANSPORT, 0, 0)
    body += netlink.attribute(_ALG_CRYPT, _algorithm("cbc(aes)", state.cipher_key))
    body += netlink.attribute(_ALG_AUTH_TRUNC, _algorithm("hmac(sha256)", state.auth_key, 128))
    body += netlink.u32(_EXTRA_FLAGS, _SEQUENCE_MAY_WRAP)
    words = f"encrypt {state.source} to {state.destination}"
    return Request(words, _NEWSA, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def forget_state_request(state: State) -> Request:
    """Remove a state."""
    body = _STATE_ID.pack(
        _address(state.destination), state.spi.to_bytes(4, "big"), socket.AF_INET, socket.IPPROTO_ESP
    )
    return Request(f"forget the keys of {state.source} to {state.destination}", _DELSA, 0, body)


def policy_request(policy: Policy) -> Request:
    """Make a policy, or change the one with the same selector."""
    action = ALLOW if policy.request else BLOCK
    body = _selector(policy.source, policy.destination, policy.port) + _LIFETIME + _CURRENT
    body += _POLICY_TAIL.pack(policy.priority, 0, policy.direction, action, 0, 0)
    if policy.request:
        template = _TEMPLATE.pack(
            *(_id(policy.destination, policy.spi), socket.AF_INET, _address(policy.source), policy.request),
            *(_TRANSPORT, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        )
        body += netlink.attribute(_TMPL, template)
    return Request(f"demand encryption to {policy.destination}", _UPDPOLICY, 0, body)


def forget_policy_request(policy: Policy) -> Request:
    """Remove a policy."""
    body = _selector(policy.source, policy.destination, policy.port) + _POLICY_ID.pack(0, policy.direction)
    return Request(f"demand no encryption to {policy.destination} any more", _DELPOLICY, 0, body)


class Xfrm:
    """A socket to IPsec of the network namespace it was opened in; owns it."""

    def __init__(self) -> None:
        try:
            self._sock = Netlink.open(NETLINK_XFRM)
        except OSError as error:
            raise missing(error) from None

    def close(self) -> None:
        """Close the socket; states and policies stay."""
        self._sock.close()

    def apply(self, requests: Sequence[Request], *, ignore: Sequence[int] = ()) -> None:
        """Carry out requests one by one; `ignore`: error numbers that are none."""
        for request in requests:
            try:
                self._sock.transact([request])
            except OSError as error:
                if error.errno not in ignore:
                    raise missing(error) from None

    def states(self, request: int) -> list[State]:
        """Return the states of a request number, without their keys."""
        found = []
        for message in self._sock.dump(Request("list the states of IPsec", _GETSA, 0, b"")):
            body = message.body
            if len(body) < _STATE_SIZE or struct.unpack_from("=I", body, _REQUEST_AT)[0] != request:
                continue
            destination, spi, _ = _ID.unpack_from(body, _SELECTOR.size)
            source = body[_SELECTOR.size + _ID.size :][:4]
            number = int.from_bytes(spi, "big")
            found.append(State(str(IPv4Address(source)), str(IPv4Address(destination[:4])), number, request))
        return found


def missing(error: OSError) -> Exception:
    """Return what to raise for an error: Unsupported, naming the modules, where the kernel lacks IPsec or ESP."""
    if error.errno not in (errno.EPROTONOSUPPORT, errno.ENOSYS, errno.EOPNOTSUPP):
        return error
    return Unsupported(
        "this kernel cannot encrypt overlay networks: load its modules with 'modprobe -a xfrm_user esp4 authenc cbc "
        "echainiv', or use a kernel that has them"
    )
