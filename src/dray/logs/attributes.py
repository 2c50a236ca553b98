"""Which of a container's labels and variables, and what tag, its log records carry (`attrs`, `logs --details`).

Options `labels`, `labels-regex`, `env`, `env-regex` and `tag` (moby daemon/logger/loginfo.go and loggerutils/log_tag.go).
A tag is a Go template; of the language, fields are understood: `{{.Name}}/{{.ID}}`. Anything more is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dray.base.errors import InvalidParameter

TAG_FIELDS = (
    "Command",
    "DaemonName",
    "FullID",
    "ID",
    "ImageFullID",
    "ImageID",
    "ImageName",
    "Name",
)
_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def resolve(
    options: Mapping[str, str], *, labels: Mapping[str, str], env: Sequence[str], fields: Mapping[str, str]
) -> dict[str, str]:
    """Return the attributes that `options` ask for.

    labels, env: the container's (`NAME=value`); fields: the values of TAG_FIELDS
    """
    found = _chosen(labels, options.get("labels", ""), options.get("labels-regex", ""))
    variables = dict(entry.partition("=")[::2] for entry in env if "=" in entry)
    found |= _chosen(variables, options.get("env", ""), options.get("env-regex", ""))
    if options.get("tag"):
        found["tag"] = render_tag(options["tag"], fields)
    return found


def _chosen(values: Mapping[str, str], names: str, pattern: str) -> dict[str, str]:
    found = {name: values[name] for name in names.split(",") if name in values}
    if pattern:
        matcher = re.compile(pattern)
        found |= {name: value for name, value in values.items() if matcher.search(name)}
    return found


def render_tag(template: str, fields: Mapping[str, str]) -> str:
    """Fill in a tag's template; InvalidParameter for what is not understood."""

    def value(match: re.Match[str]) -> str:
        name = match[1].strip().removeprefix(".")
        if name not in TAG_FIELDS:
            raise InvalidParameter(
                f"failed to initialize logging driver: tag {template!r}: only fields are understood: "
                + ", ".join("{{." + known + "}}" for known in TAG_FIELDS)
            )
        return fields.get(name, "")

    return _ACTION.sub(value, template)
