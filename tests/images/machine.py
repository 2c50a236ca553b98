"""A virtual machine's disk, kernel and initial RAM disk from Debian's packages, for what the test host lacks.

Debian's cloud kernel (cgroup v2, AppArmor, ipvlan), systemd, Python 3.11 and dray with its dependencies; no package
script is run, so what they would have made is written here. An agent (`support.guest`) runs commands inside.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from images import cache
from images.debian import closure, unpack

PACKAGES = (
    *("linux-image-cloud-amd64", "systemd", "systemd-sysv", "dbus", "python3", "apparmor", "iproute2", "nftables"),
    *(
        "dash",
        "bash",
        "coreutils",
        "grep",
        "sed",
        "mawk",
        "findutils",
        "tar",
        "gzip",
        "hostname",
        "util-linux-extra",
    ),
    *(
        "procps",
        "kmod",
        "busybox-static",
        "util-linux",
        "mount",
        "e2fsprogs",
        "xfsprogs",
        "curl",
        "criu",
        "iptables",
    ),
)
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "quota_v2", "ext4", "virtio_console")
LATE_MODULES = (
    *(
        "overlay",
        "bridge",
        "veth",
        "nf_tables",
        "nft_chain_nat",
        "nft_masq",
        "nft_redir",
        "nft_ct",
        "nf_conntrack",
    ),
    *(
        "nf_conntrack_netlink",
        "br_netfilter",
        "macvlan",
        "ipvlan",
        "vxlan",
        "xfrm_user",
        "esp4",
        "nft_fib_inet",
        "8021q",
        "dummy",
    ),
)
DISK_BYTES = 3 << 30
UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl5", "usr/share/perl", "usr/lib/x86_64-linux-gnu/perl", "usr/lib/x86_64-linux-gnu/perl-base")  # fmt: skip

AGENT = '''"""Runs what the host sends over the virtio port: one JSON object a line in, one a line out."""
import json, os, subprocess, sys
port = os.open("/dev/vport0p1", os.O_RDWR)
def say(answer):
    data = json.dumps(answer).encode() + b"\\n"
    while data:
        data = data[os.write(port, data):]
say({"ready": os.uname().release})
pending = b""
while True:
    while b"\\n" not in pending:
        chunk = os.read(port, 65536)
        if not chunk:
            import time
            time.sleep(0.05)  # nobody is connected on the other side
        pending += chunk
    line, _, pending = pending.partition(b"\\n")
    ask = json.loads(line)
    try:
        done = subprocess.run(ask["command"], input=ask["input"].encode(), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=ask["timeout"], start_new_session=True)
        say({"code": done.returncode, "out": done.stdout.decode(errors="replace")})
    except subprocess.TimeoutExpired as error:
        say({"code": -1, "out": "timed out; so far: " + (error.stdout or b"").decode(errors="replace")})
    except OSError as error:
        say({"code": 127, "out": str(error)})
'''

AGENT_UNIT = """[Unit]
Description=Runs the commands of the tests
DefaultDependencies=yes
[Service]
ExecStart=/usr/bin/python3 -I -S /opt/agent.py
Restart=always
[Install]
WantedBy=multi-user.target
"""

INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.05; done
/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox sh
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /lib/systemd/systemd
"""


def make(target: Path, downloads: Path, source: Path) -> None:
    """Write `disk.img` (sparse ext4), `vmlinuz` and `initrd` into the folder `target`; `source` is the checkout."""
    debs = closure(PACKAGES, downloads)
    with tempfile.TemporaryDirectory(dir=downloads.parent) as folder:
        root = Path(folder) / "root"
        root.mkdir(0o755)
        unpack(debs, root)
        kernel = next((root / "boot").glob("vmlinuz-*"))
        release = kernel.name.removeprefix("vmlinuz-")
        subprocess.run(["chroot", str(root), "/sbin/depmod", release], check=True)
        shutil.copyfile(kernel, target / "vmlinuz")
        (target / "initrd").write_bytes(_initrd(root, release))
        shutil.rmtree(root / "boot")
        for unwanted in UNWANTED:
            shutil.rmtree(root / unwanted, ignore_errors=True)
        _system(root)
        _dray(root, source)
        # Emulated, compiling takes a quarter of a minute.
        compiling = ["/usr/bin/python3", "-m", "compileall", "-q", "-j0", "/opt/dray", "/usr/lib/python3.11"]
        subprocess.run(["chroot", str(root), *compiling], check=False, stdout=subprocess.DEVNULL)
        with (target / "disk.img").open("wb") as disk:
            disk.truncate(DISK_BYTES)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-O", "quota,project", "-d", str(root), str(target / "disk.img")],
            check=True,
        )


