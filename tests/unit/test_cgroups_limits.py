"""Conversions, layouts and device rules: tables of values; v2 on a tree of plain files."""

import os
import struct

import pytest

from dray.base.errors import InvalidParameter, Unsupported
from dray.linux.cgroups import devices, facilities, layout, limits, stats
from dray.linux.cgroups.layout import Layout
from dray.linux.cgroups.v1 import CgroupV1
from dray.linux.cgroups.v2 import CgroupV2


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 0), (1, 1), (2, 1), (512, 59), (1024, 100), (2048, 174), (262144, 10000), (1 << 30, 10000)],
)
def test_shares_to_weight(shares, weight):
    assert limits.weight_from_shares(shares) == weight


def test_weights_grow_with_shares():
    weights = [limits.weight_from_shares(shares) for shares in range(2, 262144, 97)]
    assert weights == sorted(weights)
    assert weights[0] == 1
    assert weights[-1] <= 10000


@pytest.mark.parametrize(("blkio", "io"), [(0, 0), (10, 1), (500, 4950), (1000, 10000)])
def test_io_weight(blkio, io):
    assert limits.io_weight_from_blkio(blkio) == io


@pytest.mark.parametrize(
    ("limit", "swap", "result"),
    [(0, 0, None), (100, 0, None), (100, -1, -1), (0, -1, -1), (-1, 0, -1), (100, 100, 0), (100, 300, 200)],
)
def test_swap(limit, swap, result):
    assert limits.swap_max(limit, swap) == result


@pytest.mark.parametrize(("limit", "swap"), [(0, 100), (-1, 100), (200, 100)])
def test_swap_that_makes_no_sense(limit, swap):
    with pytest.raises(InvalidParameter):
        limits.swap_max(limit, swap)


@pytest.mark.parametrize(
    ("quota", "period", "now", "text"),
    [
        (0, 0, "", None),
        (50000, 0, "", "50000 100000"),
        (-1, 0, "50000 20000", "max 20000"),
        (0, 20000, "50000 100000\n", "50000 20000"),
        (1, 2, "max 100000", "1 2"),
    ],
)
def test_cpu_max(quota, period, now, text):
    assert limits.cpu_max(quota, period, now) == text


MOUNTS_V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/mem\\040ory rw,relatime - cgroup cgroup rw,memory\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def test_layout_v1():
    found = layout.parse(MOUNTS_V1, "9:name=systemd:/\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n")
    assert found.version == 1
    assert found.mounts == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/mem ory",
        "name=systemd": "/sys/fs/cgroup/systemd",
    }
    assert found.directories("/dray/x", "x")["memory"] == "/sys/fs/cgroup/mem ory/dray/x"
    assert found.directories("", "x")["cpu"] == "/sys/fs/cgroup/cpu,cpuacct/dray/x"
    assert found.directories("rel/x", "x")["memory"] == "/sys/fs/cgroup/mem ory/a/b/rel/x"
    assert len(CgroupV1(found, found.directories("", "x")).directories) == 3


def test_layout_v2_and_none():
    mounts = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    found = layout.parse(mounts, "0::/user.slice\n")
    assert (found.version, found.mounts) == (2, {"": "/sys/fs/cgroup"})
    assert found.directories("r", "x") == {"": "/sys/fs/cgroup/user.slice/r"}
    named_only = MOUNTS_V1.splitlines()[3] + "\n" + MOUNTS_V1.splitlines()[4]
    assert layout.parse(named_only, "0::/\n").version == 2
    with pytest.raises(Unsupported):
        layout.parse("", "")


@pytest.mark.parametrize("path", ["/../../etc", "a/../../../etc", "/a/../b"])
def test_paths_stay_below_the_mount(path):
    found = Layout(2, {"": "/cg"}).directories(path, "x")[""]
    assert found.startswith("/cg/")
    assert ".." not in found


@pytest.mark.parametrize("path", ["/", "/..", "a\nb"])
def test_senseless_paths(path):
    with pytest.raises(InvalidParameter):
        Layout(2, {"": "/cg"}).directories(path, "x")


