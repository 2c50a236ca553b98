"""What registries and their networks answer, in Docker's words and in this engine's kinds.

A registry's error body is `{"errors": [{"code", "message", "detail"}]}` (distribution-spec, Error Codes); Docker writes
each as `code in lower case: message`. Connection errors read as Go's `net/http` has them, since that is what users
search for, with what to do behind them.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from dray.base.errors import DrayError, Forbidden, InvalidParameter, NotFound, Unauthorized, Unavailable
from dray.base.reference import Reference
from dray.registry.challenges import Challenge
from dray.registry.model import Unreachable
from dray.registry.proxies import redacted

ERROR_LIMIT = 64 << 10  # bytes of an error body that are read
_SHOWN = 1024  # characters of one message that are passed on
_WORDS = {"UNAUTHORIZED": "authentication required", "DENIED": "requested access to the resource is denied"}
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"})
_MISSING = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "BLOB_UPLOAD_UNKNOWN"})


class PlainAnswer(Unreachable):
    """What listens there speaks, but not TLS."""


@dataclass(frozen=True, slots=True)
class RegistryError:
    """One entry of an error body."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code.replace('_', ' ').lower()}: {self.message}"


def status_line(status: int) -> str:
    """Return `404 Not Found`."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def parse_errors(body: bytes) -> list[RegistryError]:
    """Read an error body; empty if it is not one. Some token services say `details` or `message` alone."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(document, dict):
        return []
    found = []
    listed: Any = document.get("errors")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("code"), str):
            message = entry.get("message")
            if not isinstance(message, str) or not message:
                message = _WORDS.get(entry["code"], "unknown error")
            found.append(RegistryError(_clean(entry["code"]), _clean(message)))
    if not found:
        for key in ("details", "message", "error_description", "error"):
            if isinstance(document.get(key), str):
                return [RegistryError("UNKNOWN", _clean(document[key]))]
    return found[:16]


def _clean(text: str) -> str:
    """Return a foreign text fit for a terminal: short, one line, no control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:_SHOWN])


def refusal(
    status: int,
    body: bytes,
    challenges: Sequence[Challenge],
    *,
    name: Reference,
    request: str,
    push: bool = False,
) -> DrayError:
    """Return the error for a status of 400 and more. `name` is the reference that was asked for; `request` is
    `GET https://…`, for the messages that need it."""
    if status >= 500 or status == 429:
        errors = parse_errors(body)
        said = f": {errors[0]}" if errors else ""
        if status == 429:
            return Unavailable(f"toomanyrequests: {errors[0].message if errors else status_line(status)}")
        return Unavailable(f"{request}: received unexpected HTTP status: {status_line(status)}{said}")
    errors = [*_from_challenges(challenges), *parse_errors(body)]
    if not errors:
        if status == 401:
            errors = [RegistryError("UNAUTHORIZED", _WORDS["UNAUTHORIZED"])]
        elif status == 403:
            errors = [RegistryError("DENIED", _WORDS["DENIED"])]
        elif status == 404:
            return NotFound(f"{request}: the registry answered {status_line(status)}: is there a registry at all?")
        else:
            return InvalidParameter(f"{request}: received unexpected HTTP status: {status_line(status)}")
    first = errors[0]
    words = str(first) if len(errors) == 1 else "errors:\n" + "\n".join(map(str, errors)) + "\n"
    if first.code == "DENIED" and not push:
        return NotFound(
            f"pull access denied for {name.familiar_name}, repository does not exist or may require "
            f"'docker login': {first}"
        )
    if first.code == "MANIFEST_UNKNOWN":
        return NotFound(f"manifest for {name.familiar} not found: {first}")
    if first.code == "NAME_UNKNOWN":
        return NotFound(f"repository {name.familiar_name} not found: {first}")
    if first.code in _MISSING or status == 404:
        return NotFound(words)
    if first.code == "UNAUTHORIZED" or status == 401:
        return Unauthorized(f"{request}: {words}" if not push else words)
    if first.code == "DENIED" or status == 403:
        return Forbidden(words)
    return InvalidParameter(words)


def _from_challenges(challenges: Sequence[Challenge]) -> list[RegistryError]:
    """Read what a Bearer challenge says of the token it refused (RFC 6750, section 3.1)."""
    codes = {"invalid_token": "UNAUTHORIZED", "insufficient_scope": "DENIED"}
    for challenge in challenges:
        code = codes.get(challenge.parameters.get("error", "")) if challenge.scheme == "bearer" else None
        if code:
            return [RegistryError(code, _clean(challenge.parameters.get("error_description") or _WORDS[code]))]
    return []


def tls_failure(error: ssl.SSLError, host: str, asked: str) -> Unreachable:
    """Return the error for a handshake that failed, as Go words it, with what to do."""
    if (error.reason or "").upper() in _NO_TLS:
        return PlainAnswer(
            f"{asked}: http: server gave HTTP response to HTTPS client: list {host} in insecure-registries "
            "if that is meant"
        )
    return Unreachable(f"{asked}: {_tls_words(error, host)}")


def _tls_words(error: ssl.SSLError, host: str) -> str:
    reason = (error.reason or "").upper()
    if isinstance(error, ssl.SSLCertVerificationError):
        folder = f"/etc/docker/certs.d/{host}"
        trust = f"put its authority's certificate in {folder}/ca.crt"
        words, code = error.verify_message or str(error), error.verify_code
        if code in (18, 19, 20, 21):  # X509_V_ERR_*: self-signed, or no path to a root that is trusted here
            return f"tls: failed to verify certificate: x509: certificate signed by unknown authority: {trust}"
        if code in (9, 10):
            return "tls: failed to verify certificate: x509: certificate has expired or is not yet valid"
        if code in (62, 64):
            return f"tls: failed to verify certificate: x509: certificate is not valid for {host}: {words}"
        return f"tls: failed to verify certificate: x509: {words}"
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason or "BAD_CERTIFICATE" in reason:
        return (
            f"remote error: tls: {reason.replace('_', ' ').lower()}: if the registry wants a client certificate, "
            f"put it in /etc/docker/certs.d/{host}/client.cert and client.key"
        )
    return f"tls: {error.reason or error}"


def go_request(method: str, url: str) -> str:
    """Return `Get "https://…"`, as Go's http client begins its errors."""
    return f'{method.capitalize()} "{redacted(url)}"'
