"""`dray search`."""

from __future__ import annotations

from dray.cli.command import Command, Failure
from dray.cli.credentials import INDEX_SERVER, Credentials, auth_key
from dray.cli.flags import Flag
from dray.cli.output import Column, Listing, ellipsis

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App
    from dray.cli.flags import Values


def listing(*, full: bool) -> Listing:
    """Return the list of found repositories."""

    def description(one: dict[str, str]) -> str:
        text = " ".join((one.get("description") or "").split())
        return text if full else ellipsis(text, 45)

    columns = {
        "Name": Column("NAME", lambda one: one["name"]),
        "Description": Column("DESCRIPTION", description),
        "StarCount": Column("STARS", lambda one: str(one.get("star_count", 0))),
        "IsOfficial": Column("OFFICIAL", lambda one: "[OK]" if one.get("is_official") else ""),
    }
    return Listing("*registry.searchContext", columns, ("Name", "Description", "StarCount", "IsOfficial"))


def run_search(app: App, values: Values, arguments: list[str]) -> int:
    """Search a registry."""
    from dray.client.images import encode_auth

    if values["limit"] < 0 or values["limit"] > 100:
        raise Failure(f"limit {values['limit']} is outside the range of [1, 100]")
    first, slash, _ = arguments[0].partition("/")
    server = auth_key(first) if slash and ("." in first or ":" in first or first == "localhost") else INDEX_SERVER
    auth = Credentials(app.config).get(server)
    found = app.client.images.search(
        arguments[0], limit=values["limit"], filters=values["filter"], auth=encode_auth(auth) if auth else None
    )
    app.out(listing(full=values["no-trunc"]).render(found, values["format"]))
    return 0


COMMANDS = {
    "search": Command(
        "[OPTIONS] TERM",
        run_search,
        flags=(
            Flag("filter", "filter", "Show only what matches (such as is-official=true)", short="f"),
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("limit", "int", "Number of results"),
            Flag("no-trunc", "bool", "Shorten nothing"),
        ),
        args=(1, 1),
    ),
}
