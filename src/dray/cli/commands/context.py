"""`dray context`: named daemon addresses, shared with docker."""

from __future__ import annotations

import io
import json
import os
import sys

from dray.base.errors import InvalidParameter
from dray.cli.command import MANY, Command, Failure
from dray.cli.contexts import TLS_FILES, Context, Store, check_name
from dray.cli.endpoint import DEFAULT_CONTEXT, context_name, default_host, default_tls
from dray.cli.flags import FALSE, TRUE, Flag, parse_csv
from dray.cli.output import Column, Listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

_DEFAULT_DESCRIPTION = "Current DOCKER_HOST based configuration"
_MAX_ARCHIVE = 10 << 20


def _store(app: App) -> Store:
    return Store(app.config.folder)


def _default_context(app: App) -> dict[str, Any]:
    tls = default_tls(app)
    endpoint = {"Host": default_host(app), "SkipTLSVerify": tls is not None and not tls.verify}
    return {"Name": DEFAULT_CONTEXT, "Metadata": {}, "Endpoints": {"docker": endpoint}}


def _listing() -> Listing:
    columns = {
        "Name": Column("NAME", lambda one: one["Name"]),
        "Description": Column("DESCRIPTION", lambda one: one["Description"]),
        "DockerEndpoint": Column("DOCKER ENDPOINT", lambda one: one["DockerEndpoint"]),
        "Error": Column("ERROR", lambda one: one["Error"]),
        "Current": Column("CURRENT", lambda one: one["Current"]),
        "_Marked": Column("NAME", lambda one: one["Name"] + (" *" if one["Current"] else "")),
    }
    return Listing(
        "*formatter.clientContextContext",
        columns,
        ("_Marked", "Description", "DockerEndpoint", "Error"),
        quiet="Name",
    )


def run_ls(app: App, values: Values, arguments: list[str]) -> int:
    """List contexts."""
    current = context_name(app)
    rows = [
        {
            "Name": DEFAULT_CONTEXT,
            "Description": _DEFAULT_DESCRIPTION,
            "DockerEndpoint": default_host(app),
            "Error": "",
        }
    ]
    store = _store(app)
    for name in store.names():
        context = store.load(name)
        rows.append(
            {"Name": name, "Description": context.description, "DockerEndpoint": context.host, "Error": ""}
        )
    if current not in [row["Name"] for row in rows]:
        rows.append(
            {
                "Name": current,
                "Description": "",
                "DockerEndpoint": "",
                "Error": f'context "{current}": context not found',
            }
        )
    shown = [{**row, "Current": row["Name"] == current} for row in sorted(rows, key=lambda row: row["Name"])]
    listing = _listing()
    if values["format"]:
        listing.columns = {name: column for name, column in listing.columns.items() if name != "_Marked"}
    app.out(
        listing.render(
            shown,
            "" if values["format"] == "table" else values["format"],
            quiet=values["quiet"],
            default=("Name",) if values["format"] == "table" else (),
        )
    )
    if os.environ.get("DOCKER_HOST") and not values["quiet"]:
        app.error(
            "Warning: DOCKER_HOST environment variable overrides the active context. To use a context, either set the "
            "global --context flag, or unset DOCKER_HOST environment variable."
        )
    return 0


