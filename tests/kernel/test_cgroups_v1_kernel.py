"""cgroup v1 in the real kernel: every limit is felt by a process, nothing is left behind."""

import contextlib
import os
import select
import signal
import time
import uuid

import pytest

from dray.base.errors import Conflict, InvalidParameter, Unsupported
from dray.linux import cgroups
from dray.linux.cgroups import layout

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or layout.current().version != 1, reason="needs root and cgroup v1 controllers"
)
PARENT = f"/dray-test-{os.getpid()}"


@pytest.fixture
def make():
    made = []

    def make(resources=None):
        ident = uuid.uuid4().hex
        cgroup = cgroups.create(f"{PARENT}/{ident}", ident, resources)
        made.append(cgroup)
        return cgroup

    yield make
    for cgroup in made:
        with contextlib.suppress(FileNotFoundError):
            cgroup.kill()
        cgroup.delete()
    cgroups.prune(PARENT)
    assert not any(os.path.exists(mount + PARENT) for mount in layout.current().mounts.values())


@contextlib.contextmanager
def inside(cgroup, work):
    """Fork a child into the cgroup that runs `work`; yield its pid, reap it at the end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writer)
            os.read(reader, 1)
            work()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(254)
    os.close(reader)
    try:
        cgroup.add(pid)
        os.write(writer, b"x")
        os.close(writer)
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def status(cgroup, work):
    with inside(cgroup, work) as pid:
        return os.waitpid(pid, 0)[1]


def test_create_add_delete(make):
    cgroup = make()
    assert set(cgroup.paths) >= {"memory", "devices", "name=systemd"}
    assert cgroup.pids() == []
    with inside(cgroup, lambda: time.sleep(60)) as pid:
        assert cgroup.pids() == [pid]
        with open(f"/proc/{pid}/cgroup") as file:
            assert all(
                path.strip().startswith(PARENT) for _, _, path in (x.split(":", 2) for x in file if x[0] != "0")
            )
    cgroup.delete()
    assert not any(os.path.exists(path) for path in cgroup.paths.values())
    cgroup.delete()


def test_a_process_moves_itself(make):
    cgroup = make()

    def work():
        cgroup.add(0)
        os._exit(7 if cgroup.pids() == [os.getpid()] else 1)

    pid = os.fork()
    if pid == 0:
        work()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_cgroup_with_processes_is_not_taken_over(make):
    cgroup = make()
    path = PARENT + "/" + os.path.basename(cgroup.paths["memory"])
    with inside(cgroup, lambda: time.sleep(60)), pytest.raises(Conflict):
        cgroups.create(path, "again", None)
    assert cgroups.create(path, "again", None).pids() == []


def test_cpu_quota_throttles(make):
    cgroup = make({"cpu": {"quota": 10000, "period": 100000, "shares": 512}})

    def spin():
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass

    assert status(cgroup, spin) == 0
    stats = cgroup.stats()["cpu_stats"]
    assert stats["throttling_data"]["throttled_periods"] > 0
    assert 0 < stats["cpu_usage"]["total_usage"] < 300_000_000
    assert layout.read(cgroup.paths["cpu"], "cpu.shares") == "512\n"


def test_cpu_values_that_bound_one_another(make):
    cgroup = make({"cpu": {"quota": 50000, "period": 100000, "burst": 20000}})
    cgroup.apply({"cpu": {"quota": 10000, "burst": 5000}})
    assert layout.read_number(cgroup.paths["cpu"], "cpu.cfs_quota_us") == 10000
    assert layout.read_number(cgroup.paths["cpu"], "cpu.cfs_burst_us") == 5000
    cgroup.apply({"cpu": {"quota": 900000, "burst": 800000}})
    assert layout.read_number(cgroup.paths["cpu"], "cpu.cfs_burst_us") == 800000
    with pytest.raises(InvalidParameter, match=r"cpu\.quota"):
        cgroup.apply({"cpu": {"quota": 10}})
    with pytest.raises(InvalidParameter, match="maximum"):
        cgroup.apply({"cpu": {"shares": 1 << 30}})


def test_memory_limit_kills_and_is_told(make):
    size = 32 << 20
    cgroup = make({"memory": {"limit": size, "swap": size, "reservation": size // 2, "disableOOMKiller": False}})
    watch = cgroup.watch_oom()
    assert watch is not None
    poll = select.epoll()
    try:
        poll.register(watch.fd, watch.events)
        assert poll.poll(0) == []
        assert os.WTERMSIG(status(cgroup, lambda: bytearray(3 * size))) == signal.SIGKILL
        assert [fd for fd, _ in poll.poll(5)] == [watch.fd]
        watch.drain()
        assert cgroup.oom_kills() == 1
        assert cgroup.stats()["memory_stats"]["limit"] == size
        assert cgroup.stats()["memory_stats"]["max_usage"] > size // 2
    finally:
        poll.close()
        watch.close()


def test_memory_up_and_down(make):
    mega = 1 << 20
    cgroup = make({"memory": {"limit": 64 * mega, "swap": 128 * mega}})
    place = cgroup.paths["memory"]
    for limit, swap in ((256, 512), (32, 64), (64, 64)):
        cgroup.apply({"memory": {"limit": limit * mega, "swap": swap * mega}})
        assert layout.read_number(place, "memory.limit_in_bytes") == limit * mega
        assert layout.read_number(place, "memory.memsw.limit_in_bytes") == swap * mega
    cgroup.apply({"memory": {"limit": -1}})
    assert layout.read_number(place, "memory.memsw.limit_in_bytes") > 1 << 60
    cgroup.apply({"memory": {"swappiness": 0}})
    assert layout.read_number(place, "memory.swappiness") == 0


def test_pids_limit(make):
    cgroup = make({"pids": {"limit": 1}})

    def fork():
        if os.fork() == 0:
            os._exit(0)

    assert os.waitstatus_to_exitcode(status(cgroup, fork)) == 11  # EAGAIN
    cgroup.apply({"pids": {"limit": -1}})
    assert os.waitstatus_to_exitcode(status(cgroup, fork)) == 0
    assert cgroup.stats()["pids_stats"]["limit"] == (1 << 64) - 1


def test_devices(make):
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 5, "minor": 1, "access": "r"},
    ]
    cgroup = make({"devices": rules})

    def use(path, flags):
        return os.waitstatus_to_exitcode(status(cgroup, lambda: os.close(os.open(path, flags))))

    assert use("/dev/null", os.O_RDWR) == 0
    assert use("/dev/urandom", os.O_RDONLY) == 0
    assert use("/dev/kmsg", os.O_RDONLY) == 1  # EPERM
    cgroup.apply({"devices": [*rules, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}]})
    assert use("/dev/kmsg", os.O_RDONLY) == 0
    assert use("/dev/kmsg", os.O_WRONLY) == 1
    cgroup.apply({"cpu": {"shares": 100}})
    assert use("/dev/kmsg", os.O_RDONLY) == 0
    cgroup.apply({"devices": [{"allow": True, "access": "rwm"}]})
    assert use("/dev/kmsg", os.O_WRONLY) == 0
    cgroup.apply({"devices": rules})
    assert use("/dev/kmsg", os.O_RDONLY) == 1


def test_freeze_and_thaw(make):
    cgroup = make()
    reader, writer = os.pipe()

    def tick():
        while True:
            os.write(writer, b".")
            time.sleep(0.005)

    with inside(cgroup, tick):
        os.read(reader, 1)
        cgroup.freeze()
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 65536)
        time.sleep(0.05)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        os.set_blocking(reader, True)
        cgroup.thaw()
        assert os.read(reader, 1) == b"."
    os.close(reader)
    os.close(writer)


def test_kill_outruns_a_fork_bomb(make):
    cgroup = make({"pids": {"limit": 200}})

    def bomb():
        os.setsid()
        while True:
            with contextlib.suppress(OSError):
                if os.fork() == 0:
                    continue

    with inside(cgroup, bomb) as pid:
        while len(cgroup.pids()) < 20:
            time.sleep(0.005)
        cgroup.kill()
        os.waitpid(pid, 0)
        end = time.monotonic() + 10
        while cgroup.pids() and time.monotonic() < end:
            time.sleep(0.01)
        assert cgroup.pids() == []


def test_cgroups_made_inside_go_too(make):
    cgroup = make()
    os.mkdir(cgroup.paths["memory"] + "/inner")
    os.mkdir(cgroup.paths["memory"] + "/inner/most")
    cgroup.delete()
    assert not os.path.exists(cgroup.paths["memory"])


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, "hugetlb"),
        ({"network": {"classID": 5}}, "net_cls"),
        ({"rdma": {"mlx5_1": {"hcaHandles": 3}}}, "rdma"),
        ({"unified": {"memory.high": "1"}}, "unified"),
    ],
)
def test_what_cannot_be_limited_is_named_and_nothing_stays(make, resources, words):
    controller = {"hugetlb": "hugetlb", "net_cls": "net_cls", "rdma": "rdma"}.get(words)
    if controller in layout.current().mounts:
        pytest.skip(f"{controller} is mounted here")
    ident = uuid.uuid4().hex
    with pytest.raises(Unsupported, match=words):
        cgroups.create(f"{PARENT}/{ident}", ident, resources)
    assert not os.path.exists(f"{layout.current().mounts['memory']}{PARENT}/{ident}")
    make()


def test_block_io_throttle(make):
    if "blkio" not in layout.current().mounts:
        pytest.skip("no blkio controller")
    disks = [name for name in os.listdir("/sys/block") if name.startswith(("vd", "sd", "nvme"))]
    if not disks:
        pytest.skip("no disk")
    with open(f"/sys/block/{disks[0]}/dev") as file:
        major, minor = map(int, file.read().split(":"))
    device = {"major": major, "minor": minor, "rate": 1 << 20}
    cgroup = make({"blockIO": {"throttleReadBpsDevice": [device], "throttleWriteIOPSDevice": [device]}})
    text = layout.read(cgroup.paths["blkio"], "blkio.throttle.read_bps_device")
    assert text.split() == [f"{major}:{minor}", str(1 << 20)]


def test_capabilities_are_what_is_mounted():
    have = cgroups.capabilities()
    assert have.version == 1
    assert have.memory_limit == ("memory" in layout.current().mounts)
    assert have.system_info()["CgroupVersion"] == "1"
    assert not [name for name in os.listdir(layout.current().mounts["memory"]) if "probe" in name]