def test_systemd_paths_are_refused_by_name():
    with pytest.raises(Unsupported, match="systemd"):
        Layout(2, {"": "/cg"}).directories("system.slice:docker:abc", "abc")


# --- devices --------------------------------------------------------------------------------------------------


def rule(allow, kind=None, major=None, minor=None, access="rwm"):
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


DENY_ALL = rule(False)
RULES = [
    ([], True, {}),
    ([DENY_ALL], False, {}),
    ([DENY_ALL, rule(True, "c", 1, 3, "rw"), rule(True, "c", 1, 3, "m")], False, {("c", 1, 3): "rwm"}),
    ([DENY_ALL, rule(True, "c", 1, 3), rule(False, "c", 1, 3, "w")], False, {("c", 1, 3): "rm"}),
    ([DENY_ALL, rule(True, "b", 8), rule(False, "c", 10, 229)], False, {("b", 8, None): "rwm"}),
    ([rule(False, "c", 10, 229)], True, {("c", 10, 229): "rwm"}),
    ([rule(False, "c", 10, 229), rule(True, "c", 10, 229)], True, {}),
    ([rule(True, "c", -1, -1, "m"), rule(True)], True, {}),
    ([DENY_ALL, rule(True, "u", 5, 1, "r"), rule(True, "p", 0, 0)], False, {("c", 5, 1): "r"}),
]


@pytest.mark.parametrize(("rules", "allow", "exceptions"), RULES)
def test_device_rules(rules, allow, exceptions):
    assert devices.resolve(rules) == devices.Access(allow, exceptions)


@pytest.mark.parametrize("bad", [rule(True, "x"), rule(True, "c", 1, 1, "q"), rule(True, "c", 1 << 40, 1)])
def test_bad_device_rules(bad):
    with pytest.raises(InvalidParameter):
        devices.resolve([bad])


def test_v1_lines():
    want = devices.resolve([DENY_ALL, rule(True, "c", 1, 3), rule(True, "b", None, None, "m")])
    fresh = devices.parse_list("a *:* rwm\n")
    assert devices.changes(fresh, want) == [
        ("devices.deny", "a"),
        ("devices.allow", "c 1:3 rwm"),
        ("devices.allow", "b *:* m"),
    ]
    have = devices.parse_list("c 1:3 r\nb *:* m\nc 5:1 rw\n")
    assert devices.changes(have, want) == [
        ("devices.allow", "c 1:3 rwm"),
        ("devices.allow", "b *:* m"),
        ("devices.deny", "c 5:1 rw"),
    ]
    everything = devices.Access(True, {("c", 1, 1): "w"})
    assert devices.changes(have, everything) == [("devices.allow", "a"), ("devices.deny", "c 1:1 w")]