def _endpoint(given: dict[str, str], store: Store, app: App) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the endpoint that `--docker` fields describe, and its TLS material."""
    unknown = set(given) - {"host", "ca", "cert", "key", "skip-tls-verify", "from"}
    if unknown:
        raise InvalidParameter(f"unrecognized config key: {sorted(unknown)[0]}")
    if given.get("from"):
        return _copy(given["from"], store, app)
    skip = given.get("skip-tls-verify", "")
    if skip and skip not in TRUE | FALSE:
        raise InvalidParameter(
            f'unable to create docker endpoint config: strconv.ParseBool: parsing "{skip}": invalid syntax'
        )
    tls: dict[str, bytes] = {}
    for key in TLS_FILES:
        if given.get(key):
            with open(given[key], "rb") as file:
                tls[key] = file.read()
    from dray.client import address

    host = given.get("host", "")
    if host:
        try:
            address.parse(host)
        except InvalidParameter as error:
            raise InvalidParameter(
                f"unable to create docker endpoint config: invalid docker endpoint options: {error}"
            ) from None
    return {"Host": host, "SkipTLSVerify": skip in TRUE}, tls


def _copy(name: str, store: Store, app: App) -> tuple[dict[str, Any], dict[str, bytes]]:
    if name == DEFAULT_CONTEXT:
        endpoint: dict[str, Any] = _default_context(app)["Endpoints"]["docker"]
        tls = default_tls(app)
        paths = (
            {key: path for key, path in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)) if path}
            if tls
            else {}
        )
    else:
        context = store.load(name)
        endpoint, paths = dict(context.endpoint), context.tls_paths()
    material = {}
    for key, path in paths.items():
        with open(path, "rb") as file:
            material[key] = file.read()
    return endpoint, material


def _fields(values: Values) -> dict[str, str]:
    return dict(field.partition("=")[::2] for text in values["docker"] for field in parse_csv(text))


def run_create(app: App, values: Values, arguments: list[str]) -> int:
    """Create a context."""
    name, store = arguments[0], _store(app)
    check_name(name)
    if store.exists(name):
        raise Failure(f'context "{name}" already exists')
    description = values["description"]
    if values["from"] or not values["docker"]:
        source = values["from"] or context_name(app)
        endpoint, tls = _copy(source, store, app)
        if not description and source != DEFAULT_CONTEXT:
            description = store.load(source).description
        if values["docker"]:
            raise Failure("cannot use --docker flag when --from is set")
    else:
        endpoint, tls = _endpoint(_fields(values), store, app)
    metadata = {"Description": description} if description else {}
    store.save(name, {"Name": name, "Metadata": metadata, "Endpoints": {"docker": endpoint}}, tls)
    app.line(name)
    app.error(f'Successfully created context "{name}"')
    return 0


def run_update(app: App, values: Values, arguments: list[str]) -> int:
    """Change a context."""
    name, store = arguments[0], _store(app)
    check_name(name)
    meta = store.load(name).meta
    if values["description"]:
        meta["Metadata"] = {**(meta.get("Metadata") or {}), "Description": values["description"]}
    tls = None
    if values["docker"]:
        endpoint, tls = _endpoint(_fields(values), store, app)
        meta["Endpoints"] = {**(meta.get("Endpoints") or {}), "docker": endpoint}
    store.save(name, meta, tls)
    app.line(name)
    app.error(f'Successfully updated context "{name}"')
    return 0


def run_use(app: App, values: Values, arguments: list[str]) -> int:
    """Set the current context."""
    name = arguments[0]
    if name != DEFAULT_CONTEXT:
        _store(app).load(name)
    if name == DEFAULT_CONTEXT:
        app.config.data.pop("currentContext", None)
    else:
        app.config.data["currentContext"] = name
    app.config.save()
    app.line(name)
    app.error(f'Current context is now "{name}"')
    if name != DEFAULT_CONTEXT and os.environ.get("DOCKER_HOST"):
        app.error(
            f"Warning: DOCKER_HOST environment variable overrides the active context. To use {json.dumps(name)}, either "
            "set the global --context flag, or unset DOCKER_HOST environment variable."
        )
    return 0


def run_show(app: App, values: Values, arguments: list[str]) -> int:
    """Print the current context's name."""
    app.line(context_name(app))
    return 0


def _describe(context: Context) -> dict[str, Any]:
    files = [TLS_FILES[key] for key in context.tls_paths()]
    return {
        "Name": context.name,
        "Metadata": context.meta.get("Metadata") or {},
        "Endpoints": {
            "docker": {"Host": context.host, "SkipTLSVerify": bool(context.endpoint.get("SkipTLSVerify"))}
        },
        "TLSMaterial": {"docker": files} if files else {},
        "Storage": {"MetadataPath": context.meta_dir, "TLSPath": context.tls_dir},
    }


def run_inspect(app: App, values: Values, arguments: list[str]) -> int:
    """Print contexts in full."""
    from dray.cli.commands.inspect import show

    def find(name: str) -> tuple[str, Any]:
        if name == DEFAULT_CONTEXT:
            memory = {"MetadataPath": "<IN MEMORY>", "TLSPath": "<IN MEMORY>"}
            return "context", {**_default_context(app), "TLSMaterial": {}, "Storage": memory}
        return "context", _describe(_store(app).load(name))

    return show(app, arguments or [context_name(app)], values["format"], find, escape=True)


def run_rm(app: App, values: Values, arguments: list[str]) -> int:
    """Remove contexts."""
    errors = []
    current = context_name(app)
    for name in arguments:
        if name == DEFAULT_CONTEXT:
            errors.append('context "default" cannot be removed')
        elif not _store(app).exists(name):
            if not values["force"]:
                errors.append(f'context "{name}" does not exist')
        elif name == current and not values["force"]:
            errors.append(f'context "{name}" is in use, set -f flag to force remove')
        else:
            if app.config.text("currentContext") == name:
                del app.config.data["currentContext"]
                app.config.save()
            _store(app).remove(name)
            app.line(name)
    if errors:
        raise Failure("\n".join(errors))
    return 0


