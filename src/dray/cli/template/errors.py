"""What can be wrong with a template: its text, or its meeting a value."""

from __future__ import annotations

from dray.base.errors import InvalidParameter


class TemplateError(InvalidParameter):
    """The template cannot be executed on this value."""


class ParseError(TemplateError):
    """The template's text is not a template."""
