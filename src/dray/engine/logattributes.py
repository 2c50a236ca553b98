"""What is written beside every record of a container's log: the log options `labels`, `env` and `tag`.

Source: Docker's documentation of the json-file driver and of log tags.
"""

from __future__ import annotations

import re

from dray.base.errors import InvalidParameter
from dray.engine.model import ContainerRecord

_FIELD = re.compile(r"\{\{\s*\.(\w+)\s*\}\}", re.ASCII)


def attributes(record: ContainerRecord) -> dict[str, str]:
    """Return the attributes that the container's log options ask for."""
    options, config = record.host_config.log_config.config, record.config
    labels = config.labels or {}
    environment = dict(entry.partition("=")[::2] for entry in config.env or [])
    found: dict[str, str] = {}
    for source, option in ((labels, "labels"), (environment, "env")):
        wanted = {name.strip() for name in options.get(option, "").split(",")}
        pattern = re.compile(options.get(f"{option}-regex", "") or r"(?!)")
        found |= {name: value for name, value in source.items() if name in wanted or pattern.search(name)}
    if options.get("tag"):
        found["tag"] = _tag(options["tag"], record)
    return found


def _tag(template: str, record: ContainerRecord) -> str:
    values = {
        "ID": record.id[:12],
        "FullID": record.id,
        "Name": record.name,
        "ImageName": record.image_ref,
        "ImageID": record.image_id.removeprefix("sha256:")[:12],
        "ImageFullID": record.image_id,
        "DaemonName": "dray",
    }
    unknown = sorted(set(_FIELD.findall(template)) - set(values))
    rest = _FIELD.sub("", template)
    if unknown or "{{" in rest or "}}" in rest:
        raise InvalidParameter(
            f"log-opt tag={template!r}: only the fields {', '.join('{{.' + name + '}}' for name in values)} are known"
        )
    return _FIELD.sub(lambda match: values[match[1]], template)
