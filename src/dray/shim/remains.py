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
    with contextlib.suppress(DrayError, OSError):
        select = load(arguments["factory"])
        runtime = select(arguments["runtime"], arguments["runtime_args"], arguments["run_dir"])
        with contextlib.suppress(DrayError, OSError):  # the built-in runtime's memory went with the shim
            runtime.kill(container, signal.SIGKILL, all_processes=True)
        with contextlib.suppress(DrayError, OSError):
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
