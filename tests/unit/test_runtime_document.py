import json

import pytest

from dray.base.errors import InvalidParameter
from dray.linux import seccomp
from dray.runtime import document

PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_KILL"}]}
SPEC = {
    "process": {"args": ["sh"], "rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}], "oomScoreAdj": 7},
    "hooks": {"poststop": [{"path": "/bin/true"}]},
    "annotations": {"a": "b"},
    "linux": {
        "namespaces": [{"type": "pid"}],
        "cgroupsPath": "/x",
        "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
        "resources": {"pids": {"limit": 5}},
        "seccomp": PROFILE,
    },
}
TEXT = json.dumps(SPEC).encode()


def test_the_outline_is_what_the_caller_needs():
    outline = document.outline(TEXT)
    assert outline["process"] == {"rlimits": SPEC["process"]["rlimits"], "oomScoreAdj": 7}
    assert outline["hooks"] == SPEC["hooks"]
    assert outline["annotations"] == SPEC["annotations"]
    fields = ("namespaces", "cgroupsPath", "uidMappings", "gidMappings", "memoryPolicy", "netDevices")
    wanted = {key: SPEC["linux"].get(key) for key in fields}
    assert outline["linux"] == wanted
    assert document.outline(SPEC) is SPEC


def test_the_whole_keeps_the_profile_as_text():
    spec, profile = document.whole(TEXT)
    assert json.loads(profile) == PROFILE
    linux = {key: value for key, value in SPEC["linux"].items() if key != "seccomp"}
    assert spec == {**SPEC, "linux": linux}
    assert document.profile_of(TEXT) == profile
    assert document.whole(SPEC) == (SPEC, PROFILE)
    assert document.resources(TEXT) == document.resources(SPEC) == {"pids": {"limit": 5}}
    assert document.parsed(TEXT) == SPEC


@pytest.mark.parametrize("linux", [None, {}, {"seccomp": None}, {"seccomp": {}}])
def test_no_profile_is_none(linux):
    text = json.dumps({"linux": linux}).encode()
    assert document.whole(text)[1] is None
    assert document.profile_of(text) is None
    assert document.resources(text) is None


@pytest.mark.parametrize("read", [document.outline, document.whole])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"linux": 3}'])
def test_what_is_no_spec_is_refused(read, text):
    with pytest.raises(InvalidParameter, match=r"config\.json"):
        read(text)


def test_a_profile_as_text_compiles_to_the_same_program():
    text = json.dumps(PROFILE).encode()
    assert seccomp.of_text(text) == (seccomp.program(PROFILE), seccomp.filter_flags(PROFILE))
    assert seccomp.of_text(text)[0] is seccomp.of_text(text)[0]
