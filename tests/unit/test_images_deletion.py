"""What `docker rmi` decides, by table."""

from __future__ import annotations

import pytest

from dray.base.errors import Conflict
from dray.store.images.deletion import Plan, plan
from dray.store.images.model import DANGLING, ImageUser

ID = "sha256:" + "ab" * 32
ONE = "docker.io/library/one:latest"
TWO = "docker.io/library/one:2"
OTHER = "example.com/other:latest"
BY_DIGEST = f"docker.io/library/one@{ID}"
STOPPED = ImageUser("c" * 64, running=False)
RUNNING = ImageUser("d" * 64, running=True)


@pytest.mark.parametrize(
    ("name", "names", "users", "force", "expected"),
    [
        (ONE, [ONE], [], False, Plan((ONE,), whole=True)),
        (ONE, [ONE, OTHER], [], False, Plan((ONE,), whole=False)),
        (ONE, [ONE, TWO], [RUNNING], False, Plan((ONE,), whole=False)),
        (ONE, [ONE, BY_DIGEST], [], False, Plan((ONE, BY_DIGEST), whole=True)),
        (ONE, [ONE], [STOPPED], True, Plan((ONE,), whole=False)),
        (ONE, [ONE], [RUNNING], True, Plan((ONE,), whole=False)),
        (None, [ONE, TWO], [], True, Plan((ONE, TWO), whole=True)),
        (None, [ONE, BY_DIGEST], [], False, Plan((ONE, BY_DIGEST), whole=True)),
        (None, [ONE, OTHER], [], True, Plan((ONE, OTHER), whole=True)),
        (None, [DANGLING + ID], [], False, Plan((DANGLING + ID,), whole=True)),
        (None, [ONE], [STOPPED], True, Plan((ONE,), whole=True)),
        (ONE, [ONE, BY_DIGEST, OTHER], [], False, Plan((ONE, BY_DIGEST), whole=False)),
        (ONE, [ONE, TWO, BY_DIGEST], [], False, Plan((ONE,), whole=False)),
    ],
)
def test_allowed(name: str | None, names: list[str], users: list[ImageUser], force: bool, expected: Plan) -> None:
    assert plan(ID, name, names, users, force=force) == expected


@pytest.mark.parametrize(
    ("name", "names", "users", "force", "words"),
    [
        (
            ONE, [ONE], [STOPPED], False,
            "conflict: unable to delete one:latest (must be forced) - "
            "container cccccccccccc is using its referenced image abababababab",
        ),
        (
            None, [ONE, OTHER], [], False,
            "conflict: unable to delete abababababab (must be forced) - image is referenced in multiple repositories",
        ),
        (
            None, [ONE, TWO], [], False,
            "conflict: unable to delete abababababab (must be forced) - image is referenced in multiple repositories",
        ),
        (
            None, [ONE], [STOPPED], False,
            "conflict: unable to delete abababababab (must be forced) - "
            "image is being used by stopped container cccccccccccc",
        ),
        (
            None, [ONE], [STOPPED, RUNNING], False,
            "conflict: unable to delete abababababab (cannot be forced) - "
            "image is being used by running container dddddddddddd",
        ),
        (
            None, [ONE], [RUNNING], True,
            "conflict: unable to delete abababababab (cannot be forced) - "
            "image is being used by running container dddddddddddd",
        ),
    ],
)  # fmt: skip
def test_refused(name: str | None, names: list[str], users: list[ImageUser], force: bool, words: str) -> None:
    answer = plan(ID, name, names, users, force=force)
    assert isinstance(answer, Conflict)
    assert str(answer) == words


@pytest.mark.parametrize(
    ("names", "users", "force", "expected"),
    [
        ([ONE, TWO], [], False, Plan((ONE, TWO), whole=True)),
        ([ONE, TWO, OTHER], [RUNNING], False, Plan((ONE, TWO), whole=False)),
        ([ONE, BY_DIGEST], [STOPPED], True, Plan((ONE, BY_DIGEST), whole=True)),
        ([ONE], [STOPPED], False, "must be forced"),
        ([ONE], [RUNNING], True, "cannot be forced"),
    ],
)
def test_a_digest_means_every_name_of_its_repository(
    names: list[str], users: list[ImageUser], force: bool, expected: Plan | str
) -> None:
    answer = plan(ID, names[0], names, users, force=force, repository=True)
    if isinstance(expected, str):
        assert isinstance(answer, Conflict)
        assert expected in str(answer)
    else:
        assert answer == expected
