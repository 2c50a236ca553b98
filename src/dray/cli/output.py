"""Lists as docker prints them: tables with aligned columns, `--format` templates, `json`, quiet.

A `Listing` describes one kind of list: its columns (field name → header and function of the item), which of them
the default table shows. Columns are separated by at least three spaces and are ten wide at least (Go's
text/tabwriter with those settings, which `align` is). The template package is only imported for a template.
"""

from __future__ import annotations

from dray.base.errors import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

_MIN_WIDTH, _PADDING = 10, 3


def align(lines: Sequence[str], *, minimum: int = _MIN_WIDTH, padding: int = _PADDING) -> list[str]:
    """Align cells that end in a tab; the text after a line's last tab belongs to no column."""
    rows = [line.split("\t") for line in lines]
    widths: dict[tuple[int, int], int] = {}
    deepest = max((len(row) for row in rows), default=0)
    for column in range(deepest - 1):
        at = 0
        while at < len(rows):
            # A column is a block of neighbouring lines that all have a cell there.
            end = at
            while end < len(rows) and len(rows[end]) > column + 1:
                end += 1
            if end > at:
                width = max(max(len(rows[line][column]) for line in range(at, end)) + padding, minimum)
                for line in range(at, end):
                    widths[line, column] = width
            at = max(end, at + 1)
    return [
        "".join([cell.ljust(widths[line, column]) for column, cell in enumerate(row[:-1])]) + row[-1]
        for line, row in enumerate(rows)
    ]


class Column:
    """A field of a list's items: the table's heading and how to make its text of an item."""

    __slots__ = ("header", "value")

    def __init__(self, header: str, value: Callable[[Any], Any]) -> None:
        self.header = header
        self.value = value


class Row:
    """An item as a template sees it."""

    __slots__ = ("item", "listing")

    def __init__(self, listing: Listing, item: Any) -> None:
        self.listing = listing
        self.item = item

    @property
    def type_name(self) -> str:
        """The name an error calls the item's type by."""
        return self.listing.type_name

    def field(self, name: str) -> Any:
        """Return a field's value, or a method to be called with the template's arguments."""
        if name in self.listing.methods:
            method = self.listing.methods[name]
            return lambda argument: method(self.item, argument)
        return self.listing.columns[name].value(self.item)

    def json_text(self) -> str:
        """Return all fields as a JSON object, sorted by name, escaped as Go's Marshal does."""
        import json

        from dray.cli.template.functions import escape_html

        fields = {name: self.listing.columns[name].value(self.item) for name in sorted(self.listing.columns)}
        return escape_html(json.dumps(fields, separators=(",", ":"), ensure_ascii=False))

    def marshal(self) -> Any:
        """Return all fields, for a JSON document that holds the row."""
        return {name: self.listing.columns[name].value(self.item) for name in sorted(self.listing.columns)}


class _Headers:
    """What a table template is executed on for its heading line."""

    type_name = "formatter.SubHeaderContext"

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def field(self, name: str) -> Any:
        if name in self._listing.methods:
            return lambda *words: (
                str(words[0]).rpartition(".")[2].replace("-", " ").replace("_", " ") if words else ""
            )
        column = self._listing.columns.get(name)
        from dray.cli.template.values import NO_VALUE

        return column.header if column is not None else NO_VALUE


