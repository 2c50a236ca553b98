"""Which images `docker images` shows and `docker image prune` takes: filters on what is known of them.

The rules are Docker's: `before` and `since` compare the times of creation that the images' configs tell; `until` takes
times and durations; `reference` takes patterns of Go's `path.Match` (no `*` goes past a slash) for familiar names
with and without tag or digest; `dangling` means without any name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dray.api.filters import Filters
from dray.base import reference
from dray.base.errors import InvalidParameter
from dray.engine import clock
from dray.store.images import Image


def nanoseconds(text: str) -> int:
    """Read a config's time as unix nanoseconds; 0 if there is none."""
    try:
        return clock.parse_timestamp(text) if text else 0
    except InvalidParameter:
        return 0


def created(image: Image) -> int:
    """Return when an image was made, in unix nanoseconds; 0 if it does not say."""
    return nanoseconds(image.created)


def select(
    images: Sequence[Image], filters: Filters, *, resolve: Callable[[str], Image], used: frozenset[str]
) -> list[Image]:
    """Return the images that all filters let through.

    `resolve` finds an image by name or id, for `before` and `since`; `used` are the ids of those with containers.
    InvalidParameter for a value that makes no sense, NotFound for an image that is not there.
    """
    limits = [created(resolve(word)) for word in filters.values_of("before")]
    limits += [clock.parse_timestamp(word) for word in filters.values_of("until")]
    floors = [created(resolve(word)) for word in filters.values_of("since")]
    chosen = [
        image
        for image in images
        if all(created(image) < limit for limit in limits) and all(created(image) > floor for floor in floors)
    ]
    if "dangling" in filters:
        dangling = filters.boolean("dangling", True)
        chosen = [image for image in chosen if image.dangling == dangling]
    if "containers" in filters:
        wanted = filters.boolean("containers", True)
        chosen = [image for image in chosen if (image.id in used) == wanted]
    return [
        image
        for image in chosen
        if filters.matches_pattern("reference", _words((*image.tags, *image.digests)))
        and filters.matches_labels(image.labels)
    ]


def shown(image: Image, filters: Filters) -> tuple[list[str], list[str]]:
    """Return the tags and the digests of an image that a `reference` filter lets through: all without one. A digest
    comes with the tags of its repository."""

    def through(name: str) -> bool:
        return filters.matches_pattern("reference", _words([name]))

    tags = [name for name in image.tags if through(name)]
    repositories = {reference.parse(name).familiar_name for name in tags}
    digests = [
        name for name in image.digests if reference.parse(name).familiar_name in repositories or through(name)
    ]
    return tags, digests


def _words(names: Iterable[str]) -> list[str]:
    """Return what patterns are compared with: names in full, and without tag and digest."""
    return [word for name in names for word in (name, reference.parse(name).familiar_name)]


def prunable(images: Sequence[Image], filters: Filters, *, used: frozenset[str]) -> list[Image]:
    """Return the images that a prune is to take: without a name, or with `dangling=false` all that no container uses.

    InvalidParameter for a value that makes no sense; nothing may be removed then.
    """
    dangling_only = filters.boolean("dangling", True)
    limits = [clock.parse_timestamp(text) for text in filters.values_of("until")]
    return [
        image
        for image in images
        if image.id not in used
        and (image.dangling or not dangling_only)
        and filters.matches_labels(image.labels)
        and all(created(image) < limit for limit in limits)
    ]
