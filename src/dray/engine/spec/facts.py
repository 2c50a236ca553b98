"""What a spec is made of besides the ask: everything that had to be looked up, allocated or configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct, field

from dray.api.models import Ulimit
from dray.engine.security import ALL_CAPABILITIES
from dray.engine.spec.users import User


class ResolvedMount(Protocol):
    """A mount whose source is known (`engine.model.MountPoint` is one).

    type: `bind`, `volume`, `image` (all bound from `source`) or `tmpfs`
    options: tmpfs words; for the others `bind` (not recursive), `rro` (read-only, recursively, or fail),
        `ro-nonrecursive`
    """

    @property
    def type(self) -> str:
        """See the class."""

    @property
    def source(self) -> str:
        """Path on the host."""

    @property
    def destination(self) -> str:
        """Path in the container, absolute and clean."""

    @property
    def rw(self) -> bool:
        """Writable."""

    @property
    def idmap(self) -> str:
        """Owners shifted: `container:host:count` (`engine.mounts.parse_idmap`), "" for not at all."""

    @property
    def propagation(self) -> str:
        """`rprivate`, `rslave`, … or empty."""

    @property
    def options(self) -> Sequence[str]:
        """See the class."""


class Device(Struct, frozen=True):
    """A device node: `path` in the container, type `b`, `c` or `p`, and the access its cgroup rule gives."""

    path: str
    type: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    access: str = "rwm"


class Machine(Struct, frozen=True, kw_only=True):
    """The host, as far as specs depend on it (`spec.machine.read`)."""

    architecture: str = "amd64"  # Go's name
    kernel: tuple[int, int] = (6, 1)
    capabilities: Sequence[str] = ALL_CAPABILITIES  # what the engine may hand out
    apparmor: bool = False
    seccomp: bool = True
    cgroup_version: int = 1
    masked_paths: Sequence[str] = ()  # this machine's own, added to the default ones


class Facts(Struct, frozen=True, kw_only=True):
    """Everything a container's spec needs that its ask does not say.

    id, args: the container's id; its command line (path first)
    user: of `Config.User`, resolved in the container's own files
    hosts, hostname, resolv_conf: files that are bound to /etc; empty: none
    mounts: what Binds, Mounts, Tmpfs, VolumesFrom and the image's VOLUME came to, by depth of destination
    namespaces: namespace (`network`, `ipc`, `pid`) → path, for `container:` modes, and `network` when it is
        joined by path; a network namespace that travels as a descriptor has none
    shm: directory on the host that becomes /dev/shm, for `--ipc shareable` and those that join it
    devices: `HostConfig.Devices` looked up; for a privileged container all of the host's
    block_devices: path → (major, minor) of the block devices that limits name
    sysctls: of the network, beneath the user's own
    linked_env: of `--link`
    seccomp_profile: the daemon's own profile; None the default one
    time_namespace, recursive_read_only: whether kernel and runtime have them
    """

    id: str
    args: Sequence[str]
    user: User = field(default_factory=User)
    rootfs: str = "rootfs"
    hosts: str = ""
    hostname: str = ""
    resolv_conf: str = ""
    mounts: Sequence[ResolvedMount] = ()
    namespaces: Mapping[str, str] = field(default_factory=dict)
    shm: str = ""
    devices: Sequence[Device] = ()
    block_devices: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    linked_env: Sequence[str] = ()
    machine: Machine = field(default_factory=Machine)
    cgroup_parent: str = "/dray"
    ulimits: Sequence[Ulimit] = ()
    shm_size: int = 64 << 20
    no_new_privileges: bool = False
    seccomp_profile: Mapping[str, Any] | None = None
    seccomp_unconfined: bool = False  # the daemon's own default is `unconfined`
    init: bool = False  # the daemon's default for `--init`
    init_path: str = ""
    uid_mappings: Sequence[Mapping[str, int]] = ()
    gid_mappings: Sequence[Mapping[str, int]] = ()
    time_namespace: bool = False
    recursive_read_only: bool = False
