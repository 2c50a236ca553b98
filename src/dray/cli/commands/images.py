"""Local images: ls, history, tag, rm."""

from __future__ import annotations

import json

from dray.base.errors import DrayError, InvalidParameter
from dray.base.units import human_size
from dray.cli.command import MANY, Command, Failure
from dray.cli.flags import Flag
from dray.cli.output import Column, Listing, ago, ellipsis, local_time, short_id
from dray.client.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

    Summary = dict[str, Any]

NONE = "<none>"


def parse_platform(text: str) -> dict[str, str]:
    """Read `os/architecture[/variant]`."""
    parts = text.lower().split("/")
    if not all(parts) or len(parts) > 3:
        raise InvalidParameter(
            f'invalid platform: "{text}": it must be os/architecture or os/architecture/variant'
        )
    if len(parts) == 1:
        return (
            {"os": parts[0], "architecture": ""}
            if parts[0] in ("linux", "windows")
            else {"os": "linux", "architecture": parts[0]}
        )
    return dict(zip(("os", "architecture", "variant"), parts, strict=False))


def platform_texts(given: list[str]) -> list[str] | None:
    """Return platforms as query values (JSON); None for none."""
    return [json.dumps(parse_platform(text), separators=(",", ":")) for text in given] or None


def familiar(name: str) -> str:
    """Return a repository's name as users write it."""
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/")


def _rows(images: list[Summary], *, digests: bool) -> Iterator[Summary]:
    """Yield one row for each name of each image."""
    for image in images:
        tags: dict[str, list[str]] = {}
        for name in image.get("RepoTags") or ():
            repository, _, tag = name.rpartition(":")
            if name != "<none>:<none>":
                tags.setdefault(familiar(repository), []).append(tag)
        shas: dict[str, list[str]] = {}
        for name in image.get("RepoDigests") or ():
            repository, _, digest = name.partition("@")
            if repository != NONE:
                shas.setdefault(familiar(repository), []).append(digest)
        if not tags and not shas:
            yield {**image, "_repository": NONE, "_tag": NONE, "_digest": NONE}
            continue
        for repository, names in tags.items():
            found = shas.pop(repository, [])
            for tag in names:
                if not digests or not found:
                    yield {**image, "_repository": repository, "_tag": tag, "_digest": NONE}
                    continue
                for digest in found:
                    yield {**image, "_repository": repository, "_tag": tag, "_digest": digest}
        for repository, found in shas.items():
            if not digests:
                yield {**image, "_repository": repository, "_tag": NONE, "_digest": NONE}
                continue
            for digest in found:
                yield {**image, "_repository": repository, "_tag": NONE, "_digest": digest}


def _known(number: int | None, text: str) -> str:
    return "N/A" if number is None or number == -1 else text


def image_listing(*, full: bool) -> Listing:
    """Return the list of images; `full` shortens no ID."""
    columns = {
        "ID": Column("IMAGE ID", lambda one: one["Id"] if full else short_id(one["Id"])),
        "Repository": Column("REPOSITORY", lambda one: one["_repository"]),
        "Tag": Column("TAG", lambda one: one["_tag"]),
        "Digest": Column("DIGEST", lambda one: one["_digest"]),
        "CreatedSince": Column(
            "CREATED", lambda one: "N/A" if one.get("Created", 0) <= 0 else ago(one["Created"])
        ),
        "CreatedAt": Column("CREATED AT", lambda one: local_time(one["Created"])),
        "Size": Column("SIZE", lambda one: human_size(one.get("Size") or 0)),
        "Containers": Column("CONTAINERS", lambda one: _known(one.get("Containers"), str(one.get("Containers")))),
        "VirtualSize": Column("SIZE", lambda one: human_size(one.get("Size") or 0, 4)),
        "SharedSize": Column(
            "SHARED SIZE", lambda one: _known(one.get("SharedSize"), human_size(one.get("SharedSize") or 0, 4))
        ),
        "UniqueSize": Column(
            "UNIQUE SIZE",
            lambda one: (
                "N/A"
                if one.get("SharedSize", -1) == -1
                else human_size((one.get("Size") or 0) - one["SharedSize"], 4)
            ),
        ),
    }
    return Listing(
        "*formatter.imageContext",
        columns,
        ("Repository", "Tag", "ID", "CreatedSince", "Size"),
        raw=(
            ("repository", "Repository"),
            ("tag", "Tag"),
            ("image_id", "ID"),
            ("created_at", "CreatedAt"),
            ("virtual_size", "Size"),
        ),
        quiet="ID",
    )


