"""Where the engine keeps things.

<data-root>/                   durable, 0711 so that volumes can be reached by the path that is told to users
  dray.lock                    held by the daemon (flock(2)); another one is refused
  dray.db                      every record
  content/  overlay2/          blobs and layers (see `store`)
  volumes/                     see `volumes.local`
  containers/<id>/             hosts, hostname, resolv.conf, <id>-json.log, exit.json
  trash/                       what is being removed
<exec-root>/                   volatile, gone after a reboot
  dray.lock                    as above
  tasks/<id>/                  config.json, task.json, shim.sock (see `shim.model`)
"""

from __future__ import annotations

import os

from msgspec import Struct


class Layout(Struct, frozen=True):
    """Paths under the data root and the exec root."""

    data_root: str
    exec_root: str

    def prepare(self) -> None:
        """Make the directories; no other user may look inside."""
        os.makedirs(self.data_root, mode=0o711, exist_ok=True)
        for path in (f"{self.data_root}/containers", f"{self.data_root}/trash"):
            os.makedirs(path, mode=0o700, exist_ok=True)
        os.makedirs(f"{self.exec_root}/tasks", mode=0o700, exist_ok=True)
        os.chmod(self.exec_root, 0o700)

    @property
    def database(self) -> str:
        """The file of all records."""
        return f"{self.data_root}/dray.db"

    @property
    def trash(self) -> str:
        """Where directories wait for their removal."""
        return f"{self.data_root}/trash"

    @property
    def containers(self) -> str:
        """The durable directories of all containers."""
        return f"{self.data_root}/containers"

    def container(self, container_id: str) -> str:
        """A container's durable directory."""
        return f"{self.data_root}/containers/{container_id}"

    def container_trash(self, container_id: str) -> str:
        """Where a container's directory goes when it is removed."""
        return f"{self.data_root}/trash/container-{container_id}"

    def task(self, container_id: str) -> str:
        """A container's volatile directory."""
        return f"{self.exec_root}/tasks/{container_id}"

    @property
    def tasks(self) -> str:
        """The directory of all tasks."""
        return f"{self.exec_root}/tasks"
