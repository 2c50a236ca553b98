"""Looking up what specs depend on: the machine, and the devices that an ask names. The only effects in `spec`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dray.api.models import DeviceMapping
from dray.base.errors import InvalidParameter
from dray.engine.security import ALL_CAPABILITIES
from dray.engine.spec.facts import Device, Machine

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_KINDS = ((stat.S_ISBLK, "b"), (stat.S_ISCHR, "c"), (stat.S_ISFIFO, "p"))


def read(cgroup_version: int) -> Machine:
    """Return the machine's facts; they do not change while the engine runs."""
    name = os.uname()
    match = re.match(r"(\d+)\.(\d+)", name.release)
    status = Path("/proc/self/status").read_text()
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)", status, re.MULTILINE)
    mask = int(bounding[1], 16) if bounding else 0
    return Machine(
        architecture=_ARCHITECTURES.get(name.machine, name.machine),
        kernel=(int(match[1]), int(match[2])) if match else (0, 0),
        capabilities=tuple(cap for number, cap in enumerate(ALL_CAPABILITIES) if mask >> number & 1),
        apparmor=_reads("/sys/module/apparmor/parameters/enabled", "Y"),
        seccomp="Seccomp_filters:" in status or os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        cgroup_version=cgroup_version,
        masked_paths=thermal_throttle_paths(),
    )


def _reads(path: str, text: str) -> bool:
    try:
        return Path(path).read_text().strip() == text
    except OSError:
        return False


def thermal_throttle_paths(base: str = "/sys/devices/system/cpu") -> tuple[str, ...]:
    """Return each CPU's thermal_throttle directory that exists: its counters leak what other tenants do."""
    try:
        cpus = [name for name in os.listdir(base) if re.fullmatch(r"cpu\d+", name)]
    except OSError:
        return ()
    paths = (f"{base}/{name}/thermal_throttle" for name in sorted(cpus, key=lambda cpu: int(cpu[3:])))
    return tuple(path for path in paths if os.path.exists(path))


# --- devices --------------------------------------------------------------------------------------------------


def _device(path: str, target: str, access: str) -> Device | None:
    """Return the device node at `path` as one at `target`, None if it is no device."""
    status = os.stat(path)
    for is_kind, letter in _KINDS:
        if is_kind(status.st_mode):
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
            mode = stat.S_IMODE(status.st_mode)
            return Device(target, letter, major, minor, mode, status.st_uid, status.st_gid, access)
    return None


def _below(directory: str) -> Iterator[str]:
    """Yield the paths of device nodes below /dev or a part of it, without those that every container has of its
    own (`pts`, `shm`, `fd`, `mqueue`) and without following links."""
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"):
                yield from _below(entry.path)
        elif entry.name != "console" and not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
            yield entry.path


def host_devices() -> list[Device]:
    """Return all devices of the host, for a privileged container."""
    devices = []
    for path in _below("/dev"):
        try:
            device = _device(path, path, "rwm")
        except FileNotFoundError:
            continue  # it was unplugged just now
        if device is not None:
            devices.append(device)
    return devices


def resolve_devices(mappings: Iterable[DeviceMapping] | None) -> list[Device]:
    """Look up `HostConfig.Devices`; a directory stands for the devices in it. InvalidParameter names a missing
    one in Docker's words."""
    devices: list[Device] = []
    for mapping in mappings or ():
        source, target = mapping.path_on_host, mapping.path_in_container or mapping.path_on_host
        access = mapping.cgroup_permissions or "rwm"
        try:
            resolved = os.path.realpath(source)
            found: Sequence[tuple[str, str]] = [(resolved, target)]
            if os.path.isdir(resolved):
                found = [(path, target + path[len(resolved) :]) for path in _below(resolved)]
            nodes = [_device(path, place, access) for path, place in found]
        except OSError as error:
            raise InvalidParameter(
                f'error gathering device information while adding custom device "{source}": {error.strerror}'
            ) from None
        known = [node for node in nodes if node is not None]
        if not known:
            raise InvalidParameter(
                f'error gathering device information while adding custom device "{source}": not a device node'
            )
        devices += known
    return devices


def block_devices(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return path → (major, minor); InvalidParameter for one that is missing or no block device."""
    found = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise InvalidParameter(f"{path}: {error.strerror}") from None
        if not stat.S_ISBLK(status.st_mode):
            raise InvalidParameter(f"{path} is not a block device")
        found[path] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return found
