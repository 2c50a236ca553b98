import pytest

from dray.engine import initfiles
from dray.store.snapshots import Change

OURS = [Change("/.dockerenv", "A"), Change("/dev", "A"), Change("/etc", "C"), Change("/etc/hosts", "A")]


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ([], []),
        ([Change("/x", "A")], ["/x"]),
        ([Change("/etc/passwd", "A")], ["/etc", "/etc/passwd"]),
        ([Change("/etc/passwd", "D")], ["/etc", "/etc/passwd"]),
        ([Change("/dev/mine", "A")], ["/dev", "/dev/mine"]),
        ([Change("/root", "C"), Change("/root/.ash_history", "A")], ["/root", "/root/.ash_history"]),
        ([Change("/etc/hosts.bak", "A")], ["/etc", "/etc/hosts.bak"]),
    ],
)
def test_only_the_containers_own_changes_are_shown(own, shown):
    changes = sorted([*OURS, *own], key=lambda change: change.path)
    assert [change.path for change in initfiles.without(changes)] == shown


def test_a_deleted_file_of_ours_is_shown():
    assert initfiles.without([Change("/etc/hosts", "D")]) == [Change("/etc/hosts", "D")]
