"""Files the client reads and writes: configuration, credentials, contexts, build contexts, copies."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from dray.base.errors import InvalidParameter, NotFound
from dray.cli.buildcontext import TarStream, context_entries, load_ignore, tar_pieces
from dray.cli.command import Failure
from dray.cli.config import load
from dray.cli.contexts import Store, check_name
from dray.cli.copyfiles import Target, Unpacker, plan, source_entries, split_argument
from dray.cli.credentials import INDEX_SERVER, Credentials, HelperError
from dray.cli.ignorefile import Matcher, read_patterns


def test_config_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"unknown": {"a": 1}, "psFormat": "x"}')
    config = load(str(tmp_path))
    assert config.text("psFormat") == "x"
    config.data["currentContext"] = "c"
    config.save()
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "unknown": {"a": 1},
        "psFormat": "x",
        "currentContext": "c",
    }
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["config.json"]


def test_config_that_is_broken_is_named(tmp_path: Path) -> None:
    assert load(str(tmp_path / "none")).data == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidParameter, match=r"error loading config file: .*config\.json"):
        load(str(tmp_path))


def test_credentials_in_the_file(tmp_path: Path) -> None:
    store = Credentials(load(str(tmp_path)))
    assert store.get("r.example:5000") == {}
    assert store.store({"username": "u", "password": "p:q", "serveraddress": "r.example:5000"}) == ""
    again = Credentials(load(str(tmp_path)))
    assert again.get("r.example:5000") == {"username": "u", "password": "p:q", "serveraddress": "r.example:5000"}
    assert again.erase("r.example:5000")
    assert Credentials(load(str(tmp_path))).all() == {}


def test_credentials_by_address(tmp_path: Path) -> None:
    auth = base64.b64encode(b"u:p").decode()
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {"https://r.example/v1/": {"auth": auth}, "bad": {"auth": "!"}}})
    )
    store = Credentials(load(str(tmp_path)))
    assert store.get("r.example")["username"] == "u"
    assert store.get(INDEX_SERVER) == {}
    with pytest.raises(HelperError, match="bad is not base64"):
        store.get("bad")


def test_credential_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    helper = tmp_path / "docker-credential-fake"
    helper.write_text(
        f"#!/bin/sh\ncase $1 in\nstore) cat > {kept};;\nerase) rm -f {kept};;\n"
        f"get) [ -e {kept} ] && cat {kept} || {{ echo credentials not found in native keychain; exit 1; }};;\nesac\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "config.json").write_text('{"credHelpers": {"r.example": "fake"}, "credsStore": "absent"}')
    store = Credentials(load(str(tmp_path)))
    assert store.get("r.example") == {}
    assert store.store({"username": "u", "identitytoken": "t", "serveraddress": "r.example"}) == "fake"
    assert store.get("r.example") == {"identitytoken": "t", "serveraddress": "r.example"}
    assert (
        "t"
        not in (tmp_path / "config.json").read_text().replace("fake", "").replace("absent", "").split("auths")[1]
    )
    store.erase("r.example")
    assert not kept.exists()
    with pytest.raises(HelperError, match="docker-credential-absent"):
        store.get("elsewhere")


def test_contexts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    meta = {
        "Name": "one",
        "Metadata": {"Description": "d"},
        "Endpoints": {"docker": {"Host": "tcp://h:1", "SkipTLSVerify": True}},
    }
    store.save("one", meta, {"ca": b"CA"})
    context = store.load("one")
    assert (context.host, context.description, store.names()) == ("tcp://h:1", "d", ["one"])
    tls = context.tls()
    assert tls is not None
    assert not tls.verify
    assert Path(tls.ca).read_bytes() == b"CA"
    assert stat.S_IMODE(Path(tls.ca).stat().st_mode) == 0o600
    store.remove("one")
    assert not store.exists("one")
    with pytest.raises(NotFound, match='context "one": context not found'):
        store.load("one")
    for name in ("", "default", "a b", "../x"):
        with pytest.raises(InvalidParameter):
            check_name(name)


@pytest.mark.parametrize(
    ("patterns", "path", "ignored"),
    [
        (["*.log"], "a.log", True),
        (["*.log"], "d/a.log", False),
        (["**/*.log"], "d/e/a.log", True),
        (["**/*.log"], "a.log", True),
        (["d"], "d/e/f", True),
        (["d/"], "d/e", True),
        (["/d"], "d", True),
        (["*", "!keep"], "keep", False),
        (["*", "!keep"], "other", True),
        (["d", "!d/x"], "d/x", False),
        (["d", "!d/x", "d/x"], "d/x", True),
        (["a?c"], "abc", True),
        (["[a-c]x"], "bx", True),
        (["a/**"], "a/b/c", True),
        (["a/**/z"], "a/z", True),
        (["# comment", ""], "# comment", False),
        (["x.y"], "xzy", False),
    ],
)
def test_ignore_rules(patterns: list[str], path: str, ignored: bool) -> None:
    assert Matcher(read_patterns("\n".join(patterns))).ignores(path) is ignored


def test_build_context(tmp_path: Path) -> None:
    for name in ("Dockerfile", "a.log", "keep.log", "d/x", "d/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name * 300)
    (tmp_path / "link").symlink_to("d/x")
    (tmp_path / ".dockerignore").write_text("*.log\n!keep.log\nd/y\nDockerfile\n")
    patterns = load_ignore(str(tmp_path), "Dockerfile")
    stream = TarStream(
        tar_pieces(
            context_entries(str(tmp_path), patterns, ("Dockerfile", ".dockerignore")), {"extra": b"e"}, own=False
        )
    )
    data = b""
    while piece := stream.read(1000):
        data += piece
    assert len(data) == stream.sent
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [".dockerignore", "Dockerfile", "d", "d/x", "keep.log", "link", "extra"]
        assert archive.getmember("link").linkname == "d/x"
        assert archive.extractfile("d/x").read() == b"d/x" * 300  # type: ignore[union-attr]
        assert {(one.uid, one.gid) for one in archive.getmembers()} == {(0, 0)}


@pytest.mark.parametrize(
    ("source", "is_dir", "target", "exists", "target_is_dir", "folder", "name"),
    [
        ("/a/f", False, "/d", True, True, "/d", "f"),
        ("/a/f", False, "/d/", True, True, "/d", "f"),
        ("/a/f", False, "/d/g", True, False, "/d", "g"),
        ("/a/f", False, "/d/g", False, False, "/d", "g"),
        ("/a/s", True, "/d", True, True, "/d", "s"),
        ("/a/s/", True, "/d", True, True, "/d", "s"),
        ("/a/s/.", True, "/d", True, True, "/d", "."),
        ("/a/s", True, "/d/new", False, False, "/d", "new"),
        ("/a/s/.", True, "/d/new", False, False, "/d", "new"),
        ("f", False, ".", True, True, ".", "f"),
        ("f", False, "g", False, False, ".", "g"),
        ("f", False, "/", True, True, "/", "f"),
    ],
)
def test_where_a_copy_goes(
    source: str, is_dir: bool, target: str, exists: bool, target_is_dir: bool, folder: str, name: str
) -> None:
    place = plan(source, source_is_dir=is_dir, target=target, target_exists=exists, target_is_dir=target_is_dir)
    assert (place.folder, place.name) == (folder, name)


@pytest.mark.parametrize(
    ("is_dir", "target", "exists", "message"),
    [
        (True, "/f", True, "cannot copy directory"),
        (False, "/new/", False, "no such directory"),
        (False, "/f/", True, "not a directory"),
    ],
)
def test_where_a_copy_cannot_go(is_dir: bool, target: str, exists: bool, message: str) -> None:
    with pytest.raises(Failure, match=message):
        plan("/a", source_is_dir=is_dir, target=target, target_exists=exists, target_is_dir=False)


def test_copy_arguments() -> None:
    assert split_argument("c:/x") == ("c", "/x")
    assert split_argument("/c:/x") == ("", "/c:/x")
    assert split_argument("./c:x") == ("", "./c:x")
    assert split_argument("-") == ("", "-")


def archive_of(*members: tuple[str, bytes, str]) -> tarfile.TarFile:
    """An archive of (name, type, data or link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o755 if kind == tarfile.DIRTYPE else 0o640
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.linkname = text
                archive.addfile(member)
            else:
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


def test_a_tree_comes_out_as_it_went_in(tmp_path: Path) -> None:
    source = tmp_path / "s"
    (source / "d").mkdir(parents=True)
    (source / "d" / "f").write_text("data")
    (source / "d" / "f").chmod(0o640)
    os.link(source / "d" / "f", source / "hard")
    (source / "soft").symlink_to("/nowhere")
    os.utime(source / "d", (1000, 1000))
    data = b"".join(tar_pieces(source_entries(str(source), "s", follow=False)))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        Unpacker(Target(str(tmp_path), "out"), owners=False).unpack(archive)
    out = tmp_path / "out"
    assert (out / "d" / "f").read_text() == "data"
    assert stat.S_IMODE((out / "d" / "f").stat().st_mode) == 0o640
    assert (out / "hard").samefile(out / "d" / "f")
    assert os.readlink(out / "soft") == "/nowhere"
    assert (out / "d").stat().st_mtime == 1000


@pytest.mark.parametrize(
    "members",
    [
        [("s/../../evil", tarfile.REGTYPE, "x")],
        [("s", tarfile.DIRTYPE, ""), ("s/l", tarfile.SYMTYPE, "OUTSIDE"), ("s/l/evil", tarfile.REGTYPE, "x")],
        [("s", tarfile.DIRTYPE, ""), ("s/l", tarfile.LNKTYPE, "s/../../secret")],
    ],
)
def test_an_archive_cannot_leave_its_folder(members: list[tuple[str, bytes, str]], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "secret").write_text("s")
    made = [(name, kind, text.replace("OUTSIDE", str(outside))) for name, kind, text in members]
    (tmp_path / "in").mkdir()
    with archive_of(*made) as archive, pytest.raises(InvalidParameter):
        Unpacker(Target(str(tmp_path / "in"), "out"), owners=False).unpack(archive)
    assert os.listdir(outside) == []
    assert not (tmp_path / "evil").exists()


def test_a_link_at_the_target_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    (tmp_path / "f").symlink_to(victim)
    with archive_of(("f", tarfile.REGTYPE, "new")) as archive:
        Unpacker(Target(str(tmp_path), "f"), owners=False).unpack(archive)
    assert victim.read_text() == "safe"
    assert (tmp_path / "f").read_text() == "new"
