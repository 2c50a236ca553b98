"""userns-remap: containers whose root is nobody on the host, with a daemon of its own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import cache
from support.engines import Drayd, Engine, until
from support.world import World

pytestmark = pytest.mark.drayd_only("it has a daemon of its own")

FIRST, COUNT = 700000, 65536
ROOT = (FIRST, FIRST)


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[Engine]:
    """A daemon with userns-remap; user and group `games` get their subordinate ids in the world alone."""
    one = Drayd(flags=["--bridge", "dray-remap0", "--userns-remap", "games", "--cgroup-parent", "/dray-remap"])
    one.subnet = "172.29.76."
    with subordinate(one.base):
        one.start()
        one.load(cache.busybox_archive())
        yield one
        one.remove_everything()
        one.destroy()


@contextlib.contextmanager
def subordinate(place: Path) -> Iterator[None]:
    """Have ranges for `games` in /etc/subuid and /etc/subgid of the world's mount namespace."""
    mounted = []
    try:
        for name in ("subuid", "subgid"):
            mine, theirs = place / name, Path("/etc", name)
            mine.write_text(f"games:{FIRST}:{COUNT}\n")
            theirs.touch()
            subprocess.run(["mount", "--bind", mine, theirs], check=True)
            mounted.append(theirs)
        yield
    finally:
        for theirs in mounted:
            subprocess.run(["umount", theirs], check=True)


@pytest.fixture
def box(engine: Engine) -> Iterator[str]:
    """A running container with a volume."""
    name = engine.ok("run", "-d", "-v", "data:/data", "busybox", "sleep", "600")[:12]
    yield name
    engine.ok("rm", "-f", name)
    engine.ok("volume", "rm", "data")


def owner(path: str | Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


def members(data: bytes) -> dict[str, tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {one.name: (one.uid, one.gid) for one in tar}


def raw(engine: Engine, *arguments: str) -> bytes:
    return subprocess.run(
        engine.argv(*arguments), env=engine.env, check=True, capture_output=True, timeout=60
    ).stdout


# -- what the container sees


def test_root_inside_is_nobody_outside(engine, box):
    assert engine.ok("exec", box, "cat", "/proc/self/uid_map").split() == ["0", str(FIRST), str(COUNT)]
    assert engine.ok("exec", box, "id", "-u") == "0"
    assert owner(f"/proc/{engine.state(box)['Pid']}") == ROOT
    assert engine.ok("exec", box, "stat", "-c", "%u:%g", "/", "/bin", "/etc/hosts").split() == ["0:0"] * 3
    assert str(FIRST) in engine.ok("top", box)


def test_info_tells(engine):
    assert "name=userns" in engine.get("/info")["SecurityOptions"]


def test_host_keeps_a_container_out(engine):
    assert engine.ok("run", "--rm", "--userns", "host", "busybox", "cat", "/proc/self/uid_map").split()[1] == "0"
    assert engine.ok("run", "--rm", "--userns", "host", "--privileged", "busybox", "true") == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--privileged"],
            "privileged mode is incompatible with user namespaces.  You must run the container in the ",
        ),
        (["--network", "host"], "cannot share the host's network namespace when user namespaces are enabled"),
        (["--pid", "host"], "cannot share the host PID namespace when user namespaces are enabled"),
        (["--ipc", "host"], "cannot share the host's IPC namespace when user namespaces are enabled"),
    ],
)
def test_what_leads_out_is_refused(engine, flags, words):
    assert words in engine.fails("run", "--rm", *flags, "busybox", "true", status=125)


def test_a_user_beyond_the_range(engine):
    message = engine.fails("run", "--rm", "-u", str(COUNT), "busybox", "true", status=125)
    assert f"does not have all of its user and groups (user {COUNT}" in message


def test_standard_streams_are_the_containers(engine):
    shell = "echo out > /dev/stdout; echo err > /dev/stderr"
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", shell)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    done = engine.docker("run", "--rm", "-u", "33:33", "busybox", "sh", "-c", shell)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_network_and_its_settings_are_the_containers(engine):
    shell = (
        "mount -o remount,rw /proc/sys; echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward; "
        "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu; cat /proc/sys/net/ipv4/ping_group_range"
    )
    out = engine.ok(
        "run", "--rm", "--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "busybox", "sh", "-c", shell
    )
    assert out.split() == ["1", "1400", "0", str(COUNT - 1)]


