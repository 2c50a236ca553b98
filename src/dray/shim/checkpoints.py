"""What a shim does about checkpoints; imported by the few that are asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dray.base.errors import Unsupported
from dray.runtime.model import Checkpointing, CreateRequest, Runtime, Started
from dray.shim.model import TaskCreate


def write(runtime: Runtime, task: TaskCreate, request: dict[str, Any]) -> None:
    """Write the container's processes down. The shim does nothing else meanwhile: they stand still."""
    _able(runtime, task).checkpoint(task.id, Path(request["images"]), leave_running=request["leave"])


def restoring(runtime: Runtime, task: TaskCreate) -> Callable[[CreateRequest], Started]:
    """Return the verb that makes the container from its checkpoint."""
    able = _able(runtime, task)
    return lambda request: able.restore(request, Path(task.restore))


def _able(runtime: Runtime, task: TaskCreate) -> Checkpointing:
    if not isinstance(runtime, Checkpointing):
        raise Unsupported(f"checkpoints: not with runtime {task.runtime}, only with the built-in one")
    return runtime
