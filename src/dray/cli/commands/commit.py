"""`dray commit`."""

from __future__ import annotations

from dray.base.errors import InvalidParameter
from dray.cli.command import Command
from dray.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App
    from dray.cli.flags import Values


def run_commit(app: App, values: Values, arguments: list[str]) -> int:
    """Make an image of a container."""
    from dray.base.reference import parse
    from dray.client.images import split_tag

    container, name = arguments[0], arguments[1] if len(arguments) > 1 else ""
    repo, tag = split_tag(name)
    if name:
        reference = parse(name)
        if reference.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        tag = reference.tag or "latest"
    pause = values["pause"] and not values["no-pause"]
    query = {
        "repo": repo or None,
        "tag": tag or None,
        "comment": values["message"] or None,
        "author": values["author"] or None,
        "changes": values["change"] or None,
        "pause": None if pause else "0",
    }
    app.line(app.client.images.commit(container, query))
    return 0


COMMANDS = {
    "container commit": Command(
        "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        run_commit,
        flags=(
            Flag("author", "string", "Author (such as 'John Doe <john@example.com>')", short="a"),
            Flag("change", "list", "Apply a Dockerfile instruction to the image", short="c"),
            Flag("message", "string", "Comment of the image", short="m"),
            Flag("no-pause", "bool", "Let the container run meanwhile"),
            Flag("pause", "bool", "Freeze the container meanwhile", short="p", default=True, hidden=True),
        ),
        args=(1, 2),
    ),
}