@pytest.mark.parametrize("flags", [["--init"], ["--network", "none"], ["--read-only", "--tmpfs", "/t"], ["-t"]])
def test_kinds_of_containers(engine, flags):
    done = engine.docker("run", "--rm", *flags, "busybox", "sh", "-c", "echo fine")
    assert done.stdout.strip() == "fine", done.stderr


def test_health_checks_run(engine):
    name = engine.ok("run", "-d", "--health-cmd", "test $(id -u) = 0", "--health-interval", "100ms", "busybox",
                     "sleep", "60")  # fmt: skip
    until(lambda: engine.state(name)["Health"]["Status"] == "healthy", what="health")
    engine.ok("rm", "-f", name)


# -- joining others


def test_joining_a_container_joins_its_user_namespace(engine, box):
    own = engine.ok("exec", box, "readlink", "/proc/self/ns/user")
    shell = "readlink /proc/self/ns/user; readlink /proc/self/ns/net"
    network = engine.ok("run", "--rm", "--network", f"container:{box}", "busybox", "sh", "-c", shell).split()
    assert network == [own, engine.ok("exec", box, "readlink", "/proc/self/ns/net")]
    processes = engine.ok("run", "--rm", "--pid", f"container:{box}", "busybox", "sh", "-c", shell).split()
    assert processes[0] == own
    assert processes[1] != network[1]
    assert own != engine.ok("run", "--rm", "busybox", "readlink", "/proc/self/ns/user")


def test_joining_one_of_the_hosts_is_refused(engine):
    name = engine.ok("run", "-d", "--userns", "host", "busybox", "sleep", "60")
    message = engine.fails("run", "--rm", "--network", f"container:{name}", "busybox", "true", status=125)
    assert "is in the host's user namespace: add --userns=host" in message
    engine.ok("run", "--rm", "--userns", "host", "--network", f"container:{name}", "busybox", "true")
    engine.ok("rm", "-f", name)


# -- files


def test_a_bind_is_not_shifted(engine, tmp_path):
    """Root of the container has the rights of others on a file of the host's root, and cannot leave ones of root."""
    tmp_path.chmod(0o755)
    (tmp_path / "readable").write_text("host")
    (tmp_path / "secret").write_text("host")
    (tmp_path / "secret").chmod(0o600)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    shell = (
        "cat /h/readable; echo x > /h/readable; cat /h/secret; chown 0 /h/readable; touch /h/new; mknod /h/open/n b 8 0; "
        "cp /bin/busybox /h/open/b; chown 0:0 /h/open/b; chmod 4755 /h/open/b"
    )
    done = engine.docker("run", "--rm", "--cap-add", "ALL", "-v", f"{tmp_path}:/h", "busybox", "sh", "-c", shell)
    assert done.stdout == "host"
    assert len(re.findall(r"denied|not permitted", done.stderr)) == 5, done.stderr
    assert (tmp_path / "readable").read_text() == "host"
    assert not (tmp_path / "new").exists()
    assert not (open_to_all / "n").exists()
    assert owner(open_to_all / "b") == ROOT


def test_a_directory_made_for_a_bind_is_the_containers(engine, tmp_path):
    engine.ok("run", "--rm", "-v", f"{tmp_path}/a/b:/h", "busybox", "touch", "/h/file")
    assert [owner(tmp_path / name) for name in ("a", "a/b", "a/b/file")] == [ROOT] * 3


def test_volumes_belong_to_the_containers_root(engine, box):
    place = engine.data_root / "volumes/data/_data"
    engine.ok("exec", box, "sh", "-c", "touch /data/f; chown 5:6 /data/f")
    assert owner(place) == ROOT
    assert owner(place / "f") == (FIRST + 5, FIRST + 6)


def test_a_volume_filled_from_the_image(engine):
    out = engine.ok("run", "--rm", "variants:volume", "stat", "-c", "%u:%g", "/data", "/data/file")
    assert out.split() == ["1000:1000", "1000:1000"]


def test_an_image_as_mount(engine):
    out = engine.ok("run", "--rm", "--mount", "type=image,src=variants:volume,dst=/i", "busybox", "stat", "-c", "%u:%g",
                    "/i/data/file", "/i/bin")  # fmt: skip
    assert out.split() == ["1000:1000", "0:0"]


