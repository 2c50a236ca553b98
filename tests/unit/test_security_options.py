"""Capabilities, --security-opt, and Docker's profile as the kernel sees it."""

import pytest

from dray.base.errors import InvalidParameter
from dray.engine import security
from dray.engine.security import SecurityOptions

DEFAULT = list(security.defaults()["capabilities"])


@pytest.mark.parametrize(
    ("add", "drop", "result"),
    [
        ([], [], DEFAULT),
        (["net_admin"], ["CAP_CHOWN"], [name for name in DEFAULT if name != "CAP_CHOWN"] + ["CAP_NET_ADMIN"]),
        (["SYS_ADMIN"], ["ALL"], ["CAP_SYS_ADMIN"]),
        (["ALL"], ["MKNOD"], [name for name in security.ALL_CAPABILITIES if name != "CAP_MKNOD"]),
        (["CHOWN"], [], DEFAULT),
        ([], ["all"], []),
    ],
)
def test_capabilities(add, drop, result):
    assert security.capabilities(add, drop) == result


def test_unknown_and_unavailable_capabilities():
    with pytest.raises(InvalidParameter, match='unknown capability: "CAP_FOO"'):
        security.capabilities(["foo"], [])
    with pytest.raises(InvalidParameter, match="not supported by your kernel"):
        security.capabilities(["BPF"], [], available=DEFAULT)
    assert security.capabilities([], [], privileged=True, available=["CAP_KILL"]) == ["CAP_KILL"]


@pytest.mark.parametrize(
    ("words", "result"),
    [
        ([], SecurityOptions()),
        (["no-new-privileges"], SecurityOptions(no_new_privileges=True)),
        (["no-new-privileges:false"], SecurityOptions(no_new_privileges=False)),
        (["seccomp=unconfined", "apparmor=x"], SecurityOptions(seccomp="unconfined", apparmor="x")),
        (['seccomp={"a":"b=c"}'], SecurityOptions(seccomp='{"a":"b=c"}')),
        (["label=disable", "label:type:t", "disable"], SecurityOptions(labels=("disable", "type:t", "disable"))),
        (["writable-cgroups", "systempaths=unconfined"],
         SecurityOptions(writable_cgroups=True, system_paths_unconfined=True)),
    ],
)  # fmt: skip
def test_security_options(words, result):
    assert security.security_options(words) == result


@pytest.mark.parametrize(
    ("word", "number"), [("foo", 1), ("foo=bar", 2), ("no-new-privileges=x", 2), ("systempaths=all", 2)]
)
def test_bad_security_options(word, number):
    with pytest.raises(InvalidParameter, match=f'invalid --security-opt {number}: "{word}"'):
        security.security_options([word])


def names(profile):
    return {name for rule in profile["syscalls"] for name in rule["names"] if rule["action"] == "SCMP_ACT_ALLOW"}


def profile(caps=(), architecture="amd64", kernel=(6, 1)):
    return security.seccomp(
        security.default_profile(), capabilities=caps, architecture=architecture, kernel=kernel
    )


def test_default_profile():
    made = profile()
    assert made["defaultAction"] == "SCMP_ACT_ERRNO"
    assert made["defaultErrnoRet"] == 1
    assert {"read", "arch_prctl", "ptrace"} <= names(made)
    assert not {"bpf", "mount", "chroot", "open_by_handle_at", "s390_runtime_instr"} & names(made)
    clone3 = [rule for rule in made["syscalls"] if rule["names"] == ["clone3"]]
    assert clone3 == [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]


def test_capabilities_open_calls():
    made = profile(["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"])
    assert {"mount", "chroot", "clone3"} <= names(made)
    assert [rule for rule in made["syscalls"] if rule.get("errnoRet") == 38] == []


def test_architectures_and_kernels():
    assert profile(architecture="arm64")["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert "arm_fadvise64_64" in names(profile(architecture="arm64"))
    assert "arch_prctl" not in names(profile(architecture="arm64"))
    assert "ptrace" not in names(profile(kernel=(4, 7)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "decoding seccomp profile failed"),
        ("{}", "defaultAction"),
        ('{"defaultAction":"SCMP_ACT_ALLOW","architectures":["a"],"archMap":[{"architecture":"b"}]}', "archMap"),
    ],
)
def test_bad_profiles(text, words):
    with pytest.raises(InvalidParameter, match=words):
        security.parse_profile(text)


def test_the_old_single_name():
    text = '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"chmod","action":"SCMP_ACT_ERRNO"}]}'
    made = security.seccomp(security.parse_profile(text), capabilities=(), architecture="amd64", kernel=(6, 1))
    assert made["syscalls"] == [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]
