"""CDI: reading specs, what a request means, and the edits in an OCI spec."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dray.api.models import DeviceRequest
from dray.base.errors import DrayError
from dray.engine import cdi

NULL = {"path": "/dev/vendor0", "hostPath": "/dev/null"}


def write(folder: Path, name: str, *devices: str, kind: str = "vendor.com/class", **edits: Any) -> None:
    folder.mkdir(exist_ok=True)
    document = {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "containerEdits": {"env": ["COMMON=1"]},
        "devices": [
            {"name": device, "containerEdits": edits or {"env": [f"DEVICE={device}"]}} for device in devices
        ],
    }
    (folder / name).write_text(json.dumps(document))


def spec() -> dict[str, Any]:
    return {
        "process": {"env": ["PATH=/bin", "DEVICE=old"], "user": {"uid": 7, "gid": 8, "additionalGids": [8]}},
        "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
        "mounts": [{"destination": "/proc"}, {"destination": "/etc/hosts"}],
    }


def asked(*names: str) -> list[DeviceRequest]:
    return [DeviceRequest(driver="cdi", device_ids=list(names))]


def test_a_device_brings_its_specs_edits_and_its_own(tmp_path: Path) -> None:
    write(tmp_path, "a.json", "one", "two")
    edits = cdi.find(asked("vendor.com/class=one", "vendor.com/class=two"), [str(tmp_path)])
    document = spec()
    cdi.apply(document, edits)
    assert len(edits) == 3  # what the spec says for all its devices, once
    assert document["process"]["env"] == ["PATH=/bin", "DEVICE=two", "COMMON=1"]


def test_every_edit(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.json",
        "one",
        deviceNodes=[{**NULL, "permissions": "r"}],
        mounts=[{"hostPath": "/lib/x", "containerPath": "/x"}],
        hooks=[{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "a"], "timeout": 3}],
        additionalGids=[0, 44, 8],
    )
    document = spec()
    cdi.apply(document, cdi.find(asked("vendor.com/class=one"), [str(tmp_path)]))
    node = document["linux"]["devices"][0]
    assert (node["path"], node["type"], node["major"], node["minor"]) == ("/dev/vendor0", "c", 1, 3)
    assert (node["uid"], node["gid"], node["fileMode"]) == (7, 8, 0o666)
    assert document["linux"]["resources"]["devices"][-1] == {
        "allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"
    }  # fmt: skip
    assert [mount["destination"] for mount in document["mounts"]] == ["/proc", "/x", "/etc/hosts"]
    assert document["hooks"] == {"createContainer": [{"path": "/bin/hook", "args": ["hook", "a"], "timeout": 3}]}
    assert document["process"]["user"]["additionalGids"] == [8, 44]


def test_the_later_directory_wins(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json", "one", env=["FROM=etc"])
    write(tmp_path / "run", "b.json", "one", env=["FROM=run"])
    edits = cdi.find(asked("vendor.com/class=one"), [str(tmp_path / "etc"), str(tmp_path / "run")])
    assert edits[-1]["env"] == ["FROM=run"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "broken.json"),
        ("[]", "not an object"),
        ({"cdiVersion": "9.0.0", "kind": "vendor.com/class"}, "cdiVersion '9.0.0' is not known"),
        ({"kind": "vendor"}, "is not vendor.com/class"),
        ({"devices": [{"name": "a b"}]}, "invalid device name 'a b'"),
        ({"devices": [{"name": "one"}, {"name": "one"}]}, "two devices are called one"),
        ({"containerEdits": {"intelRdt": {"closID": "x"}}}, "containerEdits.intelRdt is not supported"),
        ({"containerEdits": {"hooks": [{"hookName": "never", "path": "/x"}]}}, "invalid hook 'never'"),
        ({"containerEdits": {"mounts": [{"hostPath": "/x"}]}}, "invalid mount"),
        ({"containerEdits": {"deviceNodes": [{"path": "x"}]}}, "invalid device node 'x'"),
        ({"containerEdits": {"env": ["x"]}}, "invalid variable 'x'"),
        ({"containerEdits": {"env": "x"}}, "containerEdits.env must be a list"),
        ({"containerEdits": []}, ""),
    ],
)
def test_a_broken_spec_is_told_with_the_device_that_is_missing(tmp_path: Path, document: Any, words: str) -> None:
    text = (
        document
        if isinstance(document, str)
        else json.dumps({"cdiVersion": "0.6.0", "kind": "vendor.com/class", **document})
    )
    (tmp_path / "broken.json").write_text(text)
    write(tmp_path, "whole.json", "there")
    assert cdi.find(asked("vendor.com/class=there"), [str(tmp_path)])
    with pytest.raises(DrayError, match=r"unresolvable CDI devices vendor\.com/class=gone") as error:
        cdi.find(asked("vendor.com/class=gone"), [str(tmp_path)])
    assert words in str(error.value)


def test_a_device_named_by_two_files_is_nobodys(tmp_path: Path) -> None:
    write(tmp_path, "a.json", "one")
    write(tmp_path, "b.json", "one", "two")
    assert sorted(cdi.read([str(tmp_path)]).devices) == ["vendor.com/class=two"]


def test_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(
        "cdiVersion: 0.5.0\nkind: vendor.com/class\ndevices:\n- name: one\n  containerEdits:\n    env: [A=1]\n"
    )
    assert cdi.find(asked("vendor.com/class=one"), [str(tmp_path)])[-1]["env"] == ["A=1"]
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(DrayError, match="reading YAML needs PyYAML"):
        cdi.find(asked("vendor.com/class=one"), [str(tmp_path)])


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (DeviceRequest(count=-1, capabilities=[["gpu"]]), ["all"]),
        (DeviceRequest(count=2, capabilities=[["gpu", "compute"]]), ["0", "1"]),
        (DeviceRequest(driver="nvidia", device_ids=["1"], capabilities=[["gpu"]]), ["1"]),
    ],
)
def test_gpus(tmp_path: Path, request_: DeviceRequest, names: list[str]) -> None:
    write(tmp_path, "a.json", "all", "0", "1", kind="nvidia.com/gpu")
    edits = cdi.find([request_], [str(tmp_path)])
    assert [edit["env"] for edit in edits[1:]] == [[f"DEVICE={name}"] for name in names]


def test_gpus_that_nobody_gives(tmp_path: Path) -> None:
    with pytest.raises(DrayError, match=r'could not select device driver "" with capabilities: \[\[gpu\]\]'):
        cdi.find([DeviceRequest(count=-1, capabilities=[["gpu"]])], [str(tmp_path)])
