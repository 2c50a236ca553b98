"""Numbers of the kernel's ABI: flags, options, magics (include/uapi/linux/*.h) and syscalls, for `libc` to use.

Other modules take them from `libc`, which has them all.
"""

from __future__ import annotations

import os

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_I_VERSION = 0x800000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MNT_FORCE = 0x1
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

SIGCHLD = 17  # the signal module would bring enum: milliseconds of start-up
CLONE_NEWTIME = 0x80
CLONE_VFORK = 0x4000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_PIDFD = 0x1000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = 0o2000000
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

CLOSE_RANGE_CLOEXEC = 0x4

IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_MOVE_SELF = 0x800
IN_CREATE = 0x100

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

IOPRIO_WHO_PROCESS = 1

KEYCTL_JOIN_SESSION_KEYRING = 1
KEYCTL_SETPERM = 5
KEYCTL_DESCRIBE = 6

# Filesystem magics (linux/magic.h) as `statfs` reports them.
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
TMPFS_MAGIC = 0x01021994
OVERLAYFS_SUPER_MAGIC = 0x794C7630
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270
BTRFS_SUPER_MAGIC = 0x9123683E
NSFS_MAGIC = 0x6E736673

# Numbers from 424 on are the same everywhere; older ones are (x86_64, the generic table of arm64 and riscv64).
_OLD = {
    "mount": (165, 40),
    "getdents64": (217, 61),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "prctl": (157, 167),
    "rt_sigaction": (13, 134),
    "capget": (125, 90),
    "capset": (126, 91),
    "keyctl": (250, 219),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "seccomp": (317, 277),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "bpf": (321, 280),
    "execveat": (322, 281),
    "personality": (135, 92),
    "ioprio_set": (251, 30),
    "sched_setattr": (314, 274),
    "set_mempolicy": (238, 237),
    "syncfs": (306, 267),
    "renameat2": (316, 276),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
}
_NEW = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
_COLUMN = 0 if os.uname().machine == "x86_64" else 1


def number(syscall: str) -> int:
    """Return the number of `syscall` on this machine (KeyError for one that this module does not use)."""
    return _NEW.get(syscall) or _OLD[syscall][_COLUMN]
