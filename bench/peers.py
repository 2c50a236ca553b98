"""Who pulls and pushes in the image tables: engines, podman, and the limit that plain tools set.

A `Peer` has a folder (`data`) whose size is its use of the disk, an `Account` that counts what it costs, and verbs on
names of images at a registry on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from accounting import Account

from support.engines import ENGINES, Engine

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
QUIET = 0.05  # processor seconds in a second: what background work there was is done


class Peer(Protocol):
    """One subject of the image tables."""

    name: str
    account: Account
    data: Path

    def pull(self, image: str) -> None:
        """Fetch `host:port/name` and unpack it."""

    def push(self, image: str, target: str) -> None:
        """Send an image that is here to another name."""

    def run(self, image: str) -> None:
        """Fetch it, run `true` in it, remove the container."""

    def forget(self, *images: str) -> None:
        """Remove images and all that they held on the disk; returns when that is done."""

    def close(self) -> None:
        """Stop it and remove its folder."""


def settle(account: Account, *, timeout: float = 60) -> None:
    """Wait until nothing works in the background any more, and the disk has what was written."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        before = account.processor()
        time.sleep(0.5)
        if account.processor() - before < QUIET / 2:
            break
    os.sync()


class Daemon:
    """An engine behind the official client."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.account = Account(name)
        self.engine: Engine = ENGINES[name]()
        self.data = self.engine.data_root
        with self.account.inside():
            self.engine.start()

    def pull(self, image: str) -> None:
        self.engine.ok("pull", "-q", image, timeout=300)

    def push(self, image: str, target: str) -> None:
        self.engine.ok("tag", image, target)
        self.engine.ok("push", "-q", target, timeout=300)

    def run(self, image: str) -> None:
        self.engine.ok("run", "--rm", "--network", "none", image, "true", timeout=300)

    def forget(self, *images: str) -> None:
        self.engine.docker("rmi", "-f", *images, timeout=120)
        settle(self.account)

    def close(self) -> None:
        self.engine.remove_everything()
        self.engine.stop()
        self.engine.destroy()
        self.account.close()


class Podman:
    """Debian's podman, with storage of its own: each verb is a process."""

    name = "podman"

    def __init__(self) -> None:
        self.account = Account(self.name)
        self._folder = Path(tempfile.mkdtemp(prefix="podman-", dir="/var/tmp"))
        self.data = self._folder / "data"
        self._options = [
            *("--root", str(self.data), "--runroot", str(self._folder / "run"), "--storage-driver", "overlay"),
            *("--cgroup-manager", "cgroupfs", "--events-backend", "none"),
        ]
        self.ok("info")

    def ok(self, *words: str) -> None:
        """Run podman, insist on success."""
        with self.account.inside():
            process = subprocess.Popen(
                ["podman", *self._options, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, f"podman {' '.join(words)}: {out[-500:]}"

    def pull(self, image: str) -> None:
        self.ok("pull", "-q", "--tls-verify=false", image)

    def push(self, image: str, target: str) -> None:
        self.ok("push", "-q", "--tls-verify=false", image, f"docker://{target}")

    def run(self, image: str) -> None:
        self.ok("run", "--rm", "--network", "none", "--tls-verify=false", image, "true")

    def forget(self, *images: str) -> None:
        self.ok("rmi", "-f", "--ignore", *images)
        settle(self.account)

    def close(self) -> None:
        subprocess.run(["podman", *self._options, "system", "reset", "-f"], capture_output=True, check=False)
        subprocess.run(["umount", "-l", str(self.data / "overlay")], capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        self.account.close()


class Limit:
    """What curl, sha256sum, gunzip and tar take for the same bytes, two layers at a time.

    Nothing is kept as a blob, nothing is put on the disk for good, every layer goes into a folder of its own.
    """

    name = "limit"

    def __init__(self) -> None:
        self.account = Account(self.name)
        self.data = Path(tempfile.mkdtemp(prefix="limit-", dir="/var/tmp"))

    def shell(self, script: str) -> None:
        """Run a script of bash, insist on success."""
        with self.account.inside():
            process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", script], stdout=subprocess.DEVNULL)
        assert process.wait(300) == 0, script

    def layers(self, image: str) -> list[str]:
        """The addresses of an image's layers."""
        host, _, name = image.partition("/")
        request = urllib.request.Request(f"http://{host}/v2/{name}/manifests/latest", headers={"Accept": MANIFEST})
        with urllib.request.urlopen(request) as answer:
            manifest = json.load(answer)
        return [f"http://{host}/v2/{name}/blobs/{layer['digest']}" for layer in manifest["layers"]]

    def each(self, urls: list[str], script: str) -> None:
        """Run a script for each address (`$1`; `$2` is its number), two at a time."""
        words = " ".join(f"{url} {number}" for number, url in enumerate(urls))
        self.shell(f"cd {self.data}; echo {words} | xargs -n2 -P2 bash -euo pipefail -c '{script}' layer")

    def pull(self, image: str) -> None:
        fetch = 'mkdir "$2"; curl -sf "$1" | tee >(sha256sum >/dev/null) | gunzip | tee >(sha256sum >/dev/null) | tar -x -C "$2"'
        self.each(self.layers(image), fetch)

    def push(self, image: str, target: str) -> None:
        raise AssertionError("no plain tools for this")

    run = pull  # type: ignore[assignment]

    def forget(self, *images: str) -> None:
        shutil.rmtree(self.data)
        self.data.mkdir()
        settle(self.account)

    def close(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        self.account.close()


PEERS: dict[str, Callable[[], Peer]] = {
    "drayd": lambda: Daemon("drayd"),
    "dockerd": lambda: Daemon("dockerd"),
    "podman": Podman,
    "limit": Limit,
}
