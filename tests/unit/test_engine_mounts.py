import pytest

from dray.api import models as api
from dray.base.errors import InvalidParameter, Unsupported
from dray.engine import mounts
from dray.engine.model import MountPoint


def resolve(host=None, config=None, others=()):
    return mounts.resolve(
        config or api.ContainerConfig(), host or api.HostConfig(), mounts_of=lambda ref: dict(others)[ref]
    )


def binds(*texts):
    return api.HostConfig(binds=list(texts))


def test_a_bind_makes_its_source_and_is_private():
    (point,) = resolve(binds("/src/:/dst//x"))
    assert (point.type, point.source, point.destination) == ("bind", "/src", "/dst/x")
    assert (point.rw, point.propagation, point.create_source) == (True, "rprivate", True)


@pytest.mark.parametrize(
    ("text", "rw", "propagation"),
    [("/a:/b:ro", False, "rprivate"), ("/a:/b:rw,rslave", True, "rslave"), ("/a:/b:z,ro,shared", False, "shared")],
)
def test_modes_of_a_bind(text, rw, propagation):
    (point,) = resolve(binds(text))
    assert (point.rw, point.propagation) == (rw, propagation)


def test_a_named_volume_is_filled_from_the_image_unless_nocopy():
    (filled,) = resolve(binds("data:/d"))
    (bare,) = resolve(binds("data:/d:nocopy"))
    assert (filled.type, filled.name, filled.copy, bare.copy) == ("volume", "data", True, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/a:/b:bogus", "invalid mode: bogus"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        ("/a:/", "destination can't be '/'"),
        ("/a:b", "mount path must be absolute"),
        ("./rel:/b", "use absolute path"),
        ("a:b:c:d", "invalid volume specification"),
        ("data:/b:rshared", "invalid mode"),
        ("/a:/b:nocopy", "nocopy"),
    ],
)
def test_nonsense_is_refused_in_dockers_words(text, words):
    with pytest.raises(InvalidParameter, match=words.replace("(", "\\(")):
        resolve(binds(text))


def test_one_destination_is_mounted_once():
    with pytest.raises(InvalidParameter, match="Duplicate mount point: /b"):
        resolve(binds("/a:/b", "/c:/b/"))


def test_an_ask_wins_over_an_images_volume():
    config = api.ContainerConfig(volumes={"/data": api.Empty(), "/other": api.Empty()})
    points = resolve(binds("named:/data"), config)
    assert [(point.destination, point.name) for point in points] == [("/data", "named"), ("/other", "")]


def test_volumes_from_brings_binds_and_volumes_and_can_make_them_read_only():
    others = {
        "c1": [
            MountPoint(type="volume", destination="/v", name="v1", source="/x", rw=True),
            MountPoint(type="bind", destination="/b", source="/y", rw=True),
            MountPoint(type="tmpfs", destination="/t"),
        ]
    }
    points = resolve(api.HostConfig(volumes_from=["c1:ro"]), others=others.items())
    assert [(point.destination, point.rw) for point in points] == [("/b", False), ("/v", False)]


def _part(source: str, subpath: str) -> api.Mount:
    return api.Mount(type="volume", source=source, target="/b", volume_options=api.VolumeOptions(subpath=subpath))


def test_subpaths_and_images():
    image = api.Mount(
        type="image", source="busybox", target="/i", image_options=api.ImageMountOptions(subpath="./etc//x")
    )
    points = resolve(api.HostConfig(mounts=[_part("v", "a/./b"), image]))
    found = [(point.type, point.source, point.name, point.subpath, point.rw) for point in points]
    assert found == [("volume", "", "v", "a/b", True), ("image", "busybox", "", "etc/x", False)]


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (api.Mount(type="bind", source="/a"), "field Target must not be empty"),
        (api.Mount(type="bind", target="/b"), "field Source must not be empty"),
        (api.Mount(type="bind", source="a", target="/b"), "mount path must be absolute"),
        (api.Mount(type="tmpfs", source="a", target="/b"), "field Source must not be specified"),
        (api.Mount(type="weird", target="/b"), "mount type unknown"),
        (api.Mount(type="image", target="/b"), "field Source must not be empty"),
        (_part("v", "/etc"), "subpath must be a relative path within the volume"),
        (_part("v", "a/../../etc"), "subpath must be a relative path within the volume"),
        (_part("", "a"), "must not set Subpath when using anonymous volumes"),
        (
            api.Mount(type="bind", source="/a", target="/b", volume_options=api.VolumeOptions()),
            "VolumeOptions must not be specified",
        ),
    ],
)
def test_mounts_are_checked(mount, words):
    with pytest.raises(InvalidParameter, match=words):
        resolve(api.HostConfig(mounts=[mount]))


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (api.Mount(type="npipe", source="x", target="/b"), "npipe"),
        (api.Mount(type="cluster", source="x", target="/b"), "cluster"),
    ],
)
def test_what_is_not_built_in_is_refused_by_name(mount, words):
    with pytest.raises(Unsupported, match=words):
        resolve(api.HostConfig(mounts=[mount]))


def test_parents_are_mounted_before_what_lies_in_them():
    points = resolve(binds("/a:/x/y/z", "/b:/x", "/c:/x/y"))
    assert [point.destination for point in points] == ["/x", "/x/y", "/x/y/z"]


def test_tmpfs_options_become_mount_words():
    mount = api.Mount(
        type="tmpfs", target="/t", tmpfs_options=api.TmpfsOptions(size_bytes=1024, mode=0o1770, options=[["exec"]])
    )
    (point,) = resolve(api.HostConfig(mounts=[mount]))
    assert point.options == ["size=1024", "mode=1770", "exec"]
