"""What is left when a shim was killed: its container's processes, cgroup and state (runs in a child of the zygote)."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

from dray.base.errors import DrayError

_PATIENCE = 10.0


def kill(arguments: dict[str, Any], _fds: list[int]) -> None:
    """Kill every process of the container `id`, wait until they are gone, and delete it from its runtime."""
    from dray.shim.zygote import load

    runtime = load(arguments["factory"])(arguments["runtime"], arguments["runtime_args"])
    container = arguments["id"]
    with contextlib.suppress(DrayError, OSError):
        runtime.kill(container, signal.SIGKILL, all_processes=True)
    deadline = time.monotonic() + _PATIENCE
    with contextlib.suppress(DrayError, OSError):
        while runtime.pids(container) and time.monotonic() < deadline:
            time.sleep(0.005)
    with contextlib.suppress(DrayError, OSError):
        runtime.delete(container, force=True)
