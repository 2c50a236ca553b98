"""The decoders of what a shim is asked; made once, in the zygote."""

from __future__ import annotations

from typing import Any

import msgspec

from dray.shim.model import AttachRequest, ExecCreate, TaskCreate


class Create(msgspec.Struct, frozen=True):
    """The first request."""

    task: TaskCreate
    attachments: list[AttachRequest] = []


class Request(msgspec.Struct, frozen=True):
    """The envelope of a request; `params` is decoded by its method."""

    id: int
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


request = msgspec.json.Decoder(Request)
create = msgspec.json.Decoder(Create)
attach = msgspec.json.Decoder(AttachRequest)
exec_create = msgspec.json.Decoder(ExecCreate)
plain = msgspec.json.Decoder(dict[str, Any])