def _tree(app: App, images: list[Summary]) -> None:
    """Print images with the platforms each has."""
    from dray.cli.output import align

    lines = ["IMAGE\tID\tDISK USAGE\tCONTENT SIZE\tIN USE"]
    for image in images:
        manifests = image.get("Manifests") or []
        content = sum((one.get("Size") or {}).get("Content", 0) for one in manifests)
        names = image.get("RepoTags") or [NONE]
        used = "✔" if any((one.get("ImageData") or {}).get("Containers") for one in manifests) else ""
        lines.append(
            f"{', '.join(names)}\t{short_id(image['Id'])}\t{human_size(image.get('Size') or 0)}\t{human_size(content) if manifests else 'N/A'}\t{used}"
        )
        for one in manifests:
            if one.get("Kind") != "image":
                continue
            platform = (one.get("ImageData") or {}).get("Platform") or {}
            shown = "/".join(
                part
                for part in (platform.get("os"), platform.get("architecture"), platform.get("variant"))
                if part
            )
            sizes = one.get("Size") or {}
            mark = "└─" if one is manifests[-1] else "├─"
            here = "✔" if (one.get("ImageData") or {}).get("Containers") else ""
            lines.append(
                f"{mark} {shown}\t{short_id(one.get('ID', ''))}\t{human_size(sizes.get('Total', 0))}\t{human_size(sizes.get('Content', 0))}\t{here}"
            )
    app.line("\n".join(align(lines)))


def run_images(app: App, values: Values, arguments: list[str]) -> int:
    """List images."""
    filters = values["filter"]
    if arguments:
        filters.setdefault("reference", {})[arguments[0]] = True
    if values["tree"]:
        for name in ("no-trunc", "quiet", "digests", "format"):
            if values[name]:
                raise Failure(f"--{name} is not yet supported with --tree")
        need_version(app, "--tree", "1.47")
        _tree(app, app.client.images.list(all=values["all"], filters=filters, manifests=True))
        return 0
    form = values["format"]
    if not form and not values["quiet"]:
        form = app.config.text("imagesFormat")
    images = app.client.images.list(all=values["all"], filters=filters)
    default = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size") if values["digests"] else ()
    wants = values["digests"] or ".Digest" in form
    listing = image_listing(full=values["no-trunc"])
    rows = list(_rows(images, digests=wants))
    app.out(listing.render(rows, form, quiet=values["quiet"], default=default))
    if (
        arguments
        and not images
        and "/" in arguments[0]
        and ":" not in arguments[0]
        and not form
        and not values["quiet"]
    ):
        return 0
    return 0


def need_version(app: App, flag: str, version: str) -> None:
    """Refuse a flag that the daemon's API is too old for."""
    from dray.client.transport import version_key

    have = app.client.version
    if version_key(have) < version_key(version):
        raise Failure(f'"{flag}" requires API version {version}, but the Docker daemon API version is {have}')


def _history_listing(*, full: bool, human: bool) -> Listing:
    def created_by(one: Summary) -> str:
        text = (one.get("CreatedBy") or "").replace("\t", " ")
        return text if full else ellipsis(text, 45)

    def comment(one: Summary) -> str:
        return one.get("Comment") or ""

    columns = {
        "ID": Column("IMAGE", lambda one: one["Id"] if full else short_id(one["Id"])),
        "CreatedSince": Column("CREATED" if human else "CREATED AT", lambda one: _history_time(one, human=human)),
        "CreatedAt": Column("CREATED AT", lambda one: _rfc3339(one["Created"])),
        "CreatedBy": Column("CREATED BY", created_by),
        "Size": Column(
            "SIZE", lambda one: human_size(one.get("Size") or 0) if human else str(one.get("Size") or 0)
        ),
        "Comment": Column("COMMENT", comment),
    }
    return Listing(
        "*image.historyContext", columns, ("ID", "CreatedSince", "CreatedBy", "Size", "Comment"), quiet="ID"
    )


