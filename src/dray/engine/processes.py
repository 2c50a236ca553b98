"""The OCI `process` of an exec: the container's own process with what `docker exec` changes (moby `daemon/exec`)."""

from __future__ import annotations

from typing import Any

from dray.api.models import ExecConfig
from dray.base.errors import InvalidParameter
from dray.engine.model import Container


def exec_process(container: Container, ask: ExecConfig, init: dict[str, Any]) -> dict[str, Any]:
    """Return the process object; `init` is that of the container's own spec."""
    raise InvalidParameter("x")
