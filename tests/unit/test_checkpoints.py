"""Checkpoints as far as no criu is needed: which mounts are whose, what is refused, names and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dray.base.errors import Conflict, InvalidParameter, Unsupported
from dray.engine import checkpoints
from dray.runtime import checkpoint
from dray.runtime.checkpoint import OutsideMount

MOUNTINFO = r"""22 1 0:21 / / rw,relatime - overlay overlay rw
23 22 0:22 / /proc rw - proc proc rw
24 22 8:1 /vol /data rw master:5 - ext4 /dev/sda rw
25 24 8:2 / /data/sub\040dir rw - ext4 /dev/sdb rw
26 22 0:23 / /dev rw - tmpfs tmpfs rw
27 23 0:23 /null /proc/kcore rw - tmpfs tmpfs rw
28 22 8:1 /hosts /etc/hosts rw - ext4 /dev/sda rw
"""


def test_what_is_bound_is_from_outside_with_what_came_with_it() -> None:
    lines = checkpoint.parse_mounts(MOUNTINFO)
    assert lines[3].point == "/data/sub dir"
    found = checkpoint.sort_out(lines, {24: "/var/data", 28: "/etc/hosts"})
    assert found == [
        (OutsideMount("m0", "/var/data"), "/data"),
        (OutsideMount("m1", "/var/data", "/sub dir"), "/data/sub dir"),
        (OutsideMount("m2", "/etc/hosts"), "/etc/hosts"),
    ]


def spec(*namespaces: dict[str, str], **process: Any) -> dict[str, Any]:
    return {"process": process, "linux": {"namespaces": [{"type": "pid"}, *namespaces]}}


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (spec(terminal=True), "--tty"),
        (spec({"type": "user"}), "--userns=host"),
        (spec({"type": "ipc", "path": "/proc/7/ns/ipc"}), "shares its ipc namespace"),
        ({"linux": {"namespaces": []}}, "--pid=host"),
        ({**spec(), "hooks": {"startContainer": [{"path": "/bin/x"}]}}, "hooks"),
    ],
)
def test_what_cannot_be_separated_from_its_surroundings_is_refused(refused: dict[str, Any], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        checkpoint.refuse(refused)
    checkpoint.refuse(spec({"type": "network", "path": "/proc/7/ns/net"}))


def test_without_criu_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install the package criu" in checkpoint.check({}, [])
    (tmp_path / "criu").write_text("#!/bin/sh\necho 'Error (here): no such kernel'; exit 1\n")
    (tmp_path / "criu").chmod(0o755)
    assert checkpoint.check({}, []) == "criu check says: Error (here): no such kernel"
    (tmp_path / "criu").write_text("#!/bin/sh\n")
    assert checkpoint.check({}, []) == ""


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "-x", "x y"])
def test_names_are_no_paths(name: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid checkpoint ID"):
        checkpoints._check_name(name)


def test_a_broken_checkpoint_makes_place_and_nothing_else_does(tmp_path: Path) -> None:
    place = tmp_path / "one"
    checkpoints._make(place, "box")
    (place / "pages-1.img").write_bytes(b"half")
    checkpoints._make(place, "box")
    assert list(place.iterdir()) == []
    (place / "dray.json").write_text("{}")
    with pytest.raises(Conflict, match="already exists"):
        checkpoints._make(place, "box")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(Conflict, match="is no checkpoint"):
        checkpoints._make(tmp_path / "mine", "box")
    assert (tmp_path / "mine/letter.txt").exists()