def _system(root: Path) -> None:
    """What the packages' scripts would have made."""
    etc = root / "etc"
    users = ["root:x:0:0:root:/root:/bin/bash", "messagebus:x:100:100::/nonexistent:/usr/sbin/nologin"]
    groups = ["root:x:0:", "tty:x:5:", "disk:x:6:", "kmem:x:15:", "messagebus:x:100:", "systemd-journal:x:101:"]
    (etc / "passwd").write_text("\n".join(users) + "\n")
    (etc / "group").write_text("\n".join(groups) + "\n")
    (etc / "shadow").write_text("root::19000:0:99999:7:::\n")
    (etc / "hostname").write_text("guest\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (etc / "machine-id").write_text("")
    (etc / "fstab").write_text("")
    (etc / "modules-load.d").mkdir(exist_ok=True)
    (etc / "modules-load.d/tests.conf").write_text("\n".join(LATE_MODULES) + "\n")
    for name in ("root", "tmp", "proc", "sys", "dev", "run", "var/log", "var/tmp", "opt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.rmtree(root / "var/run", ignore_errors=True)
    (root / "var/run").symlink_to("/run")
    if not (root / "usr/bin/sh").exists():
        (root / "usr/bin/sh").symlink_to("dash")
    (root / "opt/agent.py").write_text(AGENT)
    for program in ("iptables", "ip6tables"):  # criu closes the network of what it writes down with it
        (root / f"usr/sbin/{program}-restore").symlink_to(f"{program}-nft-restore")
    units = etc / "systemd/system"
    (units / "agent.service").write_text(AGENT_UNIT)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "agent.service").symlink_to("/etc/systemd/system/agent.service")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    # What a test machine does not need, and emulation makes slow.
    for unit in ("systemd-timesyncd.service", "systemd-update-utmp.service", "e2scrub_reap.service", "apt-daily.timer",
                 "systemd-udev-settle.service", "getty@.service", "serial-getty@.service", "systemd-hwdb-update.service",
                 "systemd-networkd.service", "systemd-firstboot.service"):  # fmt: skip
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")


def _dray(root: Path, source: Path) -> None:
    """Install dray and its dependencies for the guest's Python, and the `docker` client of this host."""
    target = root / "opt/dray"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(target),
    ]
    guest = ["--python-version", "3.11", "--only-binary", ":all:"]
    names = [line.split('"')[1] for line in _dependencies(source)]
    subprocess.run([*pip, *guest, *names], check=True)
    for name in ("dray", "drayd", "dray-runtime"):
        module = {"dray": "dray.cli", "drayd": "dray.daemon", "dray-runtime": "dray.runtime"}[name]
        script = root / "usr/local/bin" / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(
            f"#!/usr/bin/python3\nimport sys\nsys.path.insert(0, '/opt/dray')\nfrom {module}.main import main\n"
            "sys.exit(main())\n"
        )
        script.chmod(0o755)
    shutil.copytree(source / "src/dray", target / "dray", ignore=shutil.ignore_patterns("__pycache__"))
    docker = shutil.which("docker")
    assert docker is not None
    shutil.copy2(docker, root / "usr/local/bin/docker")
    shutil.copy2(cache.busybox_archive(), root / "opt/busybox.tar")


def _dependencies(source: Path) -> list[str]:
    lines = (source / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [") + 1
    return lines[start : lines.index("]", start)]


def _initrd(root: Path, release: str) -> bytes:
    """A cpio archive (newc, initramfs buffer format of the kernel) with busybox and the modules of the disk."""
    order: list[Path] = []
    for module in BOOT_MODULES:
        shown = subprocess.run(
            ["chroot", str(root), "/sbin/modprobe", "--set-version", release, "--show-depends", module],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for line in shown.splitlines():
            verb, _, path = line.partition(" ")
            if verb == "insmod" and (file := root / path.split()[0].lstrip("/")) not in order:
                order.append(file)
    archive = bytearray()
    for folder in ("bin", "dev", "proc", "root", "modules"):
        _member(archive, folder, stat.S_IFDIR | 0o755, b"")
    _member(archive, "dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))
    _member(archive, "bin/busybox", stat.S_IFREG | 0o755, (root / "bin/busybox").read_bytes())
    _member(archive, "init", stat.S_IFREG | 0o755, INIT.encode())
    for file in order:
        _member(archive, f"modules/{file.name}", stat.S_IFREG | 0o644, file.read_bytes())
    names = "\n".join(file.name for file in order)
    _member(archive, "modules/order", stat.S_IFREG | 0o644, names.encode())
    _member(archive, "TRAILER!!!", 0, b"")
    return bytes(archive)


def _member(archive: bytearray, name: str, mode: int, data: bytes, *, device: tuple[int, int] = (0, 0)) -> None:
    fields = (len(archive), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    archive += b"070701" + b"".join(b"%08X" % field for field in fields)
    archive += name.encode() + b"\0"
    archive += bytes(-len(archive) % 4) + data
    archive += bytes(-len(archive) % 4)
