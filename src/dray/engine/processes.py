"""The OCI `process` of an exec: the container's own process with what `docker exec` changes (moby `daemon/exec`)."""

from __future__ import annotations

import copy
from typing import Any

from dray.api.models import ExecConfig
from dray.base.errors import InvalidParameter
from dray.engine import rootfs
from dray.engine.model import Container
from dray.engine.spec import ALL_CAPABILITIES, DEFAULT_PATH, resolve_user


def exec_process(container: Container, ask: ExecConfig, init: dict[str, Any]) -> dict[str, Any]:
    """Return the process object; `init` is that of the container's own spec."""
    raise InvalidParameter("x")
