"""Networking and quotas that the host of the tests cannot show, in a virtual machine with a kernel that has them all.

The machine is booted once. Scripts run inside it, on the networking of dray itself (`lab_networks.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from images import cache
from support.guest import Guest

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.vm,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu is not installed"),
]
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    guest = Guest(tmp_path_factory.mktemp("machine"), cache.machine())
    try:
        guest.boot()
        guest.ok("mkdir -p /root/lab")
        for script in ("kernel/netlab.py", "vm/lab_networks.py"):
            guest.ok(f"cat > /root/lab/{Path(script).name}", input=(TESTS / script).read_text())
        yield guest
    finally:
        guest.close()


@pytest.mark.parametrize("lab", ["encrypted", "rotation", "ipvlan", "vlan", "dummy"])
def test_network(guest: Guest, lab: str) -> None:
    environment = "PYTHONPATH=/opt/dray:/root/lab PYTHONDONTWRITEBYTECODE=1"
    assert guest.ok(f"{environment} python3 /root/lab/lab_networks.py {lab}", timeout=240).endswith("passed")


@contextmanager
def quota_engine(guest: Guest, make: str) -> Iterator[str]:
    """A daemon whose data root is on a new file system with project quotas; yields the line that `docker` begins with."""
    guest.ok(f"truncate -s 400M /disk && {make} /disk && mkdir -p /quota && mount -o loop,prjquota /disk /quota")
    daemon = "-H unix:///run/q.sock --data-root /quota/d --exec-root /run/q --pidfile /run/q.pid --bridge none"
    guest.ok(f"setsid drayd {daemon} >/var/log/q.log 2>&1 </dev/null & sleep 1")
    docker = "DOCKER_HOST=unix:///run/q.sock docker"
    guest.ok(f"until [ -S /run/q.sock ] && {docker} ps -q; do sleep 1; done", timeout=240)
    guest.ok(f"{docker} load -q -i /opt/busybox.tar")
    try:
        yield docker
    finally:
        guest.ok(
            "kill $(cat /run/q.pid); for i in 1 2 3 4 5 6 7 8 9; do umount /quota && break; sleep 1; done; "
            "rm -f /disk /run/q.sock"
        )


FULL = ("No space left", "quota exceeded")


def test_size_of_a_volume_is_kept(guest: Guest) -> None:
    """On ext4 with project quotas; what runs in the container lacks the capability that passes a quota by."""
    with quota_engine(guest, "mke2fs -q -t ext4 -O quota,project") as docker:
        guest.ok(f"{docker} volume create -o size=2m small")
        write = "dd if=/dev/zero of=/data/file bs=64k count={}"
        guest.ok(f"{docker} run --rm -v small:/data busybox {write.format(16)}")
        code, out = guest.run(f"{docker} run --rm -v small:/data busybox {write.format(64)}")
        assert (code != 0, any(words in out.replace("Q", "q") for words in FULL)) == (True, True), out
        # The container's own files are written by overlayfs with the daemon's rights: there the quota would not hold.
        _, out = guest.run(f"{docker} create --storage-opt size=4m busybox; {docker} volume rm small")
        assert "--storage-opt is supported only for overlay over xfs with 'pquota' mount option" in out


def test_size_of_what_a_container_writes_is_kept(guest: Guest) -> None:
    """`--storage-opt size=` on xfs; gone with the container."""
    with quota_engine(guest, "mkfs.xfs -q -f") as docker:
        write = "rm -f /renamed; dd if=/dev/zero of=/file bs=1M count=8 2>&1; mv /file /renamed; wc -c < /renamed"
        guest.ok(f"{docker} create --name box --storage-opt size=4m busybox sh -c '{write}'")
        for _ in range(2):  # a full one is writable in its next run
            out = guest.run(f"{docker} start -a box")[1]
            assert any(words in out.replace("Q", "q") for words in FULL), out
            assert "Read-only" not in out
            assert 3 << 20 < int(out.split()[-1]) <= 4 << 20
        guest.ok(f"{docker} rm -f box")
        assert guest.ok(f"{docker} run --rm busybox sh -c '{write}'").split()[-1] == str(8 << 20)
        report = "xfs_quota -x -c 'report -p -n -N' /quota | busybox awk '$1 ~ /^#1[0-9]{9}/ && $2 > 0 { exit 1 }'"
        guest.ok(f"for i in $(seq 30); do {report} && exit 0; sleep 1; done; exit 1")


HUGE = """
import errno, mmap
one = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)  # MAP_HUGETLB
one[0] = 1
try:
    mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_huge_pages_are_limited(guest: Guest) -> None:
    """By `linux.resources.hugepageLimits` of an OCI spec (Docker has no option for it); on v2, where the host has none."""
    prepare = (
        "sysctl -w vm.nr_hugepages=8; mkdir -p /root/huge/rootfs && mount --bind / /root/huge/rootfs && cd /root/huge && dray-runtime spec && python3 -c '"
        'import json; spec = json.load(open("config.json")); '
        'spec["root"] = {"path": "rootfs", "readonly": True}; '
        'spec["process"].update(terminal=False, args=["python3", "-c", open("/root/huge/use.py").read()]); '
        'spec["linux"].setdefault("resources", {})["hugepageLimits"] = [{"pageSize": "2MB", "limit": 2 << 20}]; '
        'json.dump(spec, open("config.json", "w"))\''
    )
    guest.ok("mkdir -p /root/huge; cat > /root/huge/use.py", input=HUGE)
    guest.ok(prepare)
    assert guest.ok("cd /root/huge && dray-runtime run huge", timeout=240) == "ENOMEM"
    guest.ok("sysctl -w vm.nr_hugepages=0; umount /root/huge/rootfs")