class Listing:
    """A kind of list. `default` are the table's columns, `raw` the lines of the `raw` format as (label, field)."""

    def __init__(
        self,
        type_name: str,
        columns: Mapping[str, Column],
        default: Sequence[str],
        *,
        methods: Mapping[str, Callable[..., Any]] | None = None,
        raw: Sequence[tuple[str, str]] = (),
        quiet: str = "",
    ) -> None:
        self.type_name = type_name
        self.columns = columns
        self.default = default
        self.methods = methods or {}
        self.raw = raw
        self.quiet = quiet

    def render(
        self, items: Iterable[Any], form: str = "", *, quiet: bool = False, default: Sequence[str] = ()
    ) -> str:
        """Return the list as text: `form` is empty or `table`, `json`, `raw`, or a template."""
        if not form or form == "table":
            if quiet:
                return "".join(f"{self.columns[self.quiet].value(item)}\n" for item in items)
            return self._table(items, default or self.default)
        if form == "json":
            return "".join(Row(self, item).json_text() + "\n" for item in items)
        if form == "raw" and self.raw:
            return self._raw(items, quiet=quiet)
        if form.startswith("table"):
            return self._template_table(items, form[5:].strip())
        template = compile_format(form)
        return "".join(_executed(template, Row(self, item)) + "\n" for item in items)

    def _table(self, items: Iterable[Any], names: Sequence[str]) -> str:
        columns = [self.columns[name] for name in names]
        lines = ["\t".join([column.header for column in columns])]
        lines += ["\t".join([str(column.value(item)) for column in columns]) for item in items]
        return "\n".join(align(lines)) + "\n"

    def _raw(self, items: Iterable[Any], *, quiet: bool) -> str:
        if quiet:
            label, name = self.raw[0]
            return "".join(f"{label}: {self.columns[name].value(item)}\n" for item in items)
        out = []
        for item in items:
            out += [f"{label}: {self.columns[name].value(item)}".rstrip() + "\n" for label, name in self.raw]
            out.append("\n")
        return "".join(out)

    def _template_table(self, items: Iterable[Any], form: str) -> str:
        template = compile_format(form)
        passing: dict[str, Callable[..., Any]] = {
            name: (lambda value, *_: value)
            for name in ("json", "split", "join", "title", "lower", "upper", "truncate", "pad")
        }
        from dray.cli.template import Template

        text = Template(unescape(form), functions=passing).execute(_Headers(self)) + "\n"
        text += "".join(_executed(template, Row(self, item)) + "\n" for item in items)
        return "\n".join(align(text.split("\n")))


def unescape(form: str) -> str:
    r"""Replace the `\t` and `\n` a shell lets through."""
    return form.replace("\\t", "\t").replace("\\n", "\n")


def compile_format(form: str) -> Any:
    """Return the template of a `--format`; InvalidParameter in Docker's words."""
    from dray.cli.template import ParseError, Template

    try:
        return Template(unescape(form))
    except ParseError as error:
        raise InvalidParameter(f"failed to parse template: {error}") from None


def _executed(template: Any, row: Row) -> str:
    from dray.cli.template import TemplateError

    try:
        return str(template.execute(row))
    except TemplateError as error:
        raise InvalidParameter(f"failed to execute template: {error}") from None


def ellipsis(text: str, width: int) -> str:
    """Shorten a text to a number of columns, with `…` for what is left out (wide characters count two)."""
    if width <= 0:
        return ""
    if text.isascii():
        return text if len(text) <= width else text[: width - 1] + "…"
    import unicodedata

    sizes = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text]
    if len(text) <= width and sum(sizes) <= width:
        return text
    used, kept = 0, []
    for letter, size in zip(text, sizes, strict=True):
        if used + size > width - 1:
            break
        kept.append(letter)
        used += size
    return "".join(kept) + "…"


def short_id(text: str) -> str:
    """Return an ID without its algorithm, cut to twelve characters."""
    return text.rpartition(":")[2][:12]


def label_text(labels: Mapping[str, str] | None) -> str:
    """Return labels as `k=v,k=v`, sorted."""
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items()))


def timestamp(text: str) -> float:
    """Read an RFC 3339 time; returns seconds since 1970 (of Go's zero time, a large negative number)."""
    import calendar

    year, month, day = int(text[0:4]), int(text[5:7]), int(text[8:10])
    hour, minute, second = int(text[11:13]), int(text[14:16]), int(text[17:19])
    rest, fraction, offset = text[19:], "", 0
    if rest.startswith("."):
        end = 1
        while end < len(rest) and rest[end].isdigit():
            end += 1
        fraction, rest = rest[:end], rest[end:]
    if rest[:1] in ("+", "-"):
        offset = (int(rest[1:3]) * 60 + int(rest[4:6])) * (-60 if rest[0] == "-" else 60)
    if year < 1970:
        return -62135596800.0
    return calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0)) - offset + float(fraction or 0)


def ago(seconds: float) -> str:
    """Return how long ago a time was, in words."""
    import time

    from dray.base.units import human_duration

    return human_duration(time.time() - seconds) + " ago"


def local_time(seconds: float, nanoseconds: str = "") -> str:
    """Return a time as Go's String does: `2006-01-02 15:04:05.999999999 -0700 MST`."""
    import time

    moment = time.localtime(seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S", moment) + nanoseconds + time.strftime(" %z %Z", moment)
