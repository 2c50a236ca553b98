"""`userns-remap`: the setting's forms, and files with subordinate ids that are right, missing or hostile."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

import pytest

from dray.base.errors import InvalidParameter, Unavailable
from dray.daemon import subids
from dray.linux.usernamespaces import IdMap


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "subuid", tmp_path / "subgid"
    for path in paths:
        path.write_text("# a comment\n\nother:100000:65536\nnobody:300000:1000\nnobody:200000:65536\n")
    paths[1].write_text("nogroup:400000:65536\n")
    return paths


def resolve(setting: str, files: tuple[Path, Path]) -> IdMap | None:
    return subids.resolve(setting, subuid=files[0], subgid=files[1])


def test_off(files):
    assert resolve("", files) is None


def test_ranges_of_a_name_follow_each_other_inside(files):
    found = resolve("nobody:nogroup", files)
    assert found == IdMap(((0, 300000, 1000), (1000, 200000, 65536)), ((0, 400000, 65536),))
    assert found.uid_map == "0 300000 1000\n1000 200000 65536\n"
    assert found.root == (300000, 400000)


def test_numbers_stand_for_their_names(files):
    uid, gid = pwd.getpwnam("nobody").pw_uid, grp.getgrnam("nogroup").gr_gid
    assert resolve(f"{uid}:{gid}", files) == resolve("nobody:nogroup", files)


def test_a_file_may_have_numbers(files):
    files[0].write_text(f"{pwd.getpwnam('nobody').pw_uid}:500000:10\n")
    assert resolve("nobody:nogroup", files).uids == ((0, 500000, 10),)


def test_a_user_alone_needs_a_group_of_that_name(files):
    with pytest.raises(InvalidParameter, match="there is no group 'nobody'"):
        resolve("nobody", files)


@pytest.mark.parametrize("setting", [":", "nobody:", ":nogroup", "a:b:c"])
def test_a_setting_that_is_none(files, setting):
    with pytest.raises(InvalidParameter, match="user:group"):
        resolve(setting, files)


@pytest.mark.parametrize(
    "setting", ["no-such-user", "nobody:no-such-group", "99999999999999999999", "-1", "root\n"]
)
def test_nobody_of_that_name(files, setting):
    with pytest.raises(InvalidParameter, match="there is no"):
        resolve(setting, files)


def test_no_range(files):
    with pytest.raises(InvalidParameter, match=r"has no range for 'root': add a line such as root:100000:65536"):
        resolve("root:nogroup", files)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nobody:0:65536\n", "must lie between 1"),  # the host's root among them
        ("nobody:4294967290:100\n", "must lie between 1"),
        ("nobody:100000:0\n", "must lie between 1"),
        ("nobody:100000:10\nnobody:100009:5\n", "overlap at 100009"),
        ("nobody:100000\n", "line 1: .* is not name:first:count"),
        ("nobody:-5:10\n", "is not name:first:count"),
        ("nobody:1_0:10\n", "is not name:first:count"),
        ("nobody:٣:10\n", "is not name:first:count"),
        ("nobody:1:2:3\n", "is not name:first:count"),
        ("".join(f"nobody:{number}:1\n" for number in range(1000, 1400)), "more than 340"),
    ],
)
def test_ranges_that_would_be_somebodys(files, content, words):
    files[0].write_text(content)
    with pytest.raises(InvalidParameter, match=words):
        resolve("nobody:nogroup", files)


def test_a_file_without_end(files):
    files[0].write_text("#" * (5 << 20))
    with pytest.raises(InvalidParameter, match="larger than"):
        resolve("nobody:nogroup", files)


def test_a_free_range():
    assert subids.free_range([]) == 100000
    assert subids.free_range([("a", 165536, 65536), ("b", 100000, 65536)]) == 231072
    assert subids.free_range([("a", 120000, 10)]) == 120010
    assert subids.free_range([("a", 50, 10), ("b", 300000, 10)]) == 100000


def test_the_default_user_is_made_once(files, monkeypatch):
    ran: list[list[str]] = []

    def run(command: list[str]) -> None:
        ran.append(command)
        for path, flag in ((files[0], "--add-subuids"), (files[1], "--add-subgids")):
            if flag in command:
                first, last = (int(word) for word in command[2].split("-"))
                path.write_text(path.read_text() + f"dockremap:{first}:{last - first + 1}\n")

    monkeypatch.setattr(subids, "_run", run)
    found = resolve("default", files)
    assert found == IdMap(((0, 301000, 65536),), ((0, 100000, 65536),))  # beside what others have
    made = [command for command in ran if command[0] == "useradd"]
    assert all(command[-1] == "dockremap" and "--system" in command for command in made)
    ran.clear()
    assert resolve("default", files) == found
    assert not ran


def test_the_default_user_on_a_host_without_the_programs(files, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match="make it and its lines in /etc/subuid and /etc/subgid yourself"):
        resolve("default", files)