def test_mapped_owners_of_a_bind(engine, tmp_path):
    (tmp_path / "f").write_text("")
    label = "dray.bind-idmap./h=0:0:1"
    out = engine.ok("run", "--rm", "--label", label, "-v", f"{tmp_path}:/h", "busybox", "sh", "-c",
                    "stat -c %u /h/f; touch /h/new")  # fmt: skip
    assert out == "0"
    assert owner(tmp_path / "new") == (0, 0)  # the user has asked for it


def test_nothing_is_shifted_on_disk(engine, box):
    """diff, export, commit and cp have the container's ids; a commit runs with and without user namespace."""
    engine.ok("exec", box, "sh", "-c", "mkdir /d; chown 5:6 /d; touch /d/f")
    assert engine.ok("diff", box).split("\n") == ["A /d", "A /d/f", "A /data"]
    exported = members(raw(engine, "export", box))
    assert (exported["d"], exported["d/f"], exported["bin/busybox"]) == ((5, 6), (0, 0), (0, 0))
    assert members(raw(engine, "cp", f"{box}:/d", "-")) == {"d": (5, 6), "d/f": (0, 0)}
    engine.ok("commit", box, "unshifted")
    for flags in ([], ["--userns", "host"]):
        out = engine.ok("run", "--rm", *flags, "unshifted", "stat", "-c", "%u:%g", "/d", "/d/f")
        assert out.split() == ["5:6", "0:0"]
    engine.ok("rmi", "unshifted")


def archive(uid: int) -> str:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("in")
        info.uid = info.gid = uid
        tar.addfile(info)
    return data.getvalue().decode("latin-1")


@pytest.mark.parametrize("running", [True, False])
def test_cp_in_has_the_containers_ids(engine, box, running):
    if not running:
        engine.ok("stop", "-t", "0", box)
    for place in ("/", "/data/"):
        subprocess.run(engine.argv("cp", "-a", "-", f"{box}:{place}"), env=engine.env, check=True,
                       input=archive(7).encode("latin-1"), timeout=60)  # fmt: skip
        assert members(raw(engine, "cp", f"{box}:{place}in", "-")) == {"in": (7, 7)}
    if running:
        assert engine.ok("exec", box, "stat", "-c", "%u", "/in", "/data/in").split() == ["7", "7"]
    assert owner(engine.data_root / "volumes/data/_data/in") == (FIRST + 7, FIRST + 7)
    done = subprocess.run(engine.argv("cp", "-a", "-", f"{box}:/"), env=engine.env, check=False,
                          input=archive(COUNT).encode("latin-1"), capture_output=True, timeout=60)  # fmt: skip
    assert f"container ID {COUNT} cannot be mapped to a host ID".encode() in done.stderr


def test_programs_with_file_capabilities(engine, box):
    """The attributes of layers hold inside, also once the file was copied up."""
    program = raw(engine, "cp", f"{box}:/bin/busybox", "-")
    data = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(program)) as tar, tarfile.open(fileobj=data, mode="w") as image:
        info = tar.getmembers()[0]
        info.name = "busybox"
        info.pax_headers = {
            "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20" + 14 * "\x00"
        }  # CAP_NET_RAW
        image.addfile(info, tar.extractfile(tar.getmembers()[0]))
    subprocess.run(
        engine.argv("import", "-", "caps"), env=engine.env, check=True, input=data.getvalue(), timeout=60
    )
    name = engine.ok("run", "-d", "caps", "/busybox", "sleep", "60")
    for _ in range(2):
        shown = engine.ok("exec", "-u", "33", name, "/busybox", "grep", "CapEff", "/proc/self/status")
        assert int(shown.split()[1], 16) == 1 << 13
        engine.ok("exec", name, "/busybox", "chmod", "755", "/busybox")
    engine.ok("rm", "-f", name)
    engine.ok("rmi", "caps")


def test_a_daemon_that_comes_back(engine, box):
    """What ran goes on, and is looked into as before, with other ids or none in the configuration."""
    engine.ok("exec", box, "sh", "-c", "touch /kept; chown 9 /kept")
    flags = list(engine.flags)
    engine.stop()
    with contextlib.suppress(ValueError):
        at = engine.flags.index("--userns-remap")
        del engine.flags[at : at + 2]
    engine.start()
    try:
        assert engine.ok("exec", box, "stat", "-c", "%u", "/kept") == "9"
        assert members(raw(engine, "cp", f"{box}:/kept", "-")) == {"kept": (9, 0)}
        engine.ok("restart", "-t", "0", box)
        assert engine.ok("exec", box, "cat", "/proc/self/uid_map").split()[1] == "0"
        assert engine.ok("exec", box, "stat", "-c", "%u", "/kept") == "9"
    finally:
        engine.stop()
        engine.flags[:] = flags
        engine.start()