def run_bpf(program, kind, major, minor, access):
    """Interpret the instructions that the device filter uses."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    registers = [0] * 11
    code = list(struct.iter_unpack("<BBhi", program))
    pc = 0
    while True:
        op, regs, off, imm = code[pc]
        dst, src = regs & 15, regs >> 4
        pc += 1
        match op:
            case 0x61:
                registers[dst] = struct.unpack_from("<I", context, off)[0]
            case 0xBC:
                registers[dst] = registers[src] & 0xFFFFFFFF
            case 0x54:
                registers[dst] &= imm & 0xFFFFFFFF
            case 0x74:
                registers[dst] >>= imm
            case 0xB7:
                registers[dst] = imm
            case 0x55:
                pc += off if registers[dst] != imm else 0
            case 0x15:
                pc += off if registers[dst] == imm else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(hex(op))


def allowed(access, kind, major, minor, wanted):
    """The devices controller's rule: one exception must cover all that is asked, or, with a default of allow,
    touch any of it."""
    for (ex_kind, ex_major, ex_minor), letters in access.exceptions.items():
        if ex_kind == kind and ex_major in (None, major) and ex_minor in (None, minor):
            if access.allow and set(wanted) & set(letters):
                return False
            if not access.allow and set(wanted) <= set(letters):
                return True
    return access.allow


@pytest.mark.parametrize("rules", [row[0] for row in RULES] + [[DENY_ALL, *devices.STANDARD]])
def test_v2_program_means_the_same(rules):
    access = devices.resolve(rules)
    program = devices.bpf_program(access)
    for kind in "bc":
        for major, minor in ((1, 3), (1, 4), (5, 1), (8, 0), (10, 229), (136, 7)):
            for bits in range(1, 8):
                wanted = "".join(letter for letter, bit in (("m", 1), ("r", 2), ("w", 4)) if bits & bit)
                found = run_bpf(program, 1 if kind == "b" else 2, major, minor, bits)
                assert found == allowed(access, kind, major, minor, wanted), (kind, major, minor, wanted)


# --- v2 on plain files ----------------------------------------------------------------------------------------

V2_FILES = [
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.low",
    "memory.swap.max",
    "pids.max",
    "io.weight",
    "io.max",
    "hugetlb.2MB.max",
    "memory.high",
    "cgroup.procs",
    "rdma.max",
]


@pytest.fixture
def v2(tmp_path):
    directory = tmp_path / "dray" / "x"
    directory.mkdir(parents=True)
    for name in V2_FILES:
        (directory / name).write_text("")
    (directory / "cpu.max").write_text("max 100000\n")
    (directory / "cgroup.controllers").write_text("cpu memory pids\n")
    return CgroupV2(Layout(2, {"": str(tmp_path)}), str(directory))


@pytest.mark.parametrize(
    ("resources", "files"),
    [
        ({"cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 7, "cpus": "0-1", "mems": "0"}},
         {"cpu.weight": "100", "cpu.max": "50000 100000", "cpu.max.burst": "7", "cpuset.cpus": "0-1", "cpuset.mems": "0"}),
        ({"cpu": {"idle": 1}}, {"cpu.idle": "1"}),
        ({"memory": {"limit": 100, "swap": 300, "reservation": 50, "disableOOMKiller": False}},
         {"memory.max": "100", "memory.swap.max": "200", "memory.low": "50"}),
        ({"memory": {"limit": -1}}, {"memory.max": "max", "memory.swap.max": "max"}),
        ({"pids": {"limit": 10}}, {"pids.max": "10"}),
        ({"pids": {"limit": -1}}, {"pids.max": "max"}),
        ({"blockIO": {"weight": 1000}}, {"io.weight": "default 10000"}),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 1, "weight": 10}]}}, {"io.weight": "8:1 1"}),
        ({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]}}, {"io.max": "8:0 rbps=5"}),
        ({"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}]}}, {"io.max": "8:0 wiops=max"}),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}, {"hugetlb.2MB.max": "5"}),
        ({"unified": {"memory.high": "77"}}, {"memory.high": "77"}),
        ({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}}}, {"rdma.max": "mlx5_1 hca_handle=3 hca_object=4"}),
        ({"cpu": {"shares": 0, "quota": None}, "memory": {"limit": 0}, "pids": None}, {}),
    ],
)  # fmt: skip
def test_v2_writes(v2, resources, files):
    v2.apply(resources)
    for name in V2_FILES:
        expected = files.get(name, "max 100000\n" if name == "cpu.max" else "")
        with open(f"{v2.directory}/{name}") as file:
            assert file.read().rstrip("\n")[: len(expected)].rstrip("\n") == expected.rstrip("\n"), name


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"cpu": {"realtimePeriod": 1}}, "realtimePeriod"),
        ({"memory": {"swappiness": 5}}, "swappiness"),
        ({"memory": {"kernelTCP": 5}}, "kernelTCP"),
        ({"memory": {"disableOOMKiller": True}}, "disableOOMKiller"),
        ({"network": {"classID": 1}}, "classID"),
        ({"blockIO": {"leafWeight": 10}}, "leafWeight"),
        ({"hugepageLimits": [{"pageSize": "1GB", "limit": 1}]}, "hugetlb"),
        ({"unified": {"foo.bar": "1"}}, "foo"),
    ],
)
def test_v2_names_what_it_cannot(v2, resources, words):
    with pytest.raises(Unsupported, match=words):
        v2.apply(resources)


def test_v2_unified_takes_file_names_only(v2):
    with pytest.raises(InvalidParameter, match="file name"):
        v2.apply({"unified": {"../x/memory.max": "1"}})


def test_v1_unified_is_refused(tmp_path):
    with pytest.raises(Unsupported, match="unified"):
        CgroupV1(Layout(1, {"cpu": str(tmp_path)}), {"cpu": str(tmp_path)}).apply({"unified": {"a.b": "1"}})


@pytest.mark.parametrize(
    ("resources", "controller"),
    [
        ({"cpu": {"shares": 5}}, "cpu"),
        ({"cpu": {"cpus": "0"}}, "cpuset"),
        ({"memory": {"limit": 5}}, "memory"),
        ({"pids": {"limit": 5}}, "pids"),
        ({"blockIO": {"weight": 5}}, "blkio"),
        ({"devices": []}, "devices"),
    ],
)
def test_v1_names_the_missing_controller(tmp_path, resources, controller):
    cgroup = CgroupV1(Layout(1, {}), {"name=systemd": str(tmp_path)})
    with pytest.raises(Unsupported, match=f"'{controller}'"):
        cgroup.apply(resources)
    cgroup.apply({"memory": {"limit": -1, "swap": -1, "reservation": -1}, "pids": {"limit": -1}})


def test_v2_stats(tmp_path):
    files = {
        "cpu.stat": "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 2\nnr_throttled 1\nthrottled_usec 9\n",
        "memory.current": "1000\n",
        "memory.max": "2000\n",
        "memory.peak": "1500\n",
        "memory.stat": "anon 5\ninactive_file 3\n",
        "memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n",
        "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
        "pids.current": "3\n",
        "pids.max": "max\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = stats.v2(str(tmp_path))
    assert found["cpu_stats"] == {
        "cpu_usage": {"total_usage": 7000, "usage_in_kernelmode": 3000, "usage_in_usermode": 4000},
        "throttling_data": {"periods": 2, "throttled_periods": 1, "throttled_time": 9000},
    }
    assert found["memory_stats"] == {
        "usage": 1000,
        "max_usage": 1500,
        "limit": 2000,
        "failcnt": 2,
        "stats": {"anon": 5, "inactive_file": 3},
    }
    assert found["blkio_stats"]["io_service_bytes_recursive"] == [
        {"major": 8, "minor": 0, "op": "read", "value": 1},
        {"major": 8, "minor": 0, "op": "write", "value": 2},
    ]
    assert found["pids_stats"] == {"current": 3, "limit": (1 << 64) - 1}
    assert CgroupV2(Layout(2, {"": "/"}), str(tmp_path)).oom_kills() == 1


def test_blkio_lines():
    text = "254:0 Read 4096\n254:0 Total 4096\nTotal 4096\n8:1 17\n"
    assert stats.parse_blkio(text) == [
        {"major": 254, "minor": 0, "op": "Read", "value": 4096},
        {"major": 254, "minor": 0, "op": "Total", "value": 4096},
        {"major": 8, "minor": 1, "op": "", "value": 17},
    ]


def test_v2_capabilities(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    found = facilities.read(Layout(2, {"": str(tmp_path)}))
    assert found.memory_limit
    assert found.pids_limit
    assert not found.cpuset
    assert not found.oom_kill_disable
    assert found.system_info()["CgroupVersion"] == "2"
    (tmp_path / "me").mkdir()
    inside = Layout(2, {"": str(tmp_path)}, {"": "/me"})
    assert not facilities.read(inside).swap_limit
    (tmp_path / "me" / "memory.swap.max").write_text("max\n")
    assert facilities.read(inside).swap_limit


def test_errors_name_the_file(tmp_path):
    with pytest.raises(OSError, match="nofile") as caught:
        layout.write(str(tmp_path), "nofile", 1)
    assert caught.value.filename == os.path.join(tmp_path, "nofile")
