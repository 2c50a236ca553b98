"""Lifecycle hooks: programs that get the container's state on their standard input (runtime-spec config.md "Hooks").

prestart, createRuntime   in the runtime's namespaces, after the mounts, before pivot_root
createContainer           in the container's namespaces, before pivot_root
startContainer            in the container, before execve
poststart, poststop       in the runtime's namespaces; a poststart that fails ends the container, a poststop only warns
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dray.base.errors import InvalidParameter, StartError
from dray.linux import libc


@dataclass(frozen=True, slots=True)
class Hook:
    """One program; `timeout` in seconds, None for ever."""

    path: str
    args: tuple[str, ...]
    env: dict[str, str]
    timeout: int | None


def hooks_of(spec: dict[str, Any], *kinds: str) -> tuple[Hook, ...]:
    """Return the spec's hooks of these kinds, in order; InvalidParameter for one that makes no sense."""
    found = []
    for kind in kinds:
        for entry in (spec.get("hooks") or {}).get(kind) or ():
            path = entry.get("path") or ""
            if not path.startswith("/"):
                raise InvalidParameter(f"hooks.{kind}: path must be absolute, not {path!r}")
            timeout = entry.get("timeout")
            if timeout is not None and timeout <= 0:
                raise InvalidParameter(f"hooks.{kind}: timeout must be greater than zero")
            env = dict(item.partition("=")[::2] for item in entry.get("env") or ())
            found.append(Hook(path, tuple(entry.get("args") or (path,)), env, timeout))
    return tuple(found)


def run_hooks(hooks: Sequence[Hook], state: dict[str, Any]) -> None:
    """Run hooks one after the other; StartError at the first that fails."""
    for hook in hooks:
        _run(hook, msgspec.json.encode(state))


def warn_of_hooks(hooks: Sequence[Hook], state: dict[str, Any]) -> None:
    """Run hooks one after the other; one that fails is told on stderr and hinders nothing (poststop)."""
    for hook in hooks:
        try:
            _run(hook, msgspec.json.encode(state))
        except StartError as error:
            print(f"warning: {error}", file=sys.stderr)


def _run(hook: Hook, state: bytes) -> None:
    stdin = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        os.write(stdin, state)
        os.lseek(stdin, 0, os.SEEK_SET)
        with os.fdopen(os.memfd_create("output", os.MFD_CLOEXEC), "w+b") as output:
            actions = [
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
            ]
            try:
                pid = os.posix_spawn(
                    hook.path,
                    hook.args,
                    hook.env,
                    file_actions=actions,
                    setsigmask=(),
                    setsigdef=(signal.SIGPIPE,),
                )
            except OSError as error:
                raise StartError(f"error running hook {hook.path}: {error.strerror}") from error
            code = _wait(pid, hook.timeout)
            output.seek(0)
            said = output.read(4096).decode(errors="replace").strip()
    finally:
        os.close(stdin)
    if code is None:
        raise StartError(f"error running hook {hook.path}: timed out after {hook.timeout} s")
    if code:
        raise StartError(f"error running hook {hook.path}: exit status {code}, output: {said}")


def _wait(pid: int, timeout: int | None) -> int | None:
    """Reap the hook; its exit code, None when it was killed for taking too long."""
    pidfd = libc.pidfd_open(pid)
    try:
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        late = not poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000)
        if late:
            with contextlib.suppress(ProcessLookupError):
                libc.pidfd_send_signal(pidfd, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return None if late else code
    finally:
        os.close(pidfd)
