"""Debian's podman behind the Docker API (`podman system service`), so that the official client drives it, too.

Its networks are made by CNI's plugins, which keep their leases in /var/lib/cni until the containers are removed.
"""

from __future__ import annotations

import os
import subprocess

from support.engines import Engine

CONFIGURATION = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


class PodmanService(Engine):
    """One service with storage and networks of its own."""

    name = "podman"
    subnet = "10.88.0."
    bridge = "cni-podman0"

    def command(self) -> list[str]:
        return ["podman", *self.storage(), "system", "service", "-t", "0", self.host]

    def storage(self) -> list[str]:
        """The flags that keep it in its folder."""
        return [
            *("--root", str(self.data_root), "--runroot", str(self.exec_root)),
            *("--network-config-dir", str(self.base / "networks")),
        ]

    def environment(self) -> dict[str, str]:
        path = self.base / "containers.conf"
        path.write_text(CONFIGURATION)
        return super().environment() | {"CONTAINERS_CONF": str(path)}

    def destroy(self) -> None:
        subprocess.run(
            ["podman", *self.storage(), "network", "prune", "-f"],
            env={**os.environ, **self.environment()},
            capture_output=True,
            check=False,
        )
        super().destroy()