def run_export(app: App, values: Values, arguments: list[str]) -> int:
    """Write a context to a tar archive: meta.json, and tls/docker/*.pem."""
    import tarfile

    name = arguments[0]
    target = arguments[1] if len(arguments) > 1 else f"{name}.dockercontext"
    context = _store(app).load(name)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        files = {"meta.json": json.dumps(context.meta, separators=(",", ":")).encode()}
        for key, path in context.tls_paths().items():
            with open(path, "rb") as file:
                files[f"tls/docker/{TLS_FILES[key]}"] = file.read()
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o600 if path.startswith("tls/") else 0o644
            archive.addfile(member, io.BytesIO(data))
    if target == "-":
        if sys.stdout.isatty():
            raise Failure("cowardly refusing to export to a terminal, specify a file path")
        sys.stdout.buffer.write(buffer.getvalue())
        return 0
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Failure(f"open {target}: file exists") from None
    with os.fdopen(descriptor, "wb") as sink:
        sink.write(buffer.getvalue())
    app.error(f'Written file "{target}"')
    return 0


def run_import(app: App, values: Values, arguments: list[str]) -> int:
    """Read a context from an archive."""
    name, source = arguments
    check_name(name)
    store = _store(app)
    if store.exists(name):
        raise Failure(f'context "{name}" already exists')
    if source == "-":
        data = sys.stdin.buffer.read(_MAX_ARCHIVE + 1)
    else:
        with open(source, "rb") as file:
            data = file.read(_MAX_ARCHIVE + 1)
    if len(data) > _MAX_ARCHIVE:
        raise Failure("the archive is too large for a context")
    files = _unpack(data)
    if "meta.json" not in files:
        raise Failure("invalid context: no metadata found")
    meta = {**json.loads(files["meta.json"]), "Name": name}
    tls = {key: files[f"tls/docker/{file}"] for key, file in TLS_FILES.items() if f"tls/docker/{file}" in files}
    store.save(name, meta, tls)
    app.line(name)
    app.error(f'Successfully imported context "{name}"')
    return 0


def _unpack(data: bytes) -> dict[str, bytes]:
    """Return an archive's files by name, tar or zip; nothing is written."""
    import tarfile
    import zipfile

    try:
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as zipped:
                return {
                    item.filename: zipped.read(item)
                    for item in zipped.infolist()
                    if item.file_size <= _MAX_ARCHIVE
                }
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            found = {}
            for member in archive.getmembers():
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    found[member.name] = stream.read()
            return found
    except (tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
        raise InvalidParameter(f"invalid context archive: {error}") from error


_DESCRIPTION = Flag("description", "string", "What the context is for")
_DOCKER = Flag(
    "docker", "list", "The daemon's endpoint (host=…,ca=…,cert=…,key=…,skip-tls-verify=…)", label="stringToString"
)

COMMANDS = {
    "context create": Command(
        "[OPTIONS] CONTEXT",
        run_create,
        flags=(_DESCRIPTION, _DOCKER, Flag("from", "string", "Copy this context")),
        args=(1, 1),
    ),
    "context update": Command("[OPTIONS] CONTEXT", run_update, flags=(_DESCRIPTION, _DOCKER), args=(1, 1)),
    "context use": Command("CONTEXT", run_use, args=(1, 1)),
    "context show": Command("", run_show),
    "context ls": Command(
        "[OPTIONS]",
        run_ls,
        flags=(
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("quiet", "bool", "Print names only", short="q"),
        ),
    ),
    "context inspect": Command(
        "[OPTIONS] [CONTEXT] [CONTEXT...]",
        run_inspect,
        flags=(Flag("format", "string", "Print with a template: 'json' or a Go template", short="f"),),
        args=(0, MANY),
    ),
    "context rm": Command(
        "CONTEXT [CONTEXT...]",
        run_rm,
        flags=(Flag("force", "bool", "Remove it even if it is in use", short="f"),),
        args=(1, MANY),
    ),
    "context export": Command("[OPTIONS] CONTEXT [FILE|-]", run_export, args=(1, 2)),
    "context import": Command("CONTEXT FILE|-", run_import, args=(2, 2)),
}
