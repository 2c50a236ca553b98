"""The errors of the distribution protocol: a code, a status, a message (distribution-spec 1.1, Error Codes).

The body of a refused request is `{"errors": [{"code", "message", "detail"}]}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# code -> (status, message)
CODES: dict[str, tuple[int, str]] = {
    "BLOB_UNKNOWN": (404, "blob unknown to registry"),
    "BLOB_UPLOAD_INVALID": (400, "blob upload invalid"),
    "BLOB_UPLOAD_UNKNOWN": (404, "blob upload unknown to registry"),
    "DIGEST_INVALID": (400, "provided digest did not match uploaded content"),
    "MANIFEST_BLOB_UNKNOWN": (404, "manifest references a manifest or blob unknown to registry"),
    "MANIFEST_INVALID": (400, "manifest invalid"),
    "MANIFEST_UNKNOWN": (404, "manifest unknown to registry"),
    "NAME_INVALID": (400, "invalid repository name"),
    "NAME_UNKNOWN": (404, "repository name not known to registry"),
    "SIZE_INVALID": (400, "provided length did not match content length"),
    "UNAUTHORIZED": (401, "authentication required"),
    "DENIED": (403, "requested access to the resource is denied"),
    "UNSUPPORTED": (405, "the operation is unsupported"),
    "TOOMANYREQUESTS": (429, "too many requests"),
    # Beyond the specification, as its registries name them.
    "RANGE_INVALID": (416, "the range cannot be served"),
    "PAGINATION_NUMBER_INVALID": (400, "invalid number of results requested"),
    "UNAVAILABLE": (503, "service unavailable"),
    "UNKNOWN": (500, "unknown error"),
}


class Refusal(Exception):
    """A request that is answered with an error. `headers` are added to the answer."""

    def __init__(
        self,
        code: str,
        detail: Any = None,
        *,
        status: int = 0,
        message: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        usual_status, usual_message = CODES[code]
        super().__init__(message or usual_message)
        self.code = code
        self.status = status or usual_status
        self.detail = detail
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        """The answer's JSON body."""
        error: dict[str, Any] = {"code": self.code, "message": str(self)}
        if self.detail is not None:
            error["detail"] = self.detail
        return json.dumps({"errors": [error]}).encode()
