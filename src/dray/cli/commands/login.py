"""`dray login` and `dray logout`."""

from __future__ import annotations

import sys

from dray.base.errors import DrayError
from dray.cli.command import Command, Failure
from dray.cli.credentials import INDEX_SERVER, Credentials, auth_key, hostname
from dray.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App
    from dray.cli.flags import Values

_STORED = (
    "WARNING! Your credentials are stored unencrypted in '{path}'.\n"
    "Configure a credential helper to remove this warning (credsStore or credHelpers in that file)."
)


def _server(arguments: list[str]) -> str:
    if not arguments:
        return INDEX_SERVER
    name = arguments[0]
    return INDEX_SERVER if name == INDEX_SERVER else auth_key(hostname(name))


def _ask_user(known: str) -> str:
    import os

    if not os.isatty(0):
        raise Failure("Error: Cannot perform an interactive login from a non TTY device")
    sys.stdout.write(f"Username ({known}): " if known else "Username: ")
    sys.stdout.flush()
    return sys.stdin.readline().strip() or known


def _password(app: App, values: Values) -> str:
    if values["password-stdin"]:
        if values["password"]:
            raise Failure("conflicting options: cannot specify both --password and --password-stdin")
        if not values["username"]:
            raise Failure("the --password-stdin option requires --username to be set")
        return sys.stdin.read().rstrip("\r\n")
    if values["password"]:
        app.error("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    return str(values["password"])


def run_login(app: App, values: Values, arguments: list[str]) -> int:
    """Check credentials with the daemon and keep them."""
    server = _server(arguments)
    store = Credentials(app.config)
    password, user = _password(app, values), values["username"]
    known = {} if user and password else store.get(server)
    if known and not user and not password:
        try:
            answer = app.client.system.login(known)
        except DrayError:
            app.error("Stored credentials invalid or expired")
        else:
            app.line("Authenticating with existing credentials...")
            app.line(answer.get("Status") or "Login Succeeded")
            return 0
    user = user or _ask_user(known.get("username", ""))
    if not user:
        raise Failure("Error: Non-null Username Required")
    if not password:
        import getpass
        import os

        if not os.isatty(0):
            raise Failure("Error: Cannot perform an interactive login from a non TTY device")
        password = getpass.getpass("Password: ")
    if not password:
        raise Failure("Error: Password Required")
    auth = {"username": user, "password": password, "serveraddress": server}
    answer = app.client.system.login(auth) or {}
    if answer.get("IdentityToken"):
        auth = {"username": user, "identitytoken": answer["IdentityToken"], "serveraddress": server}
    if not store.store(auth):
        app.error("\n" + _STORED.format(path=app.config.path) + "\n")
    app.line(answer.get("Status") or "Login Succeeded")
    return 0


def run_logout(app: App, values: Values, arguments: list[str]) -> int:
    """Forget credentials."""
    server = _server(arguments)
    shown = hostname(server) if server != INDEX_SERVER else INDEX_SERVER
    app.line(f"Removing login credentials for {shown}")
    try:
        Credentials(app.config).erase(server)
    except DrayError as error:
        raise Failure(f"could not erase credentials for {shown}: {error}") from None
    return 0


COMMANDS = {
    "login": Command(
        "[OPTIONS] [SERVER]",
        run_login,
        flags=(
            Flag("password", "string", "Password or token (better: --password-stdin)", short="p"),
            Flag("password-stdin", "bool", "Read the password from standard input"),
            Flag("username", "string", "User name", short="u"),
        ),
        args=(0, 1),
    ),
    "logout": Command("[SERVER]", run_logout, args=(0, 1)),
}
