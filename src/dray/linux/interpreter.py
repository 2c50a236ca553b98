"""Run the interpreter from a private mount, so that no container can reach the host's through it.

Between its fork and its execve, a container's process is this Python: `/proc/self/exe` is our interpreter, and a
container could overwrite it (CVE-2019-5736) or run it as its own program. After `reexec` the interpreter's file
lies on a detached clone of its mount, attached nowhere, that is read-only (opening it for writing fails with
EROFS) and noexec (executing `/proc/self/exe` fails with EACCES). It costs one execve and no copy.
"""

from __future__ import annotations

import os
import sys

from dray.linux import libc

_MARK = "DRAY_PRIVATE_INTERPRETER"


def reexec() -> None:
    """Execute this same Python program again from a private mount of its interpreter; return once that is so.

    Call it first thing in `main`. Without the right to mount (rootless) it returns at once: then the interpreter
    belongs to another user and cannot be written anyway.
    """
    inherited = os.environ.pop(_MARK, "")
    if inherited.isdigit():
        _lock(int(inherited))
        return
    try:
        tree = libc.open_tree(libc.AT_FDCWD, os.path.realpath("/proc/self/exe"), libc.OPEN_TREE_CLONE)
    except PermissionError:
        return
    read_only = libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
    libc.mount_setattr(tree, "", libc.AT_EMPTY_PATH, attr_set=read_only)
    os.set_inheritable(tree, True)
    # argv[0] leads the new interpreter to its virtual environment, whatever file it runs from.
    argv = [sys.executable, *sys.orig_argv[1:]]
    os.execve(f"/proc/self/fd/{tree}", argv, {**os.environ, _MARK: str(tree)})  # noqa: S606 - ourselves again


def _lock(tree: int) -> None:
    """Forbid further executions; the mount lives on as long as this process and its forks run from it."""
    try:
        libc.mount_setattr(tree, "", libc.AT_EMPTY_PATH, attr_set=libc.MOUNT_ATTR_NOEXEC)
    finally:
        os.close(tree)
