"""cgroup v2 where a unified tree is mounted, be it without controllers (a hybrid machine)."""

import contextlib
import os
import signal
import time

import pytest

from dray.base.errors import Conflict
from dray.linux import libc
from dray.linux.cgroups import devices
from dray.linux.cgroups.layout import Layout
from dray.linux.cgroups.v2 import CgroupV2


def unified():
    with open("/proc/self/mountinfo") as file:
        for line in file:
            mount, _, rest = line.partition(" - ")
            if rest.startswith("cgroup2 "):
                return mount.split(" ")[4]
    return None


MOUNT = unified()
pytestmark = pytest.mark.skipif(os.getuid() != 0 or MOUNT is None, reason="needs root and a cgroup2 mount")


@pytest.fixture
def cgroup():
    parent = f"{MOUNT}/dray-test-v2-{os.getpid()}"
    made = CgroupV2(Layout(2, {"": MOUNT}), f"{parent}/x")
    made.make()
    yield made
    with contextlib.suppress(FileNotFoundError):
        made.kill()
    made.delete()
    os.rmdir(parent)


@contextlib.contextmanager
def sleeper(cgroup, work=lambda: time.sleep(60)):
    fd = cgroup.clone_fd()
    pid, pidfd = libc.clone3(cgroup=fd)
    if pid == 0:
        try:
            work()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        finally:
            os._exit(254)
    os.close(fd)
    os.close(pidfd)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def test_born_inside_frozen_killed(cgroup):
    with sleeper(cgroup) as pid:
        assert cgroup.pids() == [pid]
        with pytest.raises(Conflict):
            cgroup.make()
        cgroup.freeze()
        with open(f"{cgroup.directory}/cgroup.events") as file:
            assert "frozen 1" in file.read()
        cgroup.thaw()
        cgroup.freeze()
        cgroup.kill()
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert cgroup.pids() == []


def test_moved_inside(cgroup):
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    cgroup.add(pid)
    assert cgroup.pids() == [pid]
    cgroup.kill()
    os.waitpid(pid, 0)


def test_children_made_inside_go_too(cgroup):
    os.mkdir(f"{cgroup.directory}/inner")
    cgroup.delete()
    assert not os.path.exists(cgroup.directory)
    cgroup.delete()


def test_device_filter(cgroup):
    def use(path, flags=os.O_RDONLY):
        with sleeper(cgroup, lambda: os.close(os.open(path, flags))) as pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    deny = {"allow": False, "access": "rwm"}
    cgroup.apply({"devices": [deny]})
    assert use("/dev/null", os.O_RDWR) == 0
    assert use("/dev/kmsg") == 1  # EPERM
    cgroup.apply({"devices": [deny, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}]})
    assert use("/dev/kmsg") == 0
    assert use("/dev/kmsg", os.O_WRONLY) == 1
    cgroup.apply({"devices": [{"allow": True, "access": "rwm"}]})
    assert use("/dev/kmsg", os.O_WRONLY) == 0
    fd = os.open(cgroup.directory, os.O_RDONLY)
    assert len(devices._attached(fd)) == 1
    os.close(fd)
