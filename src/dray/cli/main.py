"""The entry point of `dray`: global options, the verb, and what becomes of errors.

Only the module of the verb in use is imported. Exit status: the verb's own; 125 for a command line that does not
fit (and for `run` when the engine fails), 1 for other errors, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys

from dray.base.errors import DrayError
from dray.cli.app import NAME, App
from dray.cli.catalog import GROUPS, Verb, find
from dray.cli.command import Command, StatusError, count_problem
from dray.cli.flags import Flag, FlagError, HelpAsked, Values, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LEVELS = ("debug", "info", "warn", "error", "fatal", "panic", "trace", "warning")


def _level(text: str) -> str:
    if text.lower() not in _LEVELS:
        raise StatusError(1, f"Unable to parse logging level: {text}")
    return text


GLOBAL_FLAGS = (
    Flag("config", "string", "Folder of the client's configuration (default ~/.docker)"),
    Flag(
        "context",
        "string",
        "Context that names the daemon (overrides DOCKER_HOST and the current context)",
        short="c",
    ),
    Flag("debug", "bool", "Show where an error came from", short="D"),
    Flag("host", "list", "Daemon address: unix:///path, tcp://host:port or ssh://user@host", short="H"),
    Flag("log-level", "string", "Least severity of messages shown", short="l", default="info", check=_level),
    Flag("tls", "bool", "Use TLS (--tlsverify implies it)"),
    Flag("tlscacert", "string", "Trust only certificates that this CA signed (default ca.pem beside config.json)"),
    Flag("tlscert", "string", "The client's certificate (default cert.pem beside config.json)"),
    Flag("tlskey", "string", "The client's key (default key.pem beside config.json)"),
    Flag("tlsverify", "bool", "Use TLS and verify the daemon's certificate"),
    Flag("version", "bool", "Print the version and quit", short="v"),
)


def _configure(app: App, values: Values) -> None:
    app.hosts = values["host"]
    app.context = values["context"]
    app.debug = values["debug"]
    app.config_dir = values["config"]
    app.tls = values["tls"]
    app.tls_verify = values["tlsverify"]
    app.tls_ca = values["tlscacert"]
    app.tls_cert = values["tlscert"]
    app.tls_key = values["tlskey"]


def load_command(verb: Verb) -> Command:
    """Import a verb's module and return its command."""
    module = __import__(f"dray.cli.commands.{verb.module}", fromlist=["COMMANDS"])
    commands: dict[str, Command] = module.COMMANDS
    return commands[verb.path]


def _unknown(words: list[str], group: str) -> int:
    """Report a verb that does not exist, with its nearest neighbours."""
    import difflib

    from dray.cli.catalog import VERBS

    path = f"{group} {words[1]}" if group else words[0]
    known = [
        verb.path.partition(" ")[2] if group else verb.top
        for verb in VERBS
        if (verb.path.startswith(group + " ") if group else verb.top)
    ] + ([] if group else list(GROUPS))
    text = f"{NAME}: unknown command: {NAME} {path}\n"
    if near := difflib.get_close_matches(path.split()[-1], known, n=2, cutoff=0.75):
        text += "\nDid you mean " + " or ".join(f"'{NAME} {(group + ' ' + one).strip()}'" for one in near) + "?\n"
    if group:
        text += f"\nUsage:  {NAME} {group}\n"
    sys.stderr.write(f"{text}\nRun '{(NAME + ' ' + group).strip()} --help' for more information\n")
    return 1


def _help(words: list[str]) -> int:
    from dray.cli import help as pages

    if not words:
        sys.stdout.write(pages.for_top(GLOBAL_FLAGS))
        return 0
    verb, path, taken = find(words)
    if verb is not None:
        sys.stdout.write(pages.for_verb(verb, path, load_command(verb)))
        return 0
    if taken and len(words) == 1:
        sys.stdout.write(pages.for_group(path))
        return 0
    sys.stderr.write(f"unknown help topic: {' '.join(words)}\n")
    return 1


def _run_group(words: list[str], group: str) -> int:
    """A group without a verb: its help, or what is wrong with the rest."""
    if len(words) > 1 and not words[1].startswith("-"):
        return _unknown(words, group)
    try:
        parse((), words[1:])
    except HelpAsked:
        pass
    except FlagError as error:
        sys.stderr.write(
            f"{error}\n\nUsage:  {NAME} {group}\n\nRun '{NAME} {group} --help' for more information\n"
        )
        return 125
    return _help([group])


def _run_verb(app: App, verb: Verb, path: str, words: list[str]) -> int:
    command = load_command(verb)
    app.path = path
    usage = f"{NAME} {path} {command.usage}".rstrip()
    try:
        values, arguments = parse(command.flags, words, interspersed=command.interspersed)
    except HelpAsked as asked:
        if asked.short:
            sys.stderr.write("Flag shorthand -h has been deprecated, use --help\n")
        return _help(path.split())
    except FlagError as error:
        sys.stderr.write(f"{error}\n\nUsage:  {usage}\n\nRun '{NAME} {path} --help' for more information\n")
        return 125
    problem = count_problem(command, len(arguments))
    if problem is not None:
        verb_word = "See" if problem.startswith("requires at least") else "Run"
        sys.stderr.write(
            f"{NAME}: '{NAME} {path}' {problem}\n\nUsage:  {usage}\n\n"
            f"{verb_word} '{NAME} {path} --help' for more information\n"
        )
        return 1
    return command.run(app, values, arguments)


def _dispatch(app: App, words: list[str]) -> int:
    try:
        values, rest = parse(GLOBAL_FLAGS, words, interspersed=False)
    except HelpAsked as asked:
        if asked.short:
            sys.stderr.write("Flag shorthand -h has been deprecated, use --help\n")
        return _help([])
    except FlagError as error:
        sys.stderr.write(
            f"{error}\n\nUsage:  {NAME} [OPTIONS] COMMAND [ARG...]\n\nRun '{NAME} --help' for more information\n"
        )
        return 125
    _configure(app, values)
    if values["version"]:
        from dray import __version__

        sys.stdout.write(f"Dray version {__version__}\n")
        return 0
    if not rest:
        return _help([])
    if rest[0] == "help":
        return _help(rest[1:])
    verb, path, taken = find(rest)
    if verb is not None:
        return _run_verb(app, verb, path, rest[taken:])
    return _run_group(rest, path) if taken else _unknown(rest, "")


def _report(app: App, error: DrayError) -> int:
    from dray.client.errors import ConnectError

    if app.debug:
        import traceback

        traceback.print_exc()
    code = error.code if isinstance(error, StatusError) else 1
    if str(error):
        app.error(str(error))
    if isinstance(error, ConnectError):
        from dray.cli.hints import connect_hint

        if hint := connect_hint(error):
            app.error(hint)
    return code


def _guarded(app: App, action: Callable[[], int]) -> int:
    """Run the verb; turn what it raises into a message and an exit status."""
    try:
        code = action()
        sys.stdout.flush()
        return code
    except DrayError as error:
        return _report(app, error)
    except BrokenPipeError:
        # Whoever read our output is gone. Point stdout elsewhere, so that the interpreter's last flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        app.error(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 1
    finally:
        app.close()


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    app = App()
    words = sys.argv[1:] if argv is None else argv
    return _guarded(app, lambda: _dispatch(app, words))


if __name__ == "__main__":
    sys.exit(main())
