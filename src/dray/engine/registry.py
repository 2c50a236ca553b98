"""All containers of the daemon, by id and by name, and their way to disk.

The in-memory table is what the API reads; the `container` records are what a restarted daemon starts from. They
differ only inside one call: every change is written before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import msgspec

from dray.base.errors import Conflict, Internal, InvalidParameter, NotFound
from dray.base.patterns import pattern
from dray.base.records import Change, Records
from dray.engine import links, model
from dray.engine.model import Container

_NAME = pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)


class Registry:
    """Look containers up and keep their records. Used from the event loop only."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, str] = {}
        self.hidden: list[model.ContainerRecord] = []

    def load(self, driver: str = "") -> None:
        """Read every record (at start of the daemon).

        Containers whose root another storage driver than `driver` has ("": any) are `hidden`, as in dockerd: they
        stay on disk and keep their names.
        """
        for key, data in self._records.scan(model.KIND):
            try:
                container = Container(model.decode(data))
            except msgspec.MsgspecError as error:
                raise Internal(
                    f"the record of container {key} cannot be read ({error}): it was written by another version of "
                    "dray, start that one; nothing has been changed"
                ) from error
            if driver and container.record.driver not in ("", driver):
                self.hidden.append(container.record)
                self._by_name[container.name] = container.id
                continue
            container.settled.set()
            self._by_id[container.id] = container
            self._by_name[container.name] = container.id

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, container_id: str) -> Container | None:
        """Return the container with exactly this id."""
        return self._by_id.get(container_id)

    def named(self, name: str) -> Container | None:
        """Return the container with exactly this name."""
        return self._by_id.get(self._by_name.get(name, ""))

    def find(self, reference: str) -> Container:
        """Return the container with this id, name, name by a link, or unique id prefix, in that order (moby
        `GetContainer`)."""
        if container := self._by_id.get(reference):
            return container
        found = self._by_id.get(self._by_name.get(reference.removeprefix("/"), ""))
        if found is not None:  # a name may be taken by a creation that is still under way
            return found
        if (linked := links.find(reference, self)) is not None:
            return linked[1]
        matches = [identity for identity in self._by_id if identity.startswith(reference)] if reference else []
        if len(matches) > 1:
            raise InvalidParameter(f"multiple IDs found with provided prefix: {reference}")
        if not matches:
            raise NotFound(f"No such container: {reference}")
        return self._by_id[matches[0]]

    def check_name(self, name: str) -> str:
        """Return a free, valid name without slash; Conflict in Docker's words if it is taken."""
        bare = name.removeprefix("/")
        if not _NAME.fullmatch(bare):
            raise InvalidParameter(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        if holder := self._by_name.get(bare):
            raise Conflict(
                f'Conflict. The container name "/{bare}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        return bare

    def is_taken(self, name: str) -> bool:
        """Tell whether a container has this name."""
        return name in self._by_name

    def reserve(self, name: str, container_id: str) -> None:
        """Take a name before its container exists; `release` gives it back if the creation fails."""
        self._by_name[self.check_name(name)] = container_id

    def release(self, name: str) -> None:
        """Give back a name."""
        self._by_name.pop(name, None)

    def add(self, container: Container) -> None:
        """Enter a new container and write its record."""
        container.settled.set()
        self.save(container)
        self._by_id[container.id] = container
        self._by_name[container.name] = container.id

    def save(self, container: Container) -> None:
        """Write the record; from here on it survives a killed daemon."""
        self._records.write([Change(model.KIND, container.id, model.encode(container.record))])

    async def sync(self) -> None:
        """Put everything written on disk, to survive a power loss."""
        await asyncio.to_thread(self._records.sync)

    def rename(self, container: Container, name: str) -> None:
        """Give the container another (valid, free) name and write it."""
        bare = self.check_name(name)
        old = container.record.name
        container.record.name = bare
        try:
            self.save(container)
        except BaseException:
            container.record.name = old
            raise
        self._by_name.pop(old, None)
        self._by_name[bare] = container.id

    def remove(self, container: Container) -> None:
        """Forget the container."""
        self._records.write([Change(model.KIND, container.id, None)])
        self._by_id.pop(container.id, None)
        if self._by_name.get(container.name) == container.id:
            del self._by_name[container.name]
