"""Named failpoints: places where a test kills the daemon, to see that its next start puts everything right.

    DRAY_FAILPOINT=NAME[:COUNT]    SIGKILL to the process itself when it passes NAME for the COUNT-th time (default 1)

A failpoint stands behind a step whose effect outlives the process: something made in the kernel, or written to the
records. `POINTS` names them all, each with what is done by then, grouped by the verb before the first dot; a test
of the sources holds that every one of them stands somewhere, and that nothing else does. With the variable unset
(`names()` says what it may be) passing one is a call of an empty function.

Only the daemon passes failpoints, so the variable does no harm in what it starts.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping

from dray.base.errors import InvalidParameter

VARIABLE = "DRAY_FAILPOINT"

POINTS: Mapping[str, str] = {
    "network-create.chosen": "the subnets are chosen, nothing is written",
    "network-create.recorded": "the network is in the records",
    "network-create.rules": "the firewall knows it",
    "network-create.interface": "its bridge is there",
    "network-create.done": "everything but the answer",
    "network-remove.begun": "nothing yet",
    "network-remove.interface": "its bridge is gone",
    "network-remove.forgotten": "its record is gone",
    "network-remove.done": "the firewall has forgotten it",
    "connect.addressed": "an address is taken",
    "connect.plugged": "the container has the interface",
    "connect.wired": "the interface has address and routes",
    "connect.routed": "default route and published ports have moved",
    "connect.named": "the resolver knows the endpoint",
    "connect.recorded": "everything but the answer",
    "disconnect.unplugged": "the host's end is cut off",
    "disconnect.released": "the container's interface is gone, its address is free",
    "disconnect.routed": "default route and published ports have moved",
    "disconnect.named": "the resolver has forgotten the endpoint",
    "disconnect.recorded": "everything but the answer",
    "start.mounts": "the volumes are mounted",
    "start.namespace": "there is a network namespace",
    "start.addressed": "addresses are taken",
    "start.plugged": "interfaces are made",
    "start.wired": "they have addresses and routes",
    "start.published": "the host's ports lead to the container",
    "start.named": "the resolver was told",
    "start.files": "the container's own files and its shared memory are there",
    "start.task": "the program runs",
    "start.recorded": "everything but the answer",
    "stop.recorded": "the end is in the records",
    "stop.unplugged": "the host's ends are cut off",
    "stop.released": "ports and addresses are free",
    "stop.named": "the resolver has forgotten the container",
    "stop.done": "its shim has ended",
    "stop.unmounted": "a volume that its options had mounted is unmounted",
    "volume-create.made": "the folder is there, the record is not",
    "volume-create.recorded": "everything but the answer",
    "volume-mount.mounted": "what the volume's options name is mounted",
    "volume-remove.marked": "its record says that it is being removed",
    "volume-remove.done": "everything but the answer",
    "discard.recorded": "what a blob is made from again is on disk, and so is the blob",
    "discard.dropped": "the blob is gone",
    "restore.made": "the blob is back, what it was made from is still there",
    "edit.noted": "it is on disk that the container shall run again",
    "edit.stopped": "its run is over",
    "edit.volumes": "the new volumes are made",
    "edit.written": "the new record is written",
    "edit.started": "it runs as it is now",
}


def names(verb: str = "") -> list[str]:
    """Return the names of all failpoints, or of those of one verb, in the order in which they are passed."""
    return [name for name in POINTS if not verb or name.partition(".")[0] == verb]


def _off(name: str) -> None:
    """Pass a failpoint: nothing is armed."""


def _armed(setting: str) -> Callable[[str], None]:
    wanted, _, count = setting.partition(":")
    if wanted not in POINTS or (count and not (count.isascii() and count.isdigit() and int(count))):
        raise InvalidParameter(f"{VARIABLE}={setting}: it is NAME[:COUNT], NAME one of {', '.join(POINTS)}")
    left = int(count or 1)
    lock = threading.Lock()

    def reach(name: str) -> None:
        nonlocal left
        if name != wanted:
            return
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()  # the signal may be another thread's to take

    return reach


def _of_environment() -> Callable[[str], None]:
    setting = os.environ.get(VARIABLE, "")
    return _armed(setting) if setting else _off


reach = _of_environment()