def _rfc3339(seconds: int) -> str:
    import time

    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
    return text[:-5] + "Z" if text.endswith("+0000") else f"{text[:-2]}:{text[-2:]}"


def _history_time(one: Summary, *, human: bool) -> str:
    if not human:
        return _rfc3339(one["Created"])
    return "N/A" if one["Created"] <= -62135596800 or one["Created"] == 0 else ago(one["Created"])


def run_history(app: App, values: Values, arguments: list[str]) -> int:
    """Print an image's history."""
    platform = parse_platform(values["platform"]) if values["platform"] else None
    if platform:
        need_version(app, "--platform", "1.48")
    records = app.client.images.history(arguments[0], platform=platform)
    listing = _history_listing(full=values["no-trunc"], human=values["human"])
    app.out(listing.render(records, values["format"], quiet=values["quiet"]))
    return 0


def run_tag(app: App, values: Values, arguments: list[str]) -> int:
    """Give an image another name."""
    from dray.base.reference import parse
    from dray.client.images import split_tag

    source, target = arguments
    try:
        reference = parse(target)
    except InvalidParameter as error:
        raise InvalidParameter(
            f'Error parsing reference: "{target}" is not a valid repository/tag: {error}'
        ) from None
    if reference.digest:
        raise Failure("refusing to create a tag with a digest reference")
    name, _ = split_tag(target)
    app.client.images.tag(source, name, reference.tag or "latest")
    return 0


def run_rmi(app: App, values: Values, arguments: list[str]) -> int:
    """Remove images."""
    if values["platform"]:
        need_version(app, "--platform", "1.50")
    errors: list[str] = []
    fatal = False
    for name in arguments:
        try:
            removed = app.client.images.remove(
                name,
                force=values["force"],
                noprune=values["no-prune"],
                platforms=platform_texts(values["platform"]),
            )
        except ConnectError:
            raise
        except DrayError as error:
            fatal = fatal or error.status != 404 or not values["force"]
            errors.append(str(error))
            continue
        for one in removed:
            app.line(f"Deleted: {one['Deleted']}" if one.get("Deleted") else f"Untagged: {one['Untagged']}")
    if errors:
        if fatal:
            raise Failure("\n".join(errors))
        app.error("\n".join(errors))
    return 0


_PLATFORM = Flag("platform", "string", "Platform, where the image has several (os/architecture[/variant])")

COMMANDS = {
    "image ls": Command(
        "[OPTIONS] [REPOSITORY[:TAG]]",
        run_images,
        flags=(
            Flag("all", "bool", "Show intermediate images too", short="a"),
            Flag("digests", "bool", "Show digests"),
            Flag("filter", "filter", "Show only images that match (name=value)", short="f"),
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("no-trunc", "bool", "Shorten nothing"),
            Flag("quiet", "bool", "Print IDs only", short="q"),
            Flag("tree", "bool", "Show the platforms of each image"),
        ),
        args=(0, 1),
    ),
    "image history": Command(
        "[OPTIONS] IMAGE",
        run_history,
        flags=(
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("human", "bool", "Print sizes and dates for people", short="H", default=True),
            Flag("no-trunc", "bool", "Shorten nothing"),
            _PLATFORM,
            Flag("quiet", "bool", "Print IDs only", short="q"),
        ),
        args=(1, 1),
    ),
    "image tag": Command("SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", run_tag, args=(2, 2)),
    "image rm": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        run_rmi,
        flags=(
            Flag("force", "bool", "Remove it even if containers or other names use it", short="f"),
            Flag("no-prune", "bool", "Keep untagged parents"),
            Flag("platform", "strings", "Remove only these platforms"),
        ),
        args=(1, MANY),
    ),
}
