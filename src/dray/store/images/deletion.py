"""What `docker rmi` may do: a decision from names and users, without effects.

The rules and words are those of the containerd image store of Docker Engine 29 (moby
`daemon/containerd/image_delete.go`):

* by a name that is not the last one: only that name goes;
* by the last name, with containers: refused, or with force the name goes and the image stays as `<none>`;
* by id: refused while a container runs, even with force; refused without force if a stopped container uses it or
  it has several tags (the words speak of repositories, the rule of tags);
* otherwise all names and the image go.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from dray.base import reference
from dray.base.errors import Conflict
from dray.store.images.model import DANGLING, ImageUser


class Plan(Struct, frozen=True):
    """The names to take away; `whole`: the image goes with them."""

    names: tuple[str, ...]
    whole: bool


def _conflict(what: str, message: str, *, hard: bool) -> Conflict:
    return Conflict(f"conflict: unable to delete {what} ({'cannot' if hard else 'must'} be forced) - {message}")


def _short(text: str) -> str:
    return text.removeprefix("sha256:")[:12]


def plan(
    image_id: str, name: str | None, names: Sequence[str], users: Sequence[ImageUser], *, force: bool
) -> Plan | Conflict:
    """Decide. `name` is the canonical name that was asked for (None: by id), `names` all that the image has."""
    if name is None:
        return _by_id(image_id, names, users, force=force)
    parsed = reference.parse(name)
    # References by digest come with the tags of their repository, and go with the last of them.
    others = [other for other in names if other != name and not other.startswith(f"{parsed.name}@")]
    if others:
        return Plan((name,), whole=False)
    if users and not force:
        message = f"container {_short(users[0].container)} is using its referenced image {_short(image_id)}"
        return _conflict(parsed.familiar, message, hard=False)
    return Plan(tuple(names), whole=not users)


def _by_id(image_id: str, names: Sequence[str], users: Sequence[ImageUser], *, force: bool) -> Plan | Conflict:
    running = [user for user in users if user.running]
    if running:
        message = f"image is being used by running container {_short(running[0].container)}"
        return _conflict(_short(image_id), message, hard=True)
    if not force:
        if _distinct(names) > 1:
            return _conflict(_short(image_id), "image is referenced in multiple repositories", hard=False)
        if users:
            message = f"image is being used by stopped container {_short(users[0].container)}"
            return _conflict(_short(image_id), message, hard=False)
    return Plan(tuple(names), whole=True)


def _distinct(names: Sequence[str]) -> int:
    """Count the names that are truly different: a reference by digest goes with a tag of its repository."""
    parsed = [reference.parse(name) for name in names if not name.startswith(DANGLING)]
    tagged = {name.canonical for name in parsed if name.tag}
    repositories = {name.name for name in parsed if name.tag}
    return len(tagged | {name.name for name in parsed if not name.tag and name.name not in repositories})
