"""load, save, import, tag, rmi, history, inspect, prune of images; and archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import archive, busybox, cache
from images.archive import Entry, Image, folder, layer_tar, link, text
from images.hostile import hostile_images
from support.engines import Engine


@pytest.fixture
def fresh(engine: Engine) -> Iterator[Engine]:
    """The engine; images that the test adds go afterwards."""

    def tags() -> set[str]:
        return {tag for image in engine.get("/images/json") for tag in image["RepoTags"] or []}

    before = tags()
    ids = {image["Id"] for image in engine.get("/images/json")}
    yield engine
    engine.remove_everything()
    for tag in tags() - before:
        engine.api("DELETE", f"/images/{tag}?force=1")
    for image in engine.get("/images/json"):
        if image["Id"] not in ids:
            engine.api("DELETE", f"/images/{image['Id']}?force=1")


def write(engine: Engine, *images: Image) -> Path:
    path = engine.base / "archive.tar"
    archive.write_docker_archive(images, path)
    return path


def test_load_names_what_it_loaded(fresh: Engine) -> None:
    layer = busybox.base_layer()
    path = write(fresh, Image([layer], {"Cmd": ["sh"]}, ["one:1", "one:2"]), Image([layer], {}, ["two:latest"]))
    lines = fresh.ok("load", "-i", str(path)).splitlines()
    assert {"Loaded image: one:1", "Loaded image: one:2", "Loaded image: two:latest"} <= set(lines)
    assert fresh.ok("run", "--rm", "one:2", "echo", "runs") == "runs"


def test_load_without_a_tag(fresh: Engine) -> None:
    path = write(fresh, Image([layer_tar([text("only", "x")])], {}, []))
    out = fresh.ok("load", "-i", str(path))
    assert out.startswith("Loaded image ID: sha256:")
    assert fresh.ok("image", "inspect", "-f", "{{len .RootFS.Layers}}", out.split(": ")[1]) == "1"


def test_load_from_standard_input(fresh: Engine) -> None:
    path = write(fresh, Image([busybox.base_layer()], {}, ["piped:1"]))
    with path.open("rb") as stream, fresh.spawn("load", stdin=stream) as client:
        out, _ = client.communicate(timeout=60)
    assert b"Loaded image: piped:1" in out


@pytest.mark.parametrize("how", ["gz", "zst"])
def test_load_of_a_compressed_archive(fresh: Engine, how: str) -> None:
    path = write(fresh, Image([busybox.base_layer()], {}, ["packed:1"]))
    if how == "gz":
        import gzip

        packed = gzip.compress(path.read_bytes(), 1)
    else:
        import zstandard

        packed = zstandard.ZstdCompressor().compress(path.read_bytes())
        if fresh.name == "dockerd":
            pytest.skip("zstd came after 20.10")
    target = fresh.base / f"archive.tar.{how}"
    target.write_bytes(packed)
    assert "Loaded image: packed:1" in fresh.ok("load", "-i", str(target))


@pytest.mark.drayd_only("dockerd 20.10 loads Docker archives only")
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_load_of_an_oci_layout(fresh: Engine, compression: str) -> None:
    out = fresh.ok("load", "-i", str(cache.busybox_layout(compression)))
    assert f"Loaded image: layout:{compression}" in out
    assert fresh.ok("run", "--rm", f"layout:{compression}", "cat", "/data/file") == "from the image"


@pytest.mark.parametrize("damage", ["not a tar", "truncated", "no manifest", "wrong layer digest"])
def test_load_of_a_bad_archive(fresh: Engine, damage: str) -> None:
    path = write(fresh, Image([layer_tar([text("page", "one page\n")])], {}, ["bad:1"]))
    data = path.read_bytes()
    if damage == "not a tar":
        data = b"hello, this is not an archive" * 100
    elif damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "no manifest":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("something"), io.BytesIO())
        data = buffer.getvalue()
    else:
        data = data.replace(b"one page\n", b"two page\n")
    path.write_bytes(data)
    done = fresh.docker("load", "-i", str(path))
    assert done.returncode == 1, done.stdout
    assert done.stderr.strip()
    assert fresh.docker("image", "inspect", "bad:1").returncode == 1


def test_layers_are_applied_as_they_say(fresh: Engine) -> None:
    """Whiteouts, opaque directories, replaced kinds, hard links, modes, xattrs, long names, sparse and odd files."""
    long = "/".join(["d" * 60] * 4) + "/" + "f" * 120
    lower = layer_tar(
        [
            folder("keep/"),
            text("keep/gone", "x"),
            text("keep/stays", "stays"),
            folder("opaque/"),
            text("opaque/old", "x"),
            text("becomes-dir", "x"),
            folder("becomes-file/"),
            text("becomes-file/inner", "x"),
            folder("sticky/", mode=0o1777, uid=5, gid=6),
            text("setuid", "x", mode=0o4755),
            text("owned", "x", mode=0o640, uid=1000, gid=2000),
            link("dangling", "/no/such"),
        ]
    )
    upper = layer_tar(
        [
            text("keep/.wh.gone", ""),
            folder("opaque/"),
            text("opaque/.wh..wh..opq", ""),
            text("opaque/new", "new"),
            folder("becomes-dir/"),
            text("becomes-dir/inside", "in"),
            text("becomes-file", "file"),
            text("linked", "shared"),
            Entry("second", "hardlink", target="linked"),
            Entry("pipe", "fifo", mode=0o600),
            Entry("zero", "char", mode=0o666, device=(1, 5)),
            text(long, "long"),
            Entry("attributed", data=b"x", xattrs={"user.note": "value"}),
        ]
    )
    image = Image([busybox.base_layer(), lower, upper], {"Cmd": ["sh"]}, ["layered:1"])
    fresh.load(write(fresh, image))
    script = f"""
        ls /keep /opaque; cat /opaque/new; cat /becomes-dir/inside; cat /becomes-file; cat /second; echo
        stat -c '%n %a %u %g' /sticky /setuid /owned
        test /linked -ef /second && echo linked
        test -p /pipe && echo pipe; head -c 2 /zero | xxd -p; cat /{long}; echo; readlink /dangling
    """
    lines = fresh.ok("run", "--rm", "layered:1", "sh", "-c", script).split("\n")
    assert [line.strip() for line in lines if line.strip()] == [
        "/keep:",
        "stays",
        "/opaque:",
        "new",
        "newinfileshared",
        "/sticky 1777 5 6",
        "/setuid 4755 0 0",
        "/owned 640 1000 2000",
        "linked",
        "pipe",
        "0000",
        "long",
        "/no/such",
    ]


@pytest.mark.drayd_only("dockerd 20.10 cannot load such an archive")
def test_hard_link_to_a_lower_layer(fresh: Engine) -> None:
    lower = layer_tar([text("first", "shared", mode=0o640, uid=3)])
    upper = layer_tar([Entry("second", "hardlink", target="first")])
    fresh.load(write(fresh, Image([busybox.base_layer(), lower, upper], {}, ["linked:1"])))
    out = fresh.ok("run", "--rm", "linked:1", "sh", "-c", "cat /first /second; echo; stat -c '%a %u' /second")
    assert out.split() == ["sharedshared", "640", "3"]


@pytest.mark.drayd_only("dockerd 20.10 shows 755, owned by root")
def test_directory_modes_survive_unlisted_parents(fresh: Engine) -> None:
    """A layer with a child of a directory it does not list changes nothing of that directory."""
    lower = layer_tar([folder("shared/", mode=0o1770, uid=7, gid=8), text("shared/a", "a")])
    upper = layer_tar([text("shared/b", "b")])
    fresh.load(write(fresh, Image([busybox.base_layer(), lower, upper], {}, ["parents:1"])))
    out = fresh.ok("run", "--rm", "parents:1", "sh", "-c", "stat -c '%a %u %g' /shared; ls /shared")
    assert out.split("\n") == ["1770 7 8", "a", "b"]


@pytest.mark.parametrize("trick", sorted(hostile_images("/x")))
def test_hostile_archives_reach_nothing(fresh: Engine, trick: str) -> None:
    victim = fresh.base / "victim"
    victim.mkdir(exist_ok=True)
    victim.chmod(0o711)
    (victim / "precious").write_text("precious")
    try:
        image = hostile_images(str(victim))[trick]
        fresh.docker("load", "-i", str(write(fresh, image)))
        assert [one.name for one in victim.iterdir()] == ["precious"]
        assert (victim / "precious").read_text() == "precious"
        assert (victim / "precious").stat().st_nlink == 1
        assert victim.stat().st_mode & 0o777 == 0o711
        assert fresh.ok("run", "--rm", "busybox", "echo", "well") == "well"
    finally:
        for one in victim.iterdir():
            one.unlink()


def test_tag_and_rmi(fresh: Engine) -> None:
    fresh.ok("tag", "busybox", "mine/box:1")
    fresh.ok("tag", "busybox:latest", "registry.example.org:5000/box")
    assert fresh.inspect("mine/box:1", kind="image")["Id"] == fresh.inspect("busybox", kind="image")["Id"]
    assert "Untagged: mine/box:1" in fresh.ok("rmi", "mine/box:1")
    assert "No such image: mine/box:1" in fresh.fails("image", "inspect", "mine/box:1")
    assert fresh.ok("images", "-q", "registry.example.org:5000/box")
    assert "No such image: nosuch:latest" in fresh.fails("tag", "nosuch", "a")
    assert fresh.fails("tag", "busybox", "UPPER")


def test_rmi_deletes_what_nobody_uses(fresh: Engine) -> None:
    unique = layer_tar([text("unique", "x" * 5000)])
    fresh.load(write(fresh, Image([busybox.base_layer(), unique], {}, ["gone:1"])))
    made = fresh.inspect("gone:1", kind="image")["Id"]
    out = fresh.ok("rmi", "gone:1")
    assert "Untagged: gone:1" in out
    assert f"Deleted: {made}" in out
    assert fresh.ok("run", "--rm", "busybox", "echo", "well") == "well"


def test_rmi_of_an_image_in_use(fresh: Engine) -> None:
    fresh.load(write(fresh, Image([busybox.base_layer(), layer_tar([text("u", "u")])], {}, ["used:1"])))
    fresh.ok("create", "--name", "box", "used:1", "true")
    message = fresh.fails("rmi", "used:1")
    assert "conflict" in message
    assert fresh.inspect("box")["Id"][:12] in message
    fresh.ok("rmi", "-f", "used:1")
    fresh.ok("rm", "box")


def test_rmi_of_two_tags_by_id(fresh: Engine) -> None:
    fresh.load(write(fresh, Image([layer_tar([text("u", "u")])], {}, ["pair:1"])))
    fresh.ok("tag", "pair:1", "pair:2")
    made = fresh.inspect("pair:1", kind="image")["Id"]
    assert "must be forced" in fresh.fails("rmi", made)
    fresh.ok("rmi", "-f", made)
    assert fresh.docker("image", "inspect", "pair:2").returncode == 1


def test_images_list_and_filters(fresh: Engine) -> None:
    fresh.ok("tag", "busybox", "mine/box:1")

    def names(*flags: str) -> set[str]:
        return set(fresh.ok("images", "--format", "{{.Repository}}:{{.Tag}}", *flags).split())

    assert {"busybox:latest", "variants:web", "mine/box:1"} <= names()
    assert names("busybox") == {"busybox:latest"}
    assert names("-f", "reference=mine/*") == {"mine/box:1"}
    assert names("-f", "label=org.example.role=web") == {"variants:web"}
    assert "busybox:latest" not in names("-f", "dangling=true")
    assert names("-f", "since=busybox", "-f", "reference=mine/*") in (set(), {"mine/box:1"})
    title = fresh.ok("images").splitlines()[0].split()
    assert title == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    (one,) = [image for image in fresh.get("/images/json") if "busybox:latest" in (image["RepoTags"] or [])]
    assert one["Id"].startswith("sha256:")
    assert one["Size"] > 1_000_000
    assert one["Created"] == 1706933106


def test_inspect(fresh: Engine) -> None:
    body = fresh.inspect("variants:user", kind="image")
    assert body["Config"]["User"] == "app"
    assert body["Config"]["Env"] == [busybox.PATH, "COLOUR=blue", "EMPTY="]
    assert body["Config"]["WorkingDir"] == "/home/app/work"
    assert (body["Architecture"], body["Os"]) == ("amd64", "linux")
    digest = hashlib.sha256(busybox.base_layer()).hexdigest()
    assert body["RootFS"] == {"Type": "layers", "Layers": [f"sha256:{digest}"]}
    assert body["Created"].startswith("2024-02-03T04:05:06")
    assert "variants:user" in body["RepoTags"]


def test_history(fresh: Engine) -> None:
    lines = fresh.ok(
        "history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Size}}", "variants:volume"
    ).splitlines()
    assert lines[0] == "/bin/sh -c #(nop) CONFIG|0B"
    assert lines[1].startswith("/bin/sh -c #(nop) ADD layer 1 in /|")
    assert len(lines) == 3


def test_save_and_load_again(fresh: Engine) -> None:
    path = fresh.base / "saved.tar"
    fresh.ok("save", "-o", str(path), "variants:volume", "variants:user")
    with tarfile.open(path) as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert sorted(tag for entry in manifest for tag in entry["RepoTags"]) == ["variants:user", "variants:volume"]
    assert all(layer in names for entry in manifest for layer in entry["Layers"])
    before = fresh.inspect("variants:volume", kind="image")["Id"]
    fresh.ok("rmi", "-f", "variants:volume")
    fresh.load(path)
    assert fresh.inspect("variants:volume", kind="image")["Id"] == before
    assert fresh.ok("run", "--rm", "variants:volume", "cat", "/data/file") == "from the image"
    path.unlink()


def test_import(fresh: Engine) -> None:
    path = fresh.base / "root.tar"
    path.write_bytes(busybox.base_layer())
    made = fresh.ok("import", "-c", "ENV A=1", "-c", 'CMD ["env"]', "-m", "a note", str(path), "imported:1")
    assert made.startswith("sha256:")
    assert "A=1" in fresh.ok("run", "--rm", "imported:1").splitlines()
    assert fresh.ok("history", "--format", "{{.Comment}}", "imported:1") == "a note"
    path.unlink()


def test_prune(fresh: Engine) -> None:
    fresh.load(write(fresh, Image([layer_tar([text("dangles", "x")])], {}, [])))
    assert fresh.api("POST", '/images/prune?filters={"nosuch":["x"]}')[0] == 400
    status, _, body = fresh.api("POST", '/images/prune?filters={"dangling":["true"]}')
    assert status == 200
    assert any("Deleted" in entry for entry in json.loads(body)["ImagesDeleted"])
    assert fresh.docker("image", "inspect", "busybox").returncode == 0


def test_missing_image_is_not_found(fresh: Engine) -> None:
    status, _, body = fresh.api("POST", "/containers/create", {"Image": "nosuch:1"})
    assert (status, json.loads(body)["message"]) == (404, "No such image: nosuch:1")


def test_container_outlives_its_tag(fresh: Engine) -> None:
    fresh.load(write(fresh, Image([busybox.base_layer(), layer_tar([text("v", "1")])], {}, ["moves:1"])))
    fresh.ok("create", "--name", "box", "moves:1", "cat", "/v")
    fresh.load(write(fresh, Image([busybox.base_layer(), layer_tar([text("v", "2")])], {}, ["moves:1"])))
    assert fresh.ok("start", "-a", "box") == "1"
    assert fresh.ok("run", "--rm", "moves:1", "cat", "/v") == "2"
    fresh.ok("rm", "box")
