"""What `docker rmi` may do: a decision from names and users, without effects.

The rules and words are those of the containerd image store of Docker Engine 29 (moby
`daemon/containerd/image_delete.go`):

* by a tag that is not the last name: only that tag goes, and with the last tag of a repository the references by
  digest to it;
* by `name@digest`: all names of that repository that stand for the image go;
* by the last name, with containers: refused, or with force the name goes and the image stays as `<none>`;
* by id: refused while a container runs, even with force; refused without force if a stopped container uses it or
  it has several tags (the words speak of repositories, the rule of tags);
* otherwise all names and the image go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dray.base import reference
from dray.base.errors import Conflict
from dray.store.images.model import DANGLING, ImageUser


@dataclass(frozen=True, slots=True)
class Plan:
    """The names to take away; `whole`: the image goes with them."""

    names: tuple[str, ...]
    whole: bool


def _conflict(what: str, message: str, *, hard: bool) -> Conflict:
    return Conflict(f"conflict: unable to delete {what} ({'cannot' if hard else 'must'} be forced) - {message}")


def _short(text: str) -> str:
    return text.removeprefix("sha256:")[:12]


def plan(
    image_id: str,
    name: str | None,
    names: Sequence[str],
    users: Sequence[ImageUser],
    *,
    force: bool,
    repository: bool = False,
) -> Plan | Conflict:
    """Decide. `name` is the canonical name that was asked for (None: by id), `names` all that the image has;
    `repository`: it was asked for by digest, which means every name that the repository has for it."""
    if name is None:
        return _by_id(image_id, names, users, force=force)
    meant = _meant(name, names, repository=repository)
    if len(meant) < len(names):
        return Plan(meant, whole=False)
    if repository:
        return _unused(image_id, names, users, force=force)
    if users and not force:
        message = f"container {_short(users[0].container)} is using its referenced image {_short(image_id)}"
        return _conflict(reference.parse(name).familiar, message, hard=False)
    return Plan(tuple(names), whole=not users)


def _meant(name: str, names: Sequence[str], *, repository: bool) -> tuple[str, ...]:
    """Return the names that go with one: those by digest go with the last tag of their repository."""
    asked = reference.parse(name)
    same = [
        other for other in names if not other.startswith(DANGLING) and reference.parse(other).name == asked.name
    ]
    if repository:
        return tuple(same)
    if any(other != name and reference.parse(other).tag for other in same):
        return (name,)
    return tuple(other for other in names if other == name or other in same or other.startswith(DANGLING))


def _by_id(image_id: str, names: Sequence[str], users: Sequence[ImageUser], *, force: bool) -> Plan | Conflict:
    several = not force and _distinct(names) > 1
    if several and not any(user.running for user in users):
        return _conflict(_short(image_id), "image is referenced in multiple repositories", hard=False)
    return _unused(image_id, names, users, force=force)


def _unused(image_id: str, names: Sequence[str], users: Sequence[ImageUser], *, force: bool) -> Plan | Conflict:
    """Take everything, unless a container stands in the way."""
    running = [user for user in users if user.running]
    if running:
        message = f"image is being used by running container {_short(running[0].container)}"
        return _conflict(_short(image_id), message, hard=True)
    if users and not force:
        message = f"image is being used by stopped container {_short(users[0].container)}"
        return _conflict(_short(image_id), message, hard=False)
    return Plan(tuple(names), whole=True)


def _distinct(names: Sequence[str]) -> int:
    """Count the names that are truly different: a reference by digest goes with a tag of its repository."""
    parsed = [reference.parse(name) for name in names if not name.startswith(DANGLING)]
    tagged = {name.canonical for name in parsed if name.tag}
    repositories = {name.name for name in parsed if name.tag}
    return len(tagged | {name.name for name in parsed if not name.tag and name.name not in repositories})
