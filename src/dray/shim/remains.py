"""What is left when a shim was killed: its container's processes, cgroup and state (runs in a child of the zygote)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import Any

from dray.base.errors import DrayError
from dray.linux import cgroups

_PATIENCE = 10.0


def kill(arguments: dict[str, Any], _fds: list[int]) -> None:
    """Kill every process of a container, wait until they are gone, remove its cgroup and its runtime's state.

    arguments: id, run_dir (its config.json names the cgroup), runtime, runtime_args, factory (see shim.zygote)
    """
    from dray.shim.zygote import load

    container = arguments["id"]
    if arguments["runtime"]:
        _delete_by_program(arguments)
    else:
        # The built-in runtime's memory went with the shim, and init with it; any other is asked.
        with contextlib.suppress(DrayError, OSError):
            runtime = load(arguments["factory"])("", [], arguments["run_dir"])
            runtime.kill(container, signal.SIGKILL, all_processes=True)
            runtime.delete(container, force=True)
    with contextlib.suppress(DrayError, OSError, ValueError):
        with open(os.path.join(arguments["run_dir"], "config.json"), "rb") as config:
            path = json.load(config).get("linux", {}).get("cgroupsPath") or ""
        cgroup = cgroups.load(path, container)
        cgroup.kill()
        deadline = time.monotonic() + _PATIENCE
        while cgroup.pids() and time.monotonic() < deadline:
            time.sleep(0.002)
        cgroup.delete()


def _delete_by_program(arguments: dict[str, Any]) -> None:
    """Let an OCI runtime kill and delete the container; its state is on disk (see shim.runtimes)."""
    root = os.path.join(arguments["run_dir"], "state")
    command = [arguments["runtime"], *arguments["runtime_args"], "--root", root]
    with contextlib.suppress(OSError):
        null = (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)
        pid = os.posix_spawnp(
            command[0], [*command, "delete", "--force", arguments["id"]], os.environ, file_actions=[null]
        )
        os.waitpid(pid, 0)
