"""The root file system's plan and the other pure decisions of the runtime, by tables of values."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.base.errors import InvalidParameter, StartError, Unsupported
from dray.linux import libc, mounts, privileges
from dray.runtime import idmaps, lookup, netdevices, program, rootfs, scheduling, validate
from dray.runtime.external import exit_code_of, external_spec, logged_error
from dray.runtime.handshake import Channel, Failed, Ready
from dray.runtime.hooks import hooks_of
from dray.runtime.init import hierarchies
from dray.runtime.model import Mount
from dray.runtime.state import check_id
from dray.runtime.template import default_spec


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ro", "nosuid"], mounts.Options(flags=3, attr_set=3)),
        (["ro", "rw"], mounts.Options(attr_clear=1)),
        (["rbind", "rprivate"], mounts.Options(flags=0x5000, propagation=(0x44000,))),
        (["rro"], mounts.Options(tree_set=1)),
        (["size=1m", "mode=755"], mounts.Options(data="size=1m,mode=755")),
        (["tmpcopyup"], mounts.Options(copy_up=True)),
        (["noatime"], mounts.Options(flags=0x400, attr_set=0x10, attr_clear=0x70)),
        (["defaults", ""], mounts.Options()),
    ],
)
def test_option_words(words: list[str], expected: mounts.Options) -> None:
    assert mounts.parse_options(words) == expected


@given(st.lists(st.sampled_from(mounts.option_words())))
def test_a_mount_attribute_is_never_both_set_and_cleared(words: list[str]) -> None:
    options = mounts.parse_options(words)
    atime = libc.MOUNT_ATTR__ATIME
    assert options.attr_set & options.attr_clear & ~atime == 0
    assert options.tree_set & options.tree_clear & ~atime == 0


def spec(**fields: Any) -> dict[str, Any]:
    return {**default_spec(), **fields}


def test_the_plan_in_words() -> None:
    text = rootfs.plan(spec(), "/bundle/rootfs", (Mount("overlay", "overlay", ("lowerdir=/a",)),)).describe()
    lines = text.splitlines()
    assert lines[:3] == [
        "propagation of / 0x84000",
        "root /bundle/rootfs overlay:overlay",
        "enter cgroup, new cgroup namespace",
    ]
    pivot = lines.index("pivot_root")
    assert "mount proc on /proc flags 0x0" in lines[:pivot]
    assert "mask /proc/kcore" in lines[pivot:]
    assert "readonly /proc/sys" in lines[pivot:]
    assert lines[-1].startswith("root readonly")


def test_mounts_keep_their_order_and_a_readonly_tmpfs_closes_last() -> None:
    entries = [
        {"destination": "/t", "type": "tmpfs", "options": ["ro"]},
        {"destination": "/t/x", "type": "bind", "source": "/src", "options": ["ro"]},
    ]
    lines = rootfs.plan(spec(mounts=entries), "/r").describe().splitlines()
    assert lines.index("mount tmpfs on /t flags 0x0") < lines.index("rbind /src on /t/x")
    assert lines.index("rbind /src on /t/x") < lines.index("remount /t set 0x1 clear 0x0")


def test_no_devices_are_made_in_a_bound_dev() -> None:
    entries = [{"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}]
    assert "devices" not in rootfs.plan(spec(mounts=entries), "/r").describe()


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "tmpfs"},
        {"destination": "/"},
        {"destination": "/x"},
        {"destination": "/x", "type": "bind", "options": ["size=1"]},
    ],
)
def test_mounts_that_are_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        rootfs.plan(spec(mounts=[entry]), "/r")


def test_propagation_words() -> None:
    linux = {**default_spec()["linux"], "rootfsPropagation": "rshared"}
    assert "propagation of / 0x104000" in rootfs.plan(spec(linux=linux), "/r").describe()
    with pytest.raises(InvalidParameter):
        rootfs.plan(spec(linux={**linux, "rootfsPropagation": "sideways"}), "/r")


def test_a_device_of_the_spec_wins_over_a_default_one() -> None:
    from dray.runtime.devices import devices_of

    devices = {
        d.path: d for d in devices_of({"devices": [{"path": "/dev/tty", "type": "c", "major": 9, "minor": 8}]})
    }
    assert (devices["/dev/tty"].major, devices["/dev/tty"].mode) == (9, 0o020666)
    with pytest.raises(InvalidParameter):
        devices_of({"devices": [{"path": "/dev/x", "type": "z"}]})


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
    ],
)
def test_sysctl_names(name: str, path: str) -> None:
    assert validate.sysctl_path(name) == path


@pytest.mark.parametrize("name", ["../../etc/passwd", "net/../../../x", "net..x"])
def test_a_sysctl_cannot_name_another_file(name: str) -> None:
    with pytest.raises(InvalidParameter):
        validate.sysctls_of({"sysctl": {name: "1"}}, frozenset({"network", "ipc", "uts"}))


@pytest.mark.parametrize(
    ("name", "own", "allowed"),
    [
        ("net.core.somaxconn", {"network"}, True),
        ("net.core.somaxconn", {"ipc"}, False),
        ("kernel.shmmax", {"ipc"}, True),
        ("fs.mqueue.msg_max", {"ipc"}, True),
        ("vm.swappiness", {"network", "ipc", "uts"}, False),
        ("kernel.hostname", {"uts"}, False),
    ],
)
def test_sysctls_of_the_host_are_refused(name: str, own: set[str], allowed: bool) -> None:
    if allowed:
        assert validate.sysctls_of({"sysctl": {name: "1"}}, frozenset(own))
    else:
        with pytest.raises(InvalidParameter, match=name):
            validate.sysctls_of({"sysctl": {name: "1"}}, frozenset(own))


def test_namespaces_are_sorted() -> None:
    entries = [{"type": "pid"}, {"type": "network", "path": "/n"}, {"type": "ipc"}]
    spaces = validate.namespaces_of({"linux": {"namespaces": entries}}, {"ipc": 5})
    assert (spaces.new, spaces.paths, spaces.descriptors) == ({"pid"}, {"network": "/n"}, {"ipc": 5})
    assert spaces.own == {"pid", "network", "ipc"}
    assert spaces.new_flags == libc.CLONE_NEWPID
    for bad in ([{"type": "pid"}, {"type": "pid"}], [{"type": "zebra"}]):
        with pytest.raises(InvalidParameter):
            validate.namespaces_of({"linux": {"namespaces": bad}}, {})


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"root": None}, InvalidParameter),
        ({"linux": {"namespaces": []}}, InvalidParameter),
        ({"linux": {"namespaces": [{"type": "mount"}], "intelRdt": {"x": 1}}, "hostname": ""}, Unsupported),
        ({"linux": {"namespaces": [{"type": "mount"}]}, "hostname": "x"}, InvalidParameter),
        ({"linux": {"namespaces": [{"type": "mount"}], "mountLabel": "x"}, "hostname": ""}, Unsupported),
        ({"linux": {"namespaces": [{"type": "mount"}], "uidMappings": [{}]}, "hostname": ""}, InvalidParameter),
    ],
)
def test_specs_that_are_refused(change: dict[str, Any], kind: type[Exception]) -> None:
    wanted = spec(**change)
    own = {entry["type"] for entry in wanted["linux"]["namespaces"]}
    with pytest.raises(kind):
        validate.check(wanted, frozenset(own))


def process(**fields: Any) -> dict[str, Any]:
    return {"args": ["x"], "cwd": "/", **fields}


def test_process_fields() -> None:
    wanted = program.program_of(
        process(
            env=["A=1", "A=2", "B="],
            user={"uid": 5, "gid": 6, "additionalGids": [7], "umask": 0o77},
            capabilities={"bounding": ["CAP_KILL"]},
            consoleSize={"height": 3, "width": 4},
        ),
        None,
    )
    assert wanted.env == {"A": "2", "B": ""}
    assert wanted.identity == privileges.Identity(5, 6, (7,))
    assert (wanted.umask, wanted.capabilities.bounding, wanted.console_size) == (0o77, 32, (3, 4))
    assert program.program_of(process(), None).umask == 0o22


@pytest.mark.parametrize(
    "fields",
    [
        {"args": []},
        {"cwd": "relative"},
        {"cwd": ""},
        {"env": ["NOEQUALS"]},
        {"env": ["=x"]},
        {"user": {"uid": 2**32 - 1}},
        {"user": {"uid": -1}},
        {"capabilities": {"effective": ["CAP_NONSENSE"]}},
        {"rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2},
        {"scheduler": {"policy": "SCHED_NONSENSE"}},
        {"scheduler": {"policy": "SCHED_FIFO", "nice": 3}},
        {"scheduler": {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NONSENSE"]}},
        {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}},
        {"ioPriority": {"priority": 1}},
        {"execCPUAffinity": {"initial": "0-"}},
    ],
)
def test_processes_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        program.program_of(process(**fields), None)


def test_program_search(tmp_path: Any) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    (tmp_path / "first/tool").write_text("not executable")
    tool = tmp_path / "second/tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    path = f"{tmp_path}/first:{tmp_path}/second"
    assert lookup.find("tool", path) == str(tool)
    with pytest.raises(StartError) as caught:
        lookup.find("other", path)
    assert (str(caught.value), caught.value.exit_code) == (
        'exec: "other": executable file not found in $PATH',
        127,
    )
    with pytest.raises(StartError) as caught:
        lookup.find(str(tmp_path), path)
    assert caught.value.exit_code == 126


def test_hooks() -> None:
    hooks = hooks_of(
        {"hooks": {"prestart": [{"path": "/a", "env": ["X=1"]}], "poststop": [{"path": "/b"}]}}, "prestart"
    )
    assert [(hook.path, hook.args, hook.env) for hook in hooks] == [("/a", ("/a",), {"X": "1"})]
    for bad in ({"path": "a"}, {"path": "/a", "timeout": 0}):
        with pytest.raises(InvalidParameter):
            hooks_of({"hooks": {"prestart": [bad]}}, "prestart")


def test_messages_cross_the_channel_with_descriptors() -> None:
    ours, theirs = Channel.pair()
    read, write = os.pipe()
    theirs.send(Ready(), (read,))
    (fd,) = ours.expect(Ready)
    os.write(write, b"x")
    assert os.read(fd, 1) == b"x"
    theirs.send(Failed.of(StartError("no", 127)))
    with pytest.raises(StartError) as caught:
        ours.expect(Ready)
    assert (str(caught.value), caught.value.exit_code) == ("no", 127)
    theirs.send(Failed.of(InvalidParameter("bad")))
    with pytest.raises(InvalidParameter, match="bad"):
        ours.receive()
    theirs.close()
    assert ours.receive() == (None, [])
    ours.close()
    for number in (fd, read, write):
        os.close(number)


def test_hierarchies_by_directory() -> None:
    paths = {"cpu": "/c/x", "cpuacct": "/c/x", "memory": "/m/x", "name=systemd": "/s/x"}
    assert hierarchies(paths) == {"cpu,cpuacct": "/c/x", "memory": "/m/x", "systemd": "/s/x"}
    assert hierarchies({"": "/u/x"}) == {"": "/u/x"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 1025])
def test_ids_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidParameter):
        check_id(name)


def test_an_external_runtimes_words() -> None:
    log = '{"level":"warning","msg":"w"}\nnot json\n{"level":"error","msg":"exec: \\"x\\": executable file not found in $PATH"}\n'
    message = logged_error(log)
    assert (message, exit_code_of(message)) == ('exec: "x": executable file not found in $PATH', 127)
    assert exit_code_of("permission denied") == 126
    assert exit_code_of("something else") == 128
    changed = external_spec(spec(), "/abs/root", {"network": 9})
    assert changed["root"]["path"] == "/abs/root"
    assert {"type": "network", "path": f"/proc/{os.getpid()}/fd/9"} in changed["linux"]["namespaces"]
    assert sum(entry["type"] == "network" for entry in changed["linux"]["namespaces"]) == 1


@pytest.mark.parametrize(
    "entry",
    [
        {"destination": "/x", "type": "bind", "source": "/", "options": ["idmap"]},
        {"destination": "/x", "type": "tmpfs", "uidMappings": [{}], "gidMappings": [{}]},
        {"destination": "/x", "type": "bind", "source": "/", "options": ["bind"], "uidMappings": [{}]},
        {
            "destination": "/x",
            "type": "bind",
            "source": "/",
            "options": ["bind"],
            "uidMappings": [{}],
            "gidMappings": [{}],
        },
    ],
)
def test_mapped_mounts_that_are_refused(entry: dict[str, Any]) -> None:
    assert idmaps.wanted(spec(mounts=[entry]))
    with pytest.raises(InvalidParameter, match="mounts"):
        idmaps.trees(spec(mounts=[entry]))


def test_mapped_mounts_are_found_in_text() -> None:
    plain = spec(mounts=[{"destination": "/x", "type": "bind", "source": "/", "options": ["bind"]}])
    assert not idmaps.wanted(plain)
    assert not idmaps.wanted(json.dumps({**plain, "linux": {"uidMapping": []}}).encode())
    assert idmaps.wanted(b'{"mounts": [{"options": ["ridmap"]}]}')


@pytest.mark.parametrize(
    ("text", "numbers"), [("", set()), ("0", {0}), ("0-3,7", {0, 1, 2, 3, 7}), (" 1 , 2-3 ", {1, 2, 3})]
)
def test_lists_of_numbers(text: str, numbers: set[int]) -> None:
    assert scheduling.number_set(text, "x") == numbers


def test_scheduling_as_the_kernel_takes_it() -> None:
    read = scheduling.scheduling_of(
        {
            "scheduler": {"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 2},
            "execCPUAffinity": {"initial": "0", "final": "1-2"},
        },
        {"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
    )
    assert read.scheduler == struct.pack("=IIQiIQQQ", 48, 3, 1, 5, 0, 0, 0, 0)
    assert read.io_priority == 3 << 13 | 2
    assert (read.initial, read.final) == ({0}, {1, 2})
    assert read.memory == (3 | 1 << 15, {0})
    assert scheduling.scheduling_of({}) is scheduling.scheduling_of({"terminal": True})


@pytest.mark.parametrize("policy", [{"mode": "MPOL_NONSENSE"}, {"mode": "MPOL_BIND", "flags": ["x"]}])
def test_memory_policies_that_are_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="memoryPolicy"):
        scheduling.scheduling_of({}, policy)


def test_notification_needs_an_agent() -> None:
    rules = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}
    with pytest.raises(InvalidParameter, match="listenerPath"):
        program.program_of(process(), rules)
    wanted = program.program_of(process(), {**rules, "listenerPath": "/run/a", "listenerMetadata": "words"})
    assert wanted.listener == program.Listener("/run/a", "words")


@pytest.mark.parametrize(
    "devices", [{"a/b": {}}, {"": {}}, {"x" * 16: {}}, {"a": {"name": "n"}, "b": {"name": "n"}}]
)
def test_interface_names_that_are_refused(devices: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="netDevices"):
        netdevices.check(devices)