def test_a_data_root_without_mapped_ids_is_refused_at_start(engine):
    """A ramfs knows no mounts with mapped ids."""
    base = engine.base / "ram"
    base.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", base], check=True)
    other = Drayd(base, flags=["--bridge", "dray-remap8", "--userns-remap", "games", "--storage-driver", "vfs"])
    try:
        other.launch()
        assert other.daemon is not None
        assert other.daemon.wait(20) == 1
        other.daemon = None
        assert "move the data root, use --storage-driver fuse-overlayfs, or leave" in other.log.read_text()
        assert not [name for name in os.listdir(other.data_root) if name.startswith("probe-")]
    finally:
        subprocess.run(["umount", "-l", base], check=True)


@pytest.mark.skipif(shutil.which("fuse-overlayfs") is None, reason="fuse-overlayfs is not installed")
def test_where_no_mount_has_mapped_ids_fuse_overlayfs_maps_them(engine):
    """On an overlay, as in a container. Nothing on disk has shifted ids, so layers are shared with containers outside, and images
    made of what a container wrote are like any other's."""
    base = engine.base / "served"
    for name in ("low", "up", "work", "served"):
        (engine.base / name).mkdir()
    words = ",".join(
        f"{key}dir={engine.base}/{name}" for key, name in (("lower", "low"), ("upper", "up"), ("work", "work"))
    )
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", words, base], check=True)
    flags = ["--bridge", "dray-remap7", "--userns-remap", "games", "--storage-driver", "fuse-overlayfs"]
    other = Drayd(base, flags=[*flags, "--cgroup-parent", "/dray-remap7"])
    other.subnet = "172.29.75."
    try:
        other.start()
        other.load(cache.busybox_archive())
        script = "touch /mine; mkdir /dir; chown 7:8 /dir; stat -c %u:%g / /mine /dir /bin/busybox; sleep 600"
        other.ok("run", "-d", "--name", "box", "-v", "data:/data", "busybox", "sh", "-c", script)
        until(lambda: other.ok("logs", "box").split() == ["0:0", "0:0", "7:8", "0:0"], what="owners inside")
        assert owner(f"/proc/{other.state('box')['Pid']}/root/dir") == (FIRST + 7, FIRST + 8)
        assert owner(f"/proc/{other.state('box')['Pid']}") == ROOT
        assert other.ok("exec", "-u", "7", "box", "sh", "-c", "touch /dir/x; stat -c %u:%g /dir/x") == "7:0"
        (engine.base / "file").write_text("from outside")
        other.ok("cp", str(engine.base / "file"), "box:/file")
        assert other.ok("exec", "box", "stat", "-c", "%u:%g", "/file") == "0:0"
        assert other.ok("diff", "box").split("\n") == ["A /data", "A /dir", "A /dir/x", "A /file", "A /mine"]
        other.ok("kill", "box")
        assert members(raw(other, "cp", "box:/dir", "-")) == {"dir": (7, 8), "dir/x": (7, 0)}
        other.ok("cp", str(engine.base / "file"), "box:/again")  # the container does not run
        other.ok("commit", "box", "made")
        assert other.ok(
            "run", "--rm", "--userns", "host", "made", "stat", "-c", "%u:%g", "/dir", "/again"
        ).split() == [
            "7:8",
            "0:0",
        ]
        image = ["--mount", "type=image,source=made,target=/image"]
        assert other.ok("run", "--rm", *image, "busybox", "stat", "-c", "%u:%g", "/image/dir") == "7:8"
    finally:
        other.remove_everything()
        other.destroy()
        subprocess.run(["umount", "-l", base], check=True)


def test_a_setting_that_fails_stops_the_daemon(engine):
    other = Drayd(engine.base / "other", flags=["--bridge", "dray-remap9", "--userns-remap", "no-such-user"])
    other.launch()
    assert other.daemon is not None
    assert other.daemon.wait(20) == 1
    other.daemon = None
    assert "there is no user 'no-such-user' on this host" in other.log.read_text()
