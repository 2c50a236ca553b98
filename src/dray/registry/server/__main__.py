"""`python -m dray.registry.server serve|gc`: what `dray registry` runs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Any

from dray.base.errors import DrayError, InvalidParameter
from dray.registry.server.options import DEFAULT_ADDRESS, OPTIONS, Option, Settings, check_together


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    name = f"--{option.name}"
    if option.kind == "bool":
        parser.add_argument(name, action=argparse.BooleanOptionalAction, default=False, help=option.help)
    elif option.kind == "address":
        parser.add_argument(name, action="append", help=option.help)
    else:
        parser.add_argument(name, default=option.default, help=option.help)


def parse(arguments: Sequence[str]) -> tuple[str, Settings]:
    """Read the command line: the verb and its settings; InvalidParameter names what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m dray.registry.server", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("serve", "gc"):
        one = verbs.add_parser(verb, allow_abbrev=False)
        for option in OPTIONS:
            if verb == "serve" or option.gc:
                _add(one, option)
    found = vars(parser.parse_args(arguments))
    verb = found.pop("verb")
    values: dict[str, Any] = {option.name: option.default for option in OPTIONS}
    values |= {name.replace("_", "-"): value for name, value in found.items()}
    values["listen"] = values["listen"] or [DEFAULT_ADDRESS]
    for option in OPTIONS:
        given = values[option.name]
        for text in given if isinstance(given, list) else [given]:
            if isinstance(text, str) and text:
                try:
                    option.check(text)
                except InvalidParameter as error:
                    raise InvalidParameter(f"--{option.name}: {error}") from None
    return verb, check_together(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb; the exit status is 1 if it could not be done."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        verb, settings = parse(sys.argv[1:] if arguments is None else arguments)
        from dray.registry.server.serve import collect_now, serve

        if verb == "serve":
            return asyncio.run(serve(settings))
        done = collect_now(settings)
        print(done)
        return 1 if done.startswith("failed") else 0
    except DrayError as error:
        print(f"dray registry: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
