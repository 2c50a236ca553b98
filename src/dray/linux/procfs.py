"""A procfs of another pid namespace, made without showing that namespace's processes the host's files.

procfs is of the pid namespace of the process that mounts it. One that enters another container's namespace for that
is seen there, root, working directory and descriptors included: so it first lets go of all of them.
"""

from __future__ import annotations

import os
import socket

from dray.linux import libc, mounts, processes


def mount_of(pid_namespace: int, options: mounts.Options) -> int:
    """Return a detached mount of procfs, of the pid namespace of that descriptor."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid, pidfd = libc.clone3()
        if pid == 0:
            _serve(theirs.fileno(), pid_namespace, options)
        os.close(pidfd)
        theirs.close()
        data, fds, _, _ = socket.recv_fds(ours, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        os.waitpid(pid, 0)
    if not fds:
        raise OSError(
            int(data or b"3"), f"mount of another pid namespace: {os.strerror(int(data or b'3'))}", "proc"
        )
    return fds[0]


def _serve(answer: int, pid_namespace: int, options: mounts.Options) -> None:
    """In the child: give up the host's tree, enter the namespace with a child's child, send what it has mounted."""
    code = 1
    connection = socket.socket(fileno=answer)
    try:
        processes.close_others({answer, pid_namespace})
        for number in range(3):
            os.close(number)
        _leave_tree()
        libc.setns(pid_namespace, libc.CLONE_NEWPID)
        pid, _ = libc.clone3()
        if pid:
            os.waitpid(pid, 0)
            code = 0
        else:
            socket.send_fds(connection, [b"0"], [_mount(options)])
    except OSError as error:
        connection.send(b"%d" % (error.errno or 3))
    finally:
        os._exit(code)


def _leave_tree() -> None:
    """Have nothing but an empty file system in a mount namespace of one's own."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("", "/", "", libc.MS_PRIVATE | libc.MS_REC)
    libc.mount("none", "/proc", "tmpfs", libc.MS_RDONLY, "size=4k")
    empty = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.change_root(empty)
    os.close(empty)


def _mount(options: mounts.Options) -> int:
    context = libc.fsopen("proc")
    libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "source", "proc")
    for word in filter(None, options.data.split(",")):
        key, equals, value = word.partition("=")
        if equals:
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, key, value)
        else:
            libc.fsconfig(context, libc.FSCONFIG_SET_FLAG, key)
    libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
    return libc.fsmount(context, options.attr_set)
