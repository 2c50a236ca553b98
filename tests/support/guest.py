"""A virtual machine that runs while a test does: boot, run commands inside, cut its power, boot it again.

qemu emulates the processor, so nothing here is quick: a boot takes some 25 seconds, a program runs about ten times
slower than on the host. The disk is a copy of the cached one and dies with the machine's folder.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

BOOT_SECONDS = 120
BOOTS = 3  # now and then an emulated machine stands still before its kernel says a word


class Guest:
    """One machine with its disk in `folder`; `images` has what `images.machine.make` wrote."""

    def __init__(self, folder: Path, images: Path) -> None:
        self._folder = folder
        self._images = images
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._pending = b""
        self.kernel = ""
        disk = ["cp", "--sparse=always", "--reflink=auto", str(images / "disk.img"), str(folder / "disk.img")]
        subprocess.run(disk, check=True)

    def boot(self) -> None:
        """Start the machine; returns when its agent answers. One that never does is switched off and on again."""
        for attempt in range(1, BOOTS + 1):
            try:
                self._boot()
                return
            except AssertionError:
                self.cut()
                if attempt == BOOTS:
                    raise

    def _boot(self) -> None:
        agent = self._folder / "agent.sock"
        agent.unlink(missing_ok=True)
        options = "console=ttyS0 rw quiet apparmor=1 security=apparmor systemd.unified_cgroup_hierarchy=1"
        self._qemu = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
                *("-smp", "2", "-m", "1024", "-nodefaults", "-display", "none"),
                *("-kernel", str(self._images / "vmlinuz"), "-initrd", str(self._images / "initrd")),
                *("-append", options),
                *("-drive", f"file={self._folder / 'disk.img'},format=raw,if=virtio,cache=writeback"),
                *("-device", "virtio-serial", "-chardev", f"socket,id=agent,path={agent},server=on,wait=off"),
                *("-device", "virtserialport,chardev=agent,name=agent"),
                *("-serial", f"file:{self._folder / 'console.log'}"),
            ]
        )
        self._connect(agent, time.monotonic() + BOOT_SECONDS)

    def _connect(self, agent: Path, deadline: float) -> None:
        port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                port.connect(str(agent))
                break
            except OSError:
                self._alive(deadline)
                time.sleep(0.1)
        self._port, self._pending = port, b""
        self.kernel = json.loads(self._line(deadline))["ready"]

    def _alive(self, deadline: float) -> None:
        assert self._qemu is not None
        if self._qemu.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the machine does not answer; its console:\n{self.console()[-4000:]}")

    def _line(self, deadline: float) -> bytes:
        assert self._port is not None
        while b"\n" not in self._pending:
            self._port.settimeout(1)
            try:
                chunk = self._port.recv(65536)
            except TimeoutError:
                chunk = b""
                self._alive(deadline)
            else:
                if not chunk:
                    raise AssertionError(f"the machine has gone; its console:\n{self.console()[-4000:]}")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def console(self) -> str:
        """What the kernel and systemd have printed."""
        log = self._folder / "console.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def run(self, *command: str, input: str = "", timeout: float = 120) -> tuple[int, str]:
        """Run a program inside; return its exit code and all its output. One word is a shell's line."""
        assert self._port is not None, "the machine is off"
        words = ["sh", "-c", command[0]] if len(command) == 1 else list(command)
        ask = {"command": words, "input": input, "timeout": timeout}
        self._port.settimeout(None)
        self._port.sendall(json.dumps(ask).encode() + b"\n")
        answer = json.loads(self._line(time.monotonic() + timeout + 30))
        return answer["code"], answer["out"]

    def ok(self, *command: str, input: str = "", timeout: float = 120) -> str:
        """As `run`; the output without the last newline, an AssertionError if it failed."""
        code, out = self.run(*command, input=input, timeout=timeout)
        assert code == 0, f"{shlex.join(command)} ended with {code}:\n{out}"
        return out.rstrip("\n")

    def reboot(self) -> None:
        """Restart the system in an orderly way; returns when it is up again."""
        assert self._port is not None
        before = self.ok("cat", "/proc/sys/kernel/random/boot_id")
        self.run("systemctl reboot")
        try:
            self.kernel = json.loads(self._line(time.monotonic() + 2 * BOOT_SECONDS))["ready"]
        except AssertionError:
            self.cut()  # a machine that comes up later would answer the next test's first command with its "ready"
            raise
        assert self.ok("cat", "/proc/sys/kernel/random/boot_id") != before

    def cut(self) -> None:
        """Cut the power: what the guest had not written to its disk is lost."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
        if self._port is not None:
            self._port.close()
        self._qemu = self._port = None

    def close(self) -> None:
        """Cut the power for good."""
        self.cut()
        shutil.rmtree(self._folder, ignore_errors=True)
