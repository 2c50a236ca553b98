"""What to do when no daemon answers: which address was tried, why it failed, how to start one."""

from __future__ import annotations

import errno
import os

from dray.client import address as addresses
from dray.client.errors import ConnectError


def connect_hint(error: ConnectError) -> str:
    """Return advice for a failed connection; empty when there is nothing to add."""
    where = addresses.parse(error.host)
    reason = error.cause.errno if error.cause is not None else None
    if where.scheme == "unix":
        if reason in (errno.EACCES, errno.EPERM):
            return (
                f"Hint: you may not write to {where.path}; use sudo, or ask to be added to the group that owns it."
            )
        if reason == errno.ENOENT:
            listen = "" if where.path == addresses.DEFAULT_SOCKET else f" -H {where.text}"
            if not os.path.isdir(os.path.dirname(where.path)):
                return f"Hint: {where.path} does not exist, nor does its folder; check -H, DOCKER_HOST or the context."
            return f"Hint: {where.path} does not exist. Start the daemon: sudo drayd{listen}"
        if reason == errno.ECONNREFUSED:
            return (
                f"Hint: {where.path} exists but nobody listens there: the daemon has ended. Start it: sudo drayd"
            )
        return ""
    if where.scheme == "tcp" and reason == errno.ECONNREFUSED:
        return (
            f"Hint: nobody listens at {where.host}:{where.port}; start the daemon there with drayd -H {where.text}"
        )
    return ""
