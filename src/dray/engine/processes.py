"""The OCI `process` of an exec: the container's own process with what `docker exec` changes (moby `daemon/exec`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dray.api.models import ExecConfig
from dray.engine import rootfs
from dray.engine.layout import Layout
from dray.engine.model import Container
from dray.engine.spec import capability_sets, resolve_user


def exec_process(
    container: Container, ask: ExecConfig, layout: Layout, capabilities: Sequence[str]
) -> dict[str, Any]:
    """Return the process object of an exec in a running container.

    User and groups are looked up in the container's files as they are now. With `Privileged` all `capabilities`
    that the engine may hand out are given; otherwise the container's own bounding set.
    """
    config = container.record.config
    spec = json.loads(Path(layout.task(container.id), "config.json").read_bytes())
    init = spec["process"]
    process: dict[str, Any] = {
        "args": list(ask.cmd or []),
        "cwd": ask.working_dir or config.working_dir or "/",
        "env": _environment(init["env"], ask, config.env or []),
        "terminal": ask.tty,
        "oomScoreAdj": init.get("oomScoreAdj", 0),
    }
    for inherited in ("rlimits", "noNewPrivileges", "apparmorProfile", "selinuxLabel"):
        if inherited in init:
            process[inherited] = init[inherited]
    with rootfs.of_process(container.state.pid) as root:
        passwd = rootfs.read_small_file(root, "/etc/passwd")
        group = rootfs.read_small_file(root, "/etc/group")
    user = resolve_user(passwd, group, ask.user or config.user, container.record.host_config.group_add)
    process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
    names = capabilities if ask.privileged else init.get("capabilities", {}).get("bounding", [])
    process["capabilities"] = capability_sets(names, user.uid)
    return process


def _environment(init: list[str], ask: ExecConfig, configured: Sequence[str]) -> list[str]:
    variables = dict(entry.partition("=")[::2] for entry in init)
    if ask.tty:
        variables.setdefault("TERM", "xterm")
    elif not any(entry.startswith("TERM=") for entry in configured):
        variables.pop("TERM", None)  # init may have a terminal: this process has none
    for entry in ask.env or []:
        name, given, value = entry.partition("=")
        if given:
            variables[name] = value
        else:
            variables.pop(name, None)
    return [f"{name}={value}" for name, value in variables.items()]
