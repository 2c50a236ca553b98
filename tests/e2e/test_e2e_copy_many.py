"""`dray cp` of several sources, and of patterns in a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.engines import Engine, dray


@pytest.fixture
def box(engine: Engine) -> Engine:
    script = "mkdir -p /logs/sub /logs/tub; for f in a.log b.log c.txt .d.log sub/e.log tub/f.log '[x].log'; do echo $f >/logs/$f; done"
    engine.ok("run", "--name", "box", "busybox", "sh", "-c", script)
    return engine


def test_several_into_a_container(box: Engine, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "three").write_text("three")
    dray(box, "cp", str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "folder"), "box:/tmp")
    dray(box, "cp", "box:/tmp/one", "box:/tmp/two", "box:/tmp/folder/three", str(tmp_path / "folder"))
    assert sorted(os.listdir(tmp_path / "folder")) == ["one", "three", "two"]
    assert (tmp_path / "folder" / "one").read_text() == "one"


PATTERNS = [
    ("/logs/*.log", ["[x].log", "a.log", "b.log"]),
    ("/logs/.*.log", [".d.log"]),
    ("/logs/?.txt", ["c.txt"]),
    ("/logs/[ab].*", ["a.log", "b.log"]),
    ("/logs/*/*.log", ["e.log", "f.log"]),
    ("/log?/sub", ["sub"]),
    ("/logs/[x].log", ["[x].log"]),
]


def test_patterns(box: Engine, tmp_path: Path) -> None:
    for number, (pattern, names) in enumerate(PATTERNS):
        folder = tmp_path / str(number)
        folder.mkdir()
        dray(box, "cp", f"box:{pattern}", f"{folder}/")
        assert sorted(os.listdir(folder)) == names


REFUSED = [
    (["box:/logs/*.none", "{folder}"], "nothing there matches"),
    (["box:/logs/a.log", "box:/logs/b.log", "{folder}/none"], "must be a directory that exists"),
    (["box:/logs/a.log", "box:/logs/b.log", "-"], "give one source alone"),
    (["{folder}/x", "{folder}/y", "box:/etc/passwd"], "must be a directory that exists"),
    (["box:/logs/a.log", "{folder}", "{folder}"], "must specify at least one container source"),
    (["box:/logs/a.log", "box:/logs/none", "{folder}"], "/logs/none"),
]


def test_what_cannot_be_copied(box: Engine, tmp_path: Path) -> None:
    for words, message in REFUSED:
        given = [word.replace("{folder}", str(tmp_path)) for word in words]
        assert message in dray(box, "cp", *given, status=1)
    assert os.listdir(tmp_path) == ["a.log"]  # the one that could be
