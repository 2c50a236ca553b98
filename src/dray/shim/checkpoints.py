"""How a shim makes its container from a checkpoint; imported by the few that are asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dray.base.errors import Unsupported
from dray.runtime.model import CreateRequest, Restoring, Runtime, Started
from dray.shim.model import TaskCreate


def restoring(runtime: Runtime, task: TaskCreate) -> Callable[[CreateRequest], Started]:
    """Return the verb that makes the container from its checkpoint."""
    if not isinstance(runtime, Restoring):
        raise Unsupported(f"checkpoints: not with runtime {task.runtime}, only with the built-in one")
    able = runtime
    return lambda request: able.restore(request, Path(task.restore))
