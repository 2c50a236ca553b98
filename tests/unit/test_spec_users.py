"""Users and groups out of an image's files, hostile ones included."""

import pytest

from dray.base.errors import InvalidParameter
from dray.engine.spec import User, resolve_user

PASSWD = "root:x:0:0:root:/root:/bin/sh\n# comment\nbob:x:1000:1001::/home/bob:/bin/sh\n\nsvc:x:5:5\n"
GROUP = "root:x:0:\nbob:x:1001:\nwheel:x:10:bob,root\naudio:x:29:alice\n"


@pytest.mark.parametrize(
    ("user", "add", "result"),
    [
        ("", [], User(0, 0, (0, 10), "/root")),
        ("root", [], User(0, 0, (0, 10), "/root")),
        ("bob", [], User(1000, 1001, (1001, 10), "/home/bob")),
        ("1000", [], User(1000, 1001, (1001, 10), "/home/bob")),
        ("bob:audio", [], User(1000, 29, (29,), "/home/bob")),
        ("bob:77", [], User(1000, 77, (77,), "/home/bob")),
        ("1234", [], User(1234, 0, (0,), "/")),
        ("1234:4321", [], User(1234, 4321, (4321,), "/")),
        ("svc", [], User(5, 5, (5,), "/")),
        ("bob", ["audio", "99", "10"], User(1000, 1001, (1001, 10, 29, 99), "/home/bob")),
        ("2147483647", [], User(2147483647, 0, (0,), "/")),
    ],
)
def test_known(user, add, result):
    assert resolve_user(PASSWD, GROUP, user, add) == result


def test_an_image_without_files():
    assert resolve_user("", "", "") == User(0, 0, (0,), "/")
    assert resolve_user("", "", "7:8", ["9"]) == User(7, 8, (8, 9), "/")


@pytest.mark.parametrize(
    ("user", "add", "words"),
    [
        ("alice", [], "unable to find user alice: no matching entries in passwd file"),
        ("bob:nobody", [], "unable to find group nobody: no matching entries in group file"),
        ("bob", ["nobody"], "Unable to find group nobody: no matching entries in group file"),
        ("4294967296", [], "range 0-2147483647"),
        ("2147483648", [], "range 0-2147483647"),
        ("1:4294967296", [], "range 0-2147483647"),
        ("99999999999999999999999999", [], "range 0-2147483647"),
        ("-1", [], "range 0-2147483647"),
    ],
)
def test_refused(user, add, words):
    with pytest.raises(InvalidParameter, match=words):
        resolve_user(PASSWD, GROUP, user, add)


@pytest.mark.parametrize("number", ["4294967296", "-1", "0x0", "", "99999999999", "٣"])
def test_an_entry_with_a_wrapping_number_is_not_root(number):
    with pytest.raises(InvalidParameter):
        resolve_user(f"eve:x:{number}:{number}::/:/bin/sh\n", "", "eve")


def test_endless_line_is_refused():
    with pytest.raises(InvalidParameter, match="longer"):
        resolve_user("a" * 100_000, "", "bob")


def test_a_group_may_have_many_members():
    members = ",".join(f"user{number}" for number in range(5000))
    assert resolve_user(PASSWD, f"big:x:50:{members},bob\n", "bob").groups == (1001, 50)


def test_too_many_groups():
    with pytest.raises(InvalidParameter, match="65537"):
        resolve_user(PASSWD, "", "bob", [str(number) for number in range(2000, 2000 + 65536)])
