"""`docker cp` both ways, `docker export` and `docker commit`, of running and of stopped containers."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import socket
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from support.engines import Engine, until
from support.layers import entry, folder, hardlink, make, symlink

SOURCE = str(Path(__file__).parents[2] / "src")
SETUP = """
ln -s /etc /lnk; ln -s /no/../no/where /dang; ln -s etc/passwd /rel; mkfifo /fifo; touch /su; chmod 6755 /su
ln -s loop /loop; echo kept > /data/x; ln /etc/passwd /hl; echo w > /written; mkdir -p /many/deep; echo d > /many/deep/file
touch /ready; exec sleep 1000
"""


@pytest.fixture(params=["running", "stopped"])
def box(request: pytest.FixtureRequest, engine: Engine) -> str:
    """A container with links, volumes and special files, running or stopped."""
    engine.ok(
        *("run", "-d", "--name", "box", "--network", "none", "-v", "named:/data", "-v", "fixed:/ro:ro"),
        *("--tmpfs", "/scratch", "busybox", "sh", "-c", SETUP),
    )
    until(lambda: engine.docker("exec", "box", "test", "-e", "/ready").returncode == 0)
    if request.param == "stopped":
        engine.ok("stop", "-t", "0", "box")
    return "box"


def look(engine: Engine, path: str, *, method: str = "HEAD", name: str = "box") -> tuple[int, dict[str, Any]]:
    status, headers, _ = engine.api(method, f"/containers/{name}/archive?path={quote(path)}")
    told = headers.get("x-docker-container-path-stat")
    return status, json.loads(base64.b64decode(told)) if told else {}


def fetch(engine: Engine, path: str, *, name: str = "box") -> dict[str, tarfile.TarInfo]:
    status, _, body = engine.api("GET", f"/containers/{name}/archive?path={quote(path)}")
    assert status == 200, body
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return {member.name: member for member in tar}


def content(engine: Engine, path: str, *, name: str = "box") -> bytes:
    status, _, body = engine.api("GET", f"/containers/{name}/archive?path={quote(path)}")
    assert status == 200, body
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        file = tar.extractfile(tar.getmembers()[0])
        assert file is not None
        return file.read()


def put(engine: Engine, path: str, body: bytes, query: str = "", *, name: str = "box") -> tuple[int, str]:
    status, _, answer = engine.api("PUT", f"/containers/{name}/archive?path={quote(path)}{query}", body)
    return status, json.loads(answer)["message"] if answer else ""


STATS = [
    ("/etc/passwd", "passwd", 0o644, ""),
    ("etc/passwd", "passwd", 0o644, ""),
    ("/../etc/passwd", "passwd", 0o644, ""),
    ("/etc", "etc", 1 << 31 | 0o755, ""),
    ("/etc/", "etc", 1 << 31 | 0o755, ""),
    ("/etc/.", ".", 1 << 31 | 0o755, ""),
    ("/", "/", 1 << 31 | 0o755, ""),
    (".", ".", 1 << 31 | 0o755, ""),
    ("/lnk", "lnk", 1 << 27 | 0o777, "/etc"),
    ("/lnk/", "lnk", 1 << 31 | 0o755, ""),
    ("/lnk/.", ".", 1 << 31 | 0o755, ""),
    ("/lnk/passwd", "passwd", 0o644, ""),
    ("/dang", "dang", 1 << 27 | 0o777, "/no/where"),
    ("/rel", "rel", 1 << 27 | 0o777, "/etc/passwd"),
    ("/bin/sh", "sh", 1 << 27 | 0o777, "/bin/busybox"),
    ("/fifo", "fifo", 1 << 25 | 0o644, ""),
    ("/su", "su", 1 << 23 | 1 << 22 | 0o755, ""),
    ("/tmp", "tmp", 1 << 31 | 1 << 20 | 0o777, ""),
    ("/data/x", "x", 0o644, ""),
    ("/etc/hosts", "hosts", 0o644, ""),
]


def test_stat(engine: Engine, box: str) -> None:
    for path, name, mode, link in STATS:
        status, told = look(engine, path)
        assert (status, told["name"], told["mode"], told["linkTarget"]) == (200, name, mode, link), path
        assert told["mtime"].endswith("Z")
    assert look(engine, "/data/x")[1]["size"] == 5
    assert look(engine, "/etc/hosts")[1]["size"] > 20
    for path in ("/nosuch", "/dang/", "/nosuch/x", "/proc/self", "/proc/1/environ"):
        assert look(engine, path)[0] == 404, path
    for path in ("/etc/passwd/x", "/loop/"):
        assert look(engine, path)[0] in (400, 500), path


def test_missing_file_is_named(engine: Engine, box: str) -> None:
    status, _, body = engine.api("GET", "/containers/box/archive?path=/nosuch")
    assert (status, json.loads(body)["message"]) == (404, "Could not find the file /nosuch in container box")
    assert put(engine, "/nosuch", make()) == (404, "Could not find the file /nosuch in container box")
    assert "Could not find the file /nosuch in container box" in engine.fails("cp", "box:/nosuch", "/tmp/archives")


def test_names_in_an_archive(engine: Engine, box: str) -> None:
    assert set(fetch(engine, "/many")) == {"many", "many/deep", "many/deep/file"}
    assert set(fetch(engine, "/many/.")) == {".", "./deep", "./deep/file"}
    assert set(fetch(engine, "/many/deep/file")) == {"file"}
    assert {"lnk", "lnk/passwd", "lnk/hosts"} <= set(fetch(engine, "/lnk/"))
    link = fetch(engine, "/lnk")["lnk"]
    assert (link.type, link.linkname) == (tarfile.SYMTYPE, "/etc")
    whole = fetch(engine, "/")
    assert {"", "/bin", "/data/x", "/etc/hosts", "/many/deep/file"} <= {name.rstrip("/") for name in whole}
    assert whole["/hl"].type == tarfile.LNKTYPE or whole["/etc/passwd"].type == tarfile.LNKTYPE
    assert not [name for name in whole if name.startswith(("/proc/", "/sys/"))]
    assert set(fetch(engine, "/proc")) == {"proc"}
    assert content(engine, "/data/x") == b"kept\n"


def test_kernel_and_device_files_stay_out_of_a_whole_copy(engine: Engine, box: str) -> None:
    kinds = {member.type for member in fetch(engine, "/").values()}
    assert tarfile.CHRTYPE not in kinds
    assert b"root:x" in content(engine, "/etc/passwd")


def test_put(engine: Engine, box: str) -> None:
    body = make(
        entry("a", b"new\n", mode=0o4755, uid=77, gid=78),
        folder("sub/", mode=0o750, uid=5),
        entry("sub/.wh.x", b"no whiteout"),
        entry("/absolute", b""),
        symlink("out", "/etc/passwd"),
        entry("null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        entry("plain", b"linked"),
        hardlink("b", "plain"),  # of a set-user-id file dockerd would drop that bit
    )
    assert put(engine, "/tmp", body) == (200, "")
    found = fetch(engine, "/tmp")
    assert (found["tmp/a"].mode & 0o7777, found["tmp/a"].uid, found["tmp/a"].gid) == (0o4755, 77, 78)
    assert (found["tmp/sub"].mode & 0o7777, found["tmp/sub"].uid) == (0o750, 5)
    assert {found["tmp/b"].linkname, found["tmp/plain"].linkname} == {"", "tmp/b"}
    assert (found["tmp/null"].devmajor, found["tmp/null"].devminor) == (1, 3)
    assert {"tmp/sub/.wh.x", "tmp/absolute", "tmp/out"} <= set(found)
    assert put(engine, "/lnk", make(entry("through", b"x"))) == (200, "")
    assert look(engine, "/etc/through")[0] == 200
    assert put(engine, "/data", make(entry("v", b"volume"))) == (200, "")
    assert engine.ok("run", "--rm", "-v", "named:/n", "busybox", "cat", "/n/v") == "volume"
    assert put(engine, "/tmp", make(folder("./", mode=0o700, uid=9))) == (200, "")
    assert look(engine, "/tmp")[1]["mode"] & 0o777 == 0o777  # the destination keeps its own attributes


def test_put_is_refused(engine: Engine, box: str) -> None:
    for path, body, words in [
        ("/etc/passwd", make(entry("a", b"")), "extraction point is not a directory"),
        ("/tmp", make(entry("../evil", b"x")), '"../evil" is outside of "/tmp"'),
        ("/tmp", make(symlink("s", "../../etc")), 'invalid symlink "/tmp/s" -> "../../etc"'),
        ("/tmp", make(hardlink("h", "../etc/passwd")), "invalid hardlink"),
        ("/tmp", make(hardlink("h", "/etc/passwd")), "etc/passwd"),
        ("/tmp", b"garbage " * 100, ""),
        ("/ro", make(entry("v", b"x")), "mounted volume is marked read-only"),
        ("/", make(entry("ro/v", b"x")), "read-only file system"),
    ]:
        status, message = put(engine, path, body)
        assert status in (400, 403, 500), (path, status, message)
        assert words in message, (path, status, message)
    assert look(engine, "/evil")[0] == 404
    assert look(engine, "/tmp/s")[0] == 404
    for path, name in [("/etc", "hosts"), ("/", "etc"), ("/", "data")]:
        if name == "hosts" or engine.name == "drayd":  # dockerd empties the directory before it finds out
            status, message = put(engine, path, make(entry(name, b"x")))
            assert status in (409, 500)
            assert "busy" in message
    assert content(engine, "/data/x") == b"kept\n"
    assert b"root:x" in content(engine, "/etc/passwd")


def test_kinds_are_kept_when_asked(engine: Engine, box: str) -> None:
    flag = "&noOverwriteDirNonDir=1"
    assert "cannot overwrite directory" in put(engine, "/", make(entry("tmp", b"x")), flag)[1]
    assert "cannot overwrite non-directory" in put(engine, "/etc", make(folder("passwd")), flag)[1]
    assert put(engine, "/many", make(entry("deep", b"a file now")))[0] == 200
    assert content(engine, "/many/deep") == b"a file now"


def test_compressed_bodies(engine: Engine, box: str) -> None:
    import zstandard

    packers = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
    if engine.name == "drayd":
        packers["zstd"] = zstandard.ZstdCompressor().compress
    for name, pack in packers.items():
        assert put(engine, "/tmp", pack(make(entry(name, name.encode())))) == (200, "")
        assert content(engine, f"/tmp/{name}") == name.encode()


def test_client_copies_both_ways(engine: Engine, box: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("from the host\n")
    os.symlink("sub/file", tree / "link")
    engine.ok("cp", str(tree), "box:/tmp")
    engine.ok("cp", f"{tree}/.", "box:/var")
    engine.ok("cp", f"{tree}/sub/file", "box:/tmp/renamed")
    engine.ok("cp", "box:/tmp/tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "file").read_text() == "from the host\n"
    assert os.readlink(tmp_path / "back" / "link") == "sub/file"
    engine.ok("cp", "-L", "box:/rel", str(tmp_path / "passwd"))
    assert "root:x" in (tmp_path / "passwd").read_text()
    assert content(engine, "/tmp/renamed") == content(engine, "/var/sub/file") == b"from the host\n"
    engine.ok("cp", "box:/data", str(tmp_path))
    assert (tmp_path / "data" / "x").read_text() == "kept\n"


@pytest.mark.drayd_only("it is our own client")
def test_our_client_copies_both_ways(engine: Engine, box: str, tmp_path: Path) -> None:
    def dray(*arguments: str, data: bytes = b"") -> bytes:
        argv = [sys.executable, "-m", "dray.cli", *arguments]
        done = subprocess.run(
            argv, check=False, input=data, env={**engine.env, "PYTHONPATH": SOURCE}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "file").write_text("ours\n")
    dray("cp", str(tmp_path / "file"), "box:/data/ours")
    dray("cp", "box:/data", str(tmp_path / "data"))
    assert (tmp_path / "data" / "ours").read_text() == "ours\n"
    dray("cp", "-", "box:/tmp", data=make(entry("piped", b"through")))
    with tarfile.open(fileobj=io.BytesIO(dray("export", "box"))) as tar:
        assert "tmp/piped" in tar.getnames()
    assert dray("commit", "box", "ours:one").startswith(b"sha256:")
    assert engine.ok("run", "--rm", "ours:one", "cat", "/tmp/piped") == "through"
    engine.ok("rmi", "ours:one")


def test_a_write_is_seen_by_the_container(engine: Engine, box: str) -> None:
    assert put(engine, "/tmp", make(entry("news", b"hello")))[0] == 200
    engine.docker("start", "box")
    assert engine.ok("exec", "box", "cat", "/tmp/news") == "hello"


def test_clients_that_go_away(engine: Engine, box: str) -> None:
    """Half an upload and half a download leave no lock held and no descriptor open."""
    body = make(entry("big", bytes(4 << 20)))
    descriptors = Path(f"/proc/{engine.pid}/fd")
    look(engine, "/etc")
    before = len(os.listdir(descriptors))
    for request in (
        b"PUT /containers/box/archive?path=/tmp HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body[: 1 << 20],
        b"GET /containers/box/archive?path=/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /containers/box/export HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(engine.socket))
            client.sendall(request)
            if request.startswith(b"GET"):
                client.recv(1000)
            else:
                time.sleep(0.1)
    if engine.name == "drayd":
        until(lambda: len(os.listdir(descriptors)) <= before, what="the daemon to close what it had opened")
    assert put(engine, "/tmp", make(entry("after", b"x"))) == (200, "")
    engine.docker("start", "box")
    assert engine.ok("exec", "box", "cat", "/tmp/after") == "x"


def test_created_container(engine: Engine) -> None:
    """Mount points that no start has made yet are seen, too."""
    engine.ok("create", "--name", "fresh", "-v", "named:/new/data", "busybox", "cat", "/new/data/f", "/top")
    assert look(engine, "/new/data", name="fresh")[0] == 200
    assert put(engine, "/new/data", make(entry("f", b"in the volume ")), name="fresh") == (200, "")
    assert put(engine, "/", make(entry("top", b"at the top")), name="fresh") == (200, "")
    assert engine.ok("start", "-a", "fresh") == "in the volume at the top"


@pytest.mark.drayd_only("it looks names up on the host instead of in the container")
def test_archive_mode_gives_files_to_the_user(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--user", "app", "busybox", "sleep", "1000")
    assert put(engine, "/tmp", make(entry("mine", b"", uid=5)), "&copyUIDGID=1") == (200, "")
    assert engine.ok("exec", "box", "stat", "-c", "%u %g", "/tmp/mine") == "1000 1000"
    assert put(engine, "/tmp", make(entry("kept", b"", uid=5, gid=6))) == (200, "")
    assert engine.ok("exec", "box", "stat", "-c", "%u %g", "/tmp/kept") == "5 6"


def test_read_only_root(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--read-only", "-v", "named:/data", "busybox", "sleep", "1000")
    for _ in range(2):
        status, message = put(engine, "/tmp", make(entry("x", b"")))
        assert status in (403, 500)
        assert message == "container rootfs is marked read-only"
        assert put(engine, "/data", make(entry("x", b""))) == (200, "")
        engine.ok("stop", "-t", "0", "box")


def test_export(engine: Engine, box: str, tmp_path: Path) -> None:
    engine.ok("export", "-o", str(tmp_path / "box.tar"), "box")
    with tarfile.open(tmp_path / "box.tar") as tar:
        members = {member.name: member for member in tar}
    assert {".dockerenv", "written", "many/deep/file", "data", "proc", "bin/busybox"} <= set(members)
    assert not [name for name in members if name.startswith(("data/", "proc/", "sys/", "scratch/"))]
    assert members["su"].mode & 0o7777 == 0o6755
    assert {members["hl"].type, members["etc/passwd"].type} == LINKED
    imported = engine.ok("import", str(tmp_path / "box.tar"), "imported:one")
    assert imported.startswith("sha256:")
    assert engine.ok("run", "--rm", "imported:one", "cat", "/written") == "w"
    engine.ok("rmi", "imported:one")


LINKED = {tarfile.REGTYPE, tarfile.LNKTYPE}


def test_commit(engine: Engine, box: str) -> None:
    engine.docker("start", "box")
    engine.ok("exec", "box", "rm", "/var/www/index.html")
    changes = ["-c", "CMD cat /written", "-c", "ENV A=1", "-c", "LABEL x=y", "-c", "EXPOSE 80"]
    identity = engine.ok("commit", "-m", "why", "-a", "me", *changes, "box", "saved:one")
    try:
        image = engine.inspect("saved:one", kind="image")
        assert identity == image["Id"]
        assert identity.startswith("sha256:")
        assert (image["Author"], image["Comment"]) == ("me", "why")
        assert image["Config"]["Cmd"] == ["/bin/sh", "-c", "cat /written"]
        assert "A=1" in image["Config"]["Env"]
        assert image["Config"]["Env"][0].startswith("PATH=")
        assert image["Config"]["Labels"] == {"x": "y"}
        base = engine.inspect("busybox", kind="image")["RootFS"]["Layers"]
        assert image["RootFS"]["Layers"][:-1] == base
        top = json.loads(engine.ok("history", "--no-trunc", "--format", "{{json .}}", "saved:one").splitlines()[0])
        assert top["Comment"] == "why"
        assert top["CreatedBy"].startswith("sh -c")
        assert engine.ok("run", "--rm", "saved:one") == "w"
        assert engine.docker("run", "--rm", "saved:one", "ls", "/var/www/index.html").returncode == 1
        assert engine.ok("run", "--rm", "saved:one", "ls", "/data", "/ro") == "/data:\n\n/ro:"
        assert engine.state("box")["Status"] == "running"
    finally:
        engine.docker("rmi", "-f", "saved:one")


def test_commit_refuses(engine: Engine, box: str) -> None:
    assert "No such container: nosuch" in engine.fails("commit", "nosuch")
    assert "run is not a valid change command" in engine.fails("commit", "-c", "RUN x", "box").lower()
    status, _, body = engine.api("POST", "/commit?container=box&repo=UPPER")
    assert status in (400, 500)
    assert b"lowercase" in body


def test_commit_keeps_what_is_asked(engine: Engine, box: str) -> None:
    asked = {"Cmd": ["/x"], "Env": ["Z=2"], "Labels": {"q": "r"}, "ExposedPorts": {"80/tcp": {}}, "User": "app"}
    status, _, body = engine.api("POST", "/commit?container=box&repo=asked&tag=x&pause=0", asked)
    assert status == 201, body
    config = engine.inspect("asked:x", kind="image")["Config"]
    assert (config["Cmd"], config["User"], config["ExposedPorts"]) == (["/x"], "app", {"80/tcp": {}})
    assert config["Env"][0] == "Z=2"
    assert config["Env"][1].startswith("PATH=")
    engine.ok("rmi", "asked:x")


def test_events(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "busybox", "true")
    since = str(time.time())
    fetch(engine, "/etc")
    put(engine, "/etc", make(entry("x", b"")))
    engine.api("GET", "/containers/box/export")
    engine.api("POST", "/commit?container=box&repo=evented&comment=c")
    time.sleep(1)  # `until` is cut to whole seconds by some engines
    lines = engine.ok(
        "events", "--since", since, "--until", str(int(time.time()) + 1), "--filter", "type=container",
        "--format", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.imageRef}}",
    )  # fmt: skip
    told = [line.split()[:2] for line in lines.splitlines()]
    assert told == [["archive-path", "box"], ["extract-to-dir", "box"], ["export", "box"], ["commit", "box"]]
    assert lines.endswith(("evented:latest", "evented"))
    engine.ok("rmi", "evented")


SWAPPER = """
mkdir -p /play/real /play/etc; echo inside > /play/real/shadow; echo inside > /play/etc/shadow; touch /ready
while true; do mv /play/real /play/kept; ln -s /../../../../../../etc /play/real; rm /play/real; mv /play/kept /play/real; done
"""


def test_swapped_directories_lead_nowhere_else(engine: Engine) -> None:
    """A process that swaps a directory for a link to the host's /etc gains nothing (CVE-2018-15664)."""
    host = Path("/etc/dray-archives-test")
    shadow = Path("/etc/shadow").read_bytes()
    engine.ok("run", "-d", "--name", "box", "--network", "none", "busybox", "sh", "-c", SWAPPER)
    until(lambda: engine.docker("exec", "box", "test", "-e", "/ready").returncode == 0)
    body = make(entry("dray-archives-test", b"written"))
    deadline = time.monotonic() + 3
    read = wrote = 0
    while time.monotonic() < deadline:
        wrote += put(engine, "/play/real", body)[0] == 200
        assert not host.exists()
        status, _, answer = engine.api("GET", "/containers/box/archive?path=/play/real/shadow")
        if status == 200:
            read += 1
            assert shadow[:64] not in answer
    assert read
    assert wrote
    assert stat.S_ISREG(os.lstat("/etc/shadow").st_mode)


