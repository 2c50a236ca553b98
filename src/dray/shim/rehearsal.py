"""What a zygote does once before it forks: go through the motions of a container's start, without a container.

A forked Python writes to the pages of all that it uses for the first time: the interpreter rewrites code that runs
often (PEP 659), remembers where types keep their methods, and fills the holes that start-up left in its heap. All
of it is done here, so that the forks share the result instead of making it again, each for itself.
Nothing here is visible outside the process; what is opened is closed.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import msgspec

from dray.base.errors import Internal
from dray.base.files import remove_tree
from dray.linux import cgroups
from dray.runtime import init, validate
from dray.runtime.document import outline
from dray.runtime.hooks import hooks_of
from dray.runtime.lifecycle import BuiltinRuntime
from dray.runtime.model import CreateRequest, Mount, Started
from dray.runtime.program import limits_of
from dray.runtime.template import default_spec
from dray.shim.model import LogSpec, MountSpec, TaskCreate
from dray.shim.shim import Shim
from dray.wire import rpc

_TIMES = 12  # calls after which the interpreter has settled (PEP 659: eight, and some for what comes later)


def rehearse() -> None:
    """Rehearse (some 20 ms). A DrayError or OSError (no cgroups, no room for temporary files) is no harm done."""
    spec = default_spec()
    spec["process"]["terminal"] = False
    text = msgspec.json.encode(spec)
    directory = tempfile.mkdtemp(prefix="dray-zygote-")
    try:
        for number in range(_TIMES):
            init.plan(_plan(text))
            _serve(text, f"{directory}/{number}")
    finally:
        signal.set_wakeup_fd(-1)
        remove_tree(directory)


class _NoProcess(BuiltinRuntime):
    """Makes and starts nothing."""

    def create(self, request: CreateRequest) -> Started:
        return Started(0)

    def start(self, id: str) -> None:
        pass


def _serve(text: bytes, directory: str) -> None:
    """Let a shim make a container up to the fork of its init, and undo it."""
    os.mkdir(directory, 0o700)
    with open(f"{directory}/config.json", "wb") as config:
        config.write(text)
    task = TaskCreate(
        id="rehearsal",
        run_dir=directory,
        state_dir=directory,
        rootfs=[MountSpec("overlay", "overlay", ["lowerdir=/:/"])],
        log=LogSpec(path=f"{directory}/log"),
    )
    ours, theirs = rpc.pair()
    daemon = rpc.Channel(ours)
    shim = Shim(lambda *_arguments: _NoProcess())
    shim.connect(theirs)
    try:
        for method, params in (("create", {"task": task, "attachments": []}), ("state", {})):
            daemon.send({"id": 1, "method": method, "params": params})
            shim.turn()
            answer = daemon.receive()
            if answer is None or "error" in answer.json():
                raise Internal(f"a rehearsed {method} failed: {answer and answer.json()}")
    finally:
        shim.abandon()
        daemon.close()


def _plan(text: bytes) -> init.Order:
    """Decide what a shim decides before it forks init."""
    rootfs = [Mount("overlay", "overlay", ("lowerdir=/:/",))]
    request = CreateRequest(id="rehearsal", bundle=Path("/"), spec=text, rootfs=rootfs)
    spec = outline(request.spec)
    spaces = validate.namespaces_of(spec, {})
    limits_of(spec["process"])
    hooks_of(spec, "prestart", "createRuntime")
    return init.Order(
        request=request,
        own=spaces.own,
        cgroup=cgroups.load("/rehearsal", request.id),
        makes_cgroup=False,
        user_namespace="",
        join={},
        wants_hooks=False,
        die_with_parent=True,
        pivot=True,
        starts=None,
    )
