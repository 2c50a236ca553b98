"""Beside firewalld, on a bus of the test's own: containers reach the outside, published ports stay open, whatever
firewalld does. Debian's package firewalld is not among those that `make deps` installs: it would start on the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import Drayd, Engine, until
from support.world import HOST_ADDRESS, World

pytestmark = [
    pytest.mark.drayd_only("dockerd wants the machine's own bus"),
    pytest.mark.skipif(
        not (shutil.which("firewalld") and shutil.which("dbus-daemon")), reason="needs firewalld and dbus-daemon"
    ),
]

OUTSIDE = "198.51.100.1"
CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>{bus}</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""
CONNECT = f"import socket; socket.create_connection(('{HOST_ADDRESS}', 18080), timeout=5)"


class Firewalld:
    """A bus, and firewalld on it, in this network namespace."""

    def __init__(self, folder: Path) -> None:
        self.bus = f"unix:path={folder}/bus"
        self._env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": self.bus}
        (folder / "bus.conf").write_text(CONFIGURATION.format(bus=self.bus))
        self._bus = self._spawn("dbus-daemon", "--nofork", "--config-file", str(folder / "bus.conf"))
        until((folder / "bus").exists, what="the bus")
        self.start()

    def _spawn(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self) -> None:
        self._daemon = self._spawn("firewalld", "--nofork", "--nopid")
        until(lambda: self.run("--state").returncode == 0, what="firewalld")

    def stop(self) -> None:
        self._daemon.terminate()
        self._daemon.wait()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """firewall-cmd."""
        return subprocess.run(["firewall-cmd", *words], env=self._env, capture_output=True, text=True, check=False)

    def trusted(self) -> set[str]:
        return set(self.run("--zone=trusted", "--list-interfaces").stdout.split())

    def close(self) -> None:
        self.stop()
        self._bus.terminate()
        self._bus.wait()


@pytest.fixture
def firewalld(world: World, tmp_path: Path) -> Iterator[Firewalld]:
    subprocess.run(["mount", "-t", "tmpfs", "none", "/etc/firewalld"], check=True)
    for name in ("zones", "services", "ipsets", "policies", "icmptypes", "helpers"):
        Path("/etc/firewalld", name).mkdir()
    made = Firewalld(tmp_path)
    try:
        yield made
    finally:
        made.close()
        subprocess.run(["umount", "-l", "/etc/firewalld"], check=True)
        subprocess.run(["nft", "delete", "table", "inet", "firewalld"], capture_output=True, check=False)


@pytest.fixture
def outside() -> Iterator[int]:
    """A neighbour on the wire, in a namespace of its own; the pid of a process there."""
    with subprocess.Popen(["unshare", "-n", "sleep", "600"]) as there:
        until(
            lambda: os.stat(f"/proc/{there.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino,
            what="the neighbour",
        )
        inside = ["nsenter", "-t", str(there.pid), "-n"]
        subprocess.run(["ip", "link", "set", "wire0", "netns", str(there.pid)], check=True)
        subprocess.run([*inside, "ip", "address", "add", f"{OUTSIDE}/24", "dev", "wire0"], check=True)
        subprocess.run([*inside, "ip", "link", "set", "wire0", "up"], check=True)
        try:
            yield there.pid
        finally:
            subprocess.run([*inside, "ip", "link", "set", "wire0", "netns", str(os.getpid())], check=True)
            subprocess.run(["ip", "link", "set", "wire0", "up"], check=True)
            there.kill()


def test_beside_firewalld(engine: Engine, firewalld: Firewalld, outside: int) -> None:
    assert isinstance(engine, Drayd)
    engine.stop()
    engine.variables["DBUS_SYSTEM_BUS_ADDRESS"] = firewalld.bus
    try:
        engine.start()
        engine.ok("run", "-d", "--name", "web", "-p", "18080:80", "variants:web")
        engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")

        def both_ways() -> bool:
            out = engine.docker("exec", "box", "ping", "-c1", "-W1", OUTSIDE).returncode == 0
            words = ["nsenter", "-t", str(outside), "-n", sys.executable, "-c", CONNECT]
            return out and subprocess.run(words, capture_output=True, check=False).returncode == 0

        until(both_ways, what="both ways")
        for what in ("--reload", "--complete-reload"):
            assert firewalld.run(what).returncode == 0
            until(lambda: firewalld.trusted() == {"dray0"} and both_ways(), what=f"both ways after {what}")
        firewalld.stop()
        engine.ok("network", "create", "mine")
        bridge = f"br-{engine.inspect('mine', kind='network')['Id'][:12]}"
        firewalld.start()
        until(lambda: firewalld.trusted() == {"dray0", bridge} and both_ways(), what="both ways after a restart")
        firewalld.run("--zone=trusted", "--remove-interface", bridge)
        firewalld.run("--zone=work", "--add-interface", bridge)
        engine.ok("network", "create", "other")
        until(lambda: len(firewalld.trusted()) == 2, what="the other bridge")
        assert bridge not in firewalld.trusted(), "what somebody has put elsewhere stays there"
        engine.ok("network", "rm", "mine", "other")
        until(lambda: firewalld.trusted() == {"dray0"}, what="removed bridges")
        assert "firewalld" not in engine.docker("info").stderr
    finally:
        engine.variables.pop("DBUS_SYSTEM_BUS_ADDRESS")
        engine.restart()
