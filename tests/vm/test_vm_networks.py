"""Networking and quotas that the host of the tests cannot show, in a virtual machine with a kernel that has them all.

The machine is booted once. Scripts run inside it, on the networking of dray itself (`lab_networks.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
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


def test_size_of_a_volume_is_kept(guest: Guest) -> None:
    """On ext4 with project quotas; what runs in the container lacks the capability that passes a quota by."""
    guest.ok(
        "truncate -s 400M /disk && mke2fs -q -t ext4 -O quota,project /disk && mkdir /quota && "
        "mount -o loop,prjquota /disk /quota"
    )
    daemon = "-H unix:///run/q.sock --data-root /quota/d --exec-root /run/q --pidfile /run/q.pid --bridge q0"
    guest.ok(f"setsid drayd {daemon} >/var/log/q.log 2>&1 </dev/null & sleep 1")
    guest.ok(
        "until [ -S /run/q.sock ] && DOCKER_HOST=unix:///run/q.sock docker ps -q; do sleep 1; done", timeout=240
    )
    docker = "DOCKER_HOST=unix:///run/q.sock docker"
    guest.ok(f"{docker} load -q -i /opt/busybox.tar && {docker} volume create -o size=2m small")
    write = "dd if=/dev/zero of=/data/file bs=64k count={}"
    guest.ok(f"{docker} run --rm -v small:/data --network none busybox {write.format(16)}")
    code, out = guest.run(f"{docker} run --rm -v small:/data --network none busybox {write.format(64)}")
    assert code != 0, out
    assert "No space left" in out or "quota exceeded" in out.lower(), out
    guest.ok(
        f"{docker} volume rm small; kill $(cat /run/q.pid); for i in 1 2 3 4 5 6 7 8 9; do umount /quota && break; sleep 1; done"
    )
