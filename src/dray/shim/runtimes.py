"""Which runtime a task gets (the zygote's default `RuntimeFactory`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dray.runtime.lifecycle import BuiltinRuntime
from dray.runtime.model import Runtime


def select(path: str, arguments: Sequence[str], run_dir: str) -> Runtime:
    """Return the built-in runtime for "", else the OCI runtime at `path` with its global arguments, whose own state
    is kept in the run directory."""
    if not path:
        return BuiltinRuntime()
    from dray.runtime.external import ExternalRuntime

    return ExternalRuntime(path, arguments, state_root=Path(run_dir) / "state")