@pytest.mark.drayd_only("this very image is the attack on it")
def test_nothing_of_the_container_is_loaded(engine: Engine) -> None:
    """Libraries and name service files that the container has made are data, and never run (CVE-2019-14271)."""
    engine.ok("create", "--name", "box", "busybox", "true")
    trap = [entry(f"lib/{name}", b"\x7fELF not a library") for name in ("libnss_files.so.2", "libc.so.6")]
    body = make(folder("lib"), *trap, entry("etc/nsswitch.conf", b"passwd: trap\n"))
    assert put(engine, "/", body) == (200, "")
    maps = Path(f"/proc/{engine.pid}/maps").read_text()
    assert {"lib/libc.so.6", "lib"} <= set(fetch(engine, "/lib"))
    fresh = set(Path(f"/proc/{engine.pid}/maps").read_text().split()) - set(maps.split())
    assert not [word for word in fresh if "libnss" in word or str(engine.base) in word]


def test_the_working_directory_is_there_before_the_start(engine: Engine, tmp_path: Path) -> None:
    engine.ok("create", "--name", "box", "-w", "/srv/app/data", "busybox", "ls", "/srv/app/data")
    engine.ok("cp", "box:/srv/app/data", str(tmp_path))
    assert list((tmp_path / "data").iterdir()) == []
    (tmp_path / "file").write_text("x")
    engine.ok("cp", str(tmp_path / "file"), "box:/srv/app/data")
    assert engine.ok("start", "-a", "box") == "file"
    # One that leads out of the root by a link stays inside it.
    engine.ok("run", "--name", "maker", "busybox", "ln", "-s", "/../../../../srv", "/out")
    engine.ok("commit", "maker", "linked")
    engine.ok("create", "--name", "inside", "-w", "/out/made-by-dray", "linked", "ls", "/srv")
    assert not Path("/srv/made-by-dray").exists()
    assert engine.ok("start", "-a", "inside") == "made-by-dray"
    engine.ok("rm", "inside")
    engine.ok("rmi", "linked")
