"""Files of a running container that follow its networks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dray.network import containerfiles
from dray.network.model import Endpoint

ENDPOINT = Endpoint(
    id="e", network_id="n", network_name="app", driver="bridge", container_id="c", container_name="web",
    ipv4="172.18.0.2", ipv6="fd00::2",
)  # fmt: skip


def test_own_addresses_come_and_go_and_nothing_else_does(tmp_path: Path) -> None:
    containerfiles.write(str(tmp_path), {"hosts": "127.0.0.1\tlocalhost\n172.18.0.22\tother"})
    inode = os.stat(tmp_path / "hosts").st_ino
    containerfiles.add_addresses(str(tmp_path), [ENDPOINT], "web")
    text = "127.0.0.1\tlocalhost\n172.18.0.22\tother\n"
    assert (tmp_path / "hosts").read_text() == text + "172.18.0.2\tweb\nfd00::2\tweb\n"
    containerfiles.remove_addresses(str(tmp_path), [ENDPOINT])
    assert (tmp_path / "hosts").read_text() == text
    assert os.stat(tmp_path / "hosts").st_ino == inode  # it is bound into the container


def test_own_names_are_of_the_addresses_of_the_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1\tdb web\n10.0.0.2\tweb\n172.18.0.9\tweb\n172.18.0.2\tweb www\n# 172.18.0.9")
    containerfiles.set_addresses(str(tmp_path), [ENDPOINT], "web", others=["10.0.0.2"])
    # A line that somebody wrote for an address of ours is theirs, and stands for it.
    kept = "10.0.0.1\tdb web\n10.0.0.2\tweb\n172.18.0.2\tweb www\n# 172.18.0.9\n"
    assert path.read_text() == kept + "fd00::2\tweb\n"
    containerfiles.set_addresses(str(tmp_path), [], "web", others=["10.0.0.2"])
    assert path.read_text() == kept


def test_resolv_conf_is_replaced_until_somebody_edits_it(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    containerfiles.write(str(tmp_path), {"resolv.conf": "nameserver 192.0.2.1\n"})
    containerfiles.replace_resolv_conf(str(tmp_path), "nameserver 127.0.0.11\n")
    containerfiles.replace_resolv_conf(str(tmp_path), "# again\nnameserver 127.0.0.11\n")
    assert path.read_text() == "# again\nnameserver 127.0.0.11\n"
    path.write_text("nameserver 192.0.2.9\n")
    containerfiles.replace_resolv_conf(str(tmp_path), "nameserver 127.0.0.11\n")
    assert path.read_text() == "nameserver 192.0.2.9\n"
    containerfiles.write(str(tmp_path), {"resolv.conf": "x\n"})  # a new start, a new file
    assert path.read_text() == "x\n"


def test_a_link_in_their_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("127.0.0.1\tlocalhost\n")
    (tmp_path / "hosts").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        containerfiles.add_addresses(str(tmp_path), [ENDPOINT], "web")
    assert (tmp_path / "victim").read_text() == "127.0.0.1\tlocalhost\n"


def test_a_container_that_is_going_has_none(tmp_path: Path) -> None:
    containerfiles.add_addresses(str(tmp_path), [ENDPOINT], "web")
    containerfiles.remove_addresses(str(tmp_path), [ENDPOINT])
    containerfiles.replace_resolv_conf(str(tmp_path), "x")
