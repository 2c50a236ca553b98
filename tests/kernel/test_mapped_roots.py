"""Roots with mapped ids: what is on disk stays as the container means it, what is mounted is the host's."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.linux import libc, mappedroots, namespaces, usernamespaces
from dray.linux.cgroups import delegation
from dray.linux.usernamespaces import IdMap
from support.erofs import image, needs_erofs
from support.layers import entry, make

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MAPS = IdMap(((0, 700000, 65536),), ((0, 800000, 65536),))


@pytest.fixture
def user() -> Iterator[int]:
    fd = usernamespaces.make(MAPS.uid_map, MAPS.gid_map)
    yield fd
    os.close(fd)


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    root = tmp_path / "overlay2"
    root.mkdir(0o700)
    for name in ("a/diff", "b/diff", "c/diff", "c/work", "l"):
        (root / name).mkdir(parents=True)
    (root / "l/a").symlink_to("../a/diff")
    (root / "l/b").symlink_to("../b/diff")
    (root / "a/diff/file").write_text("a")
    os.chown(root / "a/diff/file", 5, 6)
    (root / "b/diff/other").write_text("b")
    (root / "a/diff/gone").write_text("x")
    return root


def options(root: Path) -> list[str]:
    return [f"lowerdir={root}/l/b:{root}/l/a", f"upperdir={root}/c/diff", f"workdir={root}/c/work", "idmap"]


def owners(path: str | Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


def use(tree: int, root: Path) -> None:
    """Write in the tree as the namespace's root does, and look at both sides."""
    place = f"/proc/self/fd/{tree}"
    assert owners(f"{place}/file") == (700005, 800006)
    with usernamespaces.acting_as(*MAPS.root):
        Path(f"{place}/new").write_text("n")
        os.mkdir(f"{place}/dir")
        os.chown(f"{place}/file", 700033, 800034)
        os.unlink(f"{place}/gone")
    assert owners(f"{place}/new") == MAPS.root
    assert owners(root / "c/diff/new") == (0, 0)
    assert owners(root / "c/diff/dir") == (0, 0)
    assert owners(root / "c/diff/file") == (33, 34)
    assert os.lstat(root / "c/diff/gone").st_rdev == 0
    assert owners(root / "a/diff/file") == (5, 6)


def test_an_overlay_shifts_nothing_on_disk(layers, user):
    tree = mappedroots.tree("overlay", "overlay", options(layers), user, MAPS.root)
    try:
        use(tree, layers)
        with pytest.raises(OSError, match="too large"):  # ids that the map does not know are nobody's to give
            os.chown(f"/proc/self/fd/{tree}/other", 5, 5)
    finally:
        os.close(tree)


def test_the_way_of_older_kernels(layers, user, monkeypatch):
    def refuses(*_arguments: object) -> int:
        raise OSError(22, "as before Linux 6.15")

    monkeypatch.setattr(mappedroots, "_overlay", refuses)
    before = Path("/proc/self/mountinfo").read_text()
    tree = mappedroots.tree("overlay", "overlay", options(layers), user, MAPS.root)
    try:
        assert Path("/proc/self/mountinfo").read_text() == before
        use(tree, layers)
    finally:
        os.close(tree)


def test_layers_that_are_mounts(layers, user, tmp_path):
    """An EROFS layer is behind a descriptor, in no directory."""
    needs_erofs(tmp_path)
    tar = make(entry("file", b"a", uid=5, gid=6), entry("other", b"b"), entry("gone", b"x"))
    with image(tar, tmp_path) as lower:
        words = [f"lowerdir=/proc/{os.getpid()}/fd/{lower.split('/')[-2]}", *options(layers)[1:]]
        tree = mappedroots.tree("overlay", "overlay", words, user, MAPS.root)
        try:
            use(tree, layers)
        finally:
            os.close(tree)


def test_a_bind(layers, user):
    tree = mappedroots.tree("bind", str(layers / "l/a"), ("rbind", "ro", "idmap"), user, MAPS.root)
    try:
        assert owners(f"/proc/self/fd/{tree}/file") == (700005, 800006)
        with pytest.raises(OSError, match="Read-only"):
            Path(f"/proc/self/fd/{tree}/file").write_text("")
    finally:
        os.close(tree)


def test_acting_as_keeps_capabilities_and_comes_back(tmp_path):
    before = libc.capget()
    with usernamespaces.acting_as(700000, 800000):
        assert libc.capget() == before
        (tmp_path / "made").write_text("")
    (tmp_path / "after").write_text("")
    assert owners(tmp_path / "made") == (700000, 800000)
    assert owners(tmp_path / "after") == (0, 0)


NS_GET_USERNS = 0xB701


def owner_of(namespace: int) -> int:
    owner = fcntl.ioctl(namespace, NS_GET_USERNS)
    try:
        return os.fstat(owner).st_ino
    finally:
        os.close(owner)


def test_a_network_belongs_to_its_user_namespace():
    user, network = usernamespaces.make_with_network(MAPS.uid_map, MAPS.gid_map)
    try:
        assert owner_of(network) == os.fstat(user).st_ino
        other = usernamespaces.make_network_in(user)
        try:
            assert owner_of(other) == os.fstat(user).st_ino
            assert os.fstat(other).st_ino != os.fstat(network).st_ino
        finally:
            os.close(other)
    finally:
        os.close(user)
        os.close(network)


def test_maps_that_the_kernel_refuses_leave_nothing():
    held = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="uid_map"):
        usernamespaces.make("0 0\n", MAPS.gid_map)
    assert os.listdir("/proc/self/fd") == held


def test_maps_of_a_process():
    user = usernamespaces.make(MAPS.uid_map, MAPS.gid_map)
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.setns(user, namespaces.FLAGS["user"])
        os.write(told, b"1")
        signal.pause()
    try:
        os.read(ready, 1)
        assert usernamespaces.of_process(pid) == MAPS
        assert usernamespaces.of_process(os.getpid()) is None
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for fd in (user, ready, told):
            os.close(fd)


def test_a_cgroup_is_handed_over_without_its_limits(tmp_path):
    """The files that cgroup v2 calls delegatable, on a directory that looks like one."""
    for name in ("cgroup.procs", "cgroup.subtree_control", "memory.max", "cgroup.freeze"):
        (tmp_path / name).touch()
    delegation.delegate(str(tmp_path), MAPS.root, Path("/nonexistent"))
    assert [owners(tmp_path), owners(tmp_path / "cgroup.procs")] == [MAPS.root, MAPS.root]
    assert owners(tmp_path / "cgroup.subtree_control") == MAPS.root
    assert owners(tmp_path / "memory.max") == owners(tmp_path / "cgroup.freeze") == (0, 0)
