"""A line that can be cut: the way from a private world to a listener, over two more network namespaces.

    world  near0 10.211.0.1 ── middle 10.211.0.2 · 10.211.0.5 ── 10.211.0.6 far

A cut is silent: nobody gets an error, a reset or an ICMP message, packets just do not arrive any more. So whoever
waits at an end of the line has to notice by itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

from dray.linux import libc
from support.dnslab import entered

NEAR, FAR = "10.211.0.1", "10.211.0.6"
WAYS = ("drop", "link")  # how it is cut: by a firewall in the middle, by taking a link down


def _namespace() -> int:
    """Make a network namespace with loopback up; it lives while the descriptor that is returned does."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.unshare(libc.CLONE_NEWNET)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        libc.setns(home, libc.CLONE_NEWNET)
        os.close(home)


class Line:
    """The line, whole; a context manager that takes it down."""

    def __init__(self) -> None:
        self._middle, self._far = _namespace(), _namespace()
        subprocess.run(
            ["ip", "-batch", "-"],
            input="\n".join(
                [
                    f"link add near0 type veth peer name near1 netns /proc/{os.getpid()}/fd/{self._middle}",
                    f"addr add {NEAR}/30 dev near0",
                    "link set near0 up",
                ]
            ),
            text=True,
            check=True,
        )
        self._in(
            self._middle,
            f"link add far0 type veth peer name far1 netns /proc/{os.getpid()}/fd/{self._far}",
            "addr add 10.211.0.2/30 dev near1",
            "addr add 10.211.0.5/30 dev far0",
            "link set near1 up",
            "link set far0 up",
        )
        self._in(
            self._far, f"addr add {FAR}/30 dev far1", "link set far1 up", f"route add {NEAR}/32 via 10.211.0.5"
        )
        subprocess.run(["ip", "route", "add", f"{FAR}/32", "via", "10.211.0.2"], check=True)
        with entered(self._middle), open("/proc/sys/net/ipv4/ip_forward", "w") as file:
            file.write("1")

    @staticmethod
    def _in(netns: int, *commands: str) -> None:
        with entered(netns):
            subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)

    def listener(self) -> socket.socket:
        """A listening socket at the far end."""
        with entered(self._far):
            return socket.create_server((FAR, 0), backlog=64)

    def cut(self, way: str = "drop") -> None:
        """Let nothing through any more, in neither direction."""
        if way == "link":
            self._in(self._middle, "link set near1 down")
            return
        rules = "table ip cut { chain forward { type filter hook forward priority 0; policy drop; }\n}\n"
        with entered(self._middle):
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    def mend(self) -> None:
        """Let everything through again."""
        self._in(self._middle, "link set near1 up")
        with entered(self._middle):
            subprocess.run(["nft", "flush", "ruleset"], check=True)

    def close(self) -> None:
        """Take it down."""
        subprocess.run(["ip", "link", "del", "near0"], check=False)
        for one in (self._middle, self._far):
            with contextlib.suppress(OSError):
                os.close(one)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
