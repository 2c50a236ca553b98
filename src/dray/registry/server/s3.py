"""Objects in a bucket of an S3-compatible store (boto3; `dray[s3]`).

    <prefix><key>                    an object
    <prefix><folder>/part-00000001   bytes of an upload, one object per part

A part is written when PART bytes are together, and at the end of a request, whatever is left; the next request takes a
short last part back and writes it anew, longer. So every part but the last has at least 5 MiB, the least that S3 takes.
When the upload is committed the store itself joins the parts to the object (multipart upload by copies): nothing is sent
twice. Until then no object bears the digest's name.

S3 has no lock for us: one server that writes per bucket and prefix (any number with --read-only).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from dray.base.errors import InvalidParameter, Unavailable
from dray.registry.server.storage import NOTHING, Entry, Stat

PART = 8 << 20  # of the first parts; later ones are larger, since S3 takes 10,000 parts at most
LEAST = 5 << 20  # bytes of every part but the last, by S3's rules
_ADDRESS_LIFETIME = 1200  # seconds that a presigned address is good
_MISSING = ("404", "NoSuchKey", "NotFound", "NoSuchBucket")


def part_size(before: int) -> int:
    """Return the size of the part that follows `before` others: 1.5 TB fit into 10,000 parts, S3's
    limit, and no part needs more than 256 MiB of memory."""
    return PART << min(before // 1000, 5)


class _Body:
    """An object being read."""

    file: BinaryIO | None = None

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""
        with _answers():
            data: bytes = self._stream.read(size)
        return data

    def close(self) -> None:
        """Drop the connection if there is more to come."""
        self._stream.close()


def _whole(reader: _Body) -> bytes:
    try:
        return b"".join(iter(lambda: reader.read(1 << 20), b""))
    finally:
        reader.close()


@contextlib.contextmanager
def _answers() -> Iterator[None]:
    """Turn what the store says into errors of ours."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise Unavailable(f"the S3 store failed: {error}") from error


class S3Upload:
    """Bytes that grow, in parts."""

    def __init__(self, storage: S3Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder
        entries = [entry.name for entry in storage.list(folder) if entry.name.startswith("part-")]
        self._sizes = []
        for name in sorted(entries):
            stat = storage.stat(f"{folder}/{name}")
            self._sizes.append(stat.size if stat else 0)
        self._tail = bytearray()  # what is not in a part yet, or in a part that is to be written anew
        self._clean = True
        if self._sizes and self._sizes[-1] < LEAST:
            self._tail += storage.get(self._part(len(self._sizes))) or b""
            self._sizes.pop()
        self.offset = sum(self._sizes) + len(self._tail)

    def _part(self, number: int) -> str:
        return f"{self._folder}/part-{number:08d}"

    def write(self, data: bytes, /) -> None:
        """Append; whole parts go out."""
        self._tail += data
        self.offset += len(data)
        self._clean = False
        while len(self._tail) >= (size := part_size(len(self._sizes))):
            self._storage.put({self._part(len(self._sizes) + 1): bytes(self._tail[:size])})
            self._sizes.append(size)
            del self._tail[:size]

    def read(self, start: int, size: int, /) -> bytes:
        """Return up to `size` bytes from `start`, not across the end of a part."""
        position = 0
        for number, length in enumerate(self._sizes, 1):
            if start < position + length:
                offset = start - position
                reader = self._storage.open(self._part(number), offset, min(offset + size, length))
                if reader is None:
                    raise Unavailable("the S3 store has lost a part of an upload")
                return _whole(reader)
            position += length
        return bytes(self._tail[start - position : start - position + size])

    def flush(self) -> None:
        """Write what is left as a part."""
        if not self._clean:
            self._storage.put({self._part(len(self._sizes) + 1): bytes(self._tail)})
            self._clean = True

    def commit(self, key: str, beside: Mapping[str, bytes] = NOTHING) -> None:
        """Let the store join the parts."""
        if self._storage.stat(key) is None:
            self._join(key)
        self._storage.put(beside)

    def _join(self, key: str) -> None:
        if not self._sizes:
            self._storage.put({key: bytes(self._tail)})
            return
        self.flush()
        parts = len(self._sizes) + (1 if self._tail else 0)
        self._storage.join([self._part(number) for number in range(1, parts + 1)], key)

    def close(self) -> None:
        """Nothing is held open."""


class S3Storage:
    """A bucket, or the keys of one that begin with a prefix."""

    def __init__(
        self, *, bucket: str, prefix: str = "", endpoint: str = "", region: str = "", redirects: bool = False
    ) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise InvalidParameter("--s3-bucket needs boto3: pip install 'dray[s3]'") from None
        from botocore.exceptions import BotoCoreError, ClientError

        self._bucket, self._redirects = bucket, redirects
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.name = f"S3 bucket {bucket}{f', below {self._prefix}' if self._prefix else ''}"
        try:
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=endpoint or None,
                region_name=region or None,
                config=Config(
                    max_pool_connections=32,
                    retries={"mode": "standard", "max_attempts": 3},
                    s3={"addressing_style": "path"} if endpoint else {},
                ),
            )
            self._client.head_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError, ValueError) as error:
            raise InvalidParameter(
                f"the S3 bucket {bucket} cannot be used: {error} (credentials come from AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY or ~/.aws)"
            ) from None

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _ask(self, verb: str, **arguments: Any) -> dict[str, Any] | None:
        """Call the store; None if it says that there is no such object."""
        from botocore.exceptions import ClientError

        with _answers():
            try:
                answer: dict[str, Any] = getattr(self._client, verb)(**arguments)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _MISSING:
                    return None
                raise
        return answer

    def get(self, key: str) -> bytes | None:
        """Return a small object."""
        reader = self.open(key)
        return None if reader is None else _whole(reader)

    def put(self, objects: Mapping[str, bytes], *, durable: bool = True) -> None:
        """Write or replace objects; the store does each in one step, and durably."""
        for key, data in objects.items():
            if self._ask("put_object", **self._at(key), Body=data) is None:
                raise Unavailable(f"the S3 bucket {self._bucket} is gone")

    def stat(self, key: str) -> Stat | None:
        """Return size and time of an object."""
        answer = self._ask("head_object", **self._at(key))
        return None if answer is None else Stat(answer["ContentLength"], answer["LastModified"].timestamp())

    def open(self, key: str, start: int = 0, end: int | None = None) -> _Body | None:
        """Open an object."""
        if end is not None and end <= start:
            import io

            return None if self.stat(key) is None else _Body(io.BytesIO())
        span = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        answer = self._ask("get_object", **self._at(key), **span)
        return None if answer is None else _Body(answer["Body"])

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield what lies directly below a folder, in pages of a thousand."""
        base, token = f"{self._prefix}{prefix}/", ""
        while True:
            more: dict[str, str] = {"ContinuationToken": token} if token else {}
            answer = self._ask("list_objects_v2", Bucket=self._bucket, Prefix=base, Delimiter="/", **more) or {}
            for folder in answer.get("CommonPrefixes", ()):
                yield Entry(folder["Prefix"][len(base) : -1], folder=True)
            for entry in answer.get("Contents", ()):
                yield Entry(entry["Key"][len(base) :], folder=False)
            token = answer.get("NextContinuationToken", "")
            if not token:
                return

    def delete(self, key: str) -> bool:
        """Remove an object."""
        if self.stat(key) is None:
            return False
        self._ask("delete_object", **self._at(key))
        return True

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects below a folder, a thousand in a request."""
        while True:
            answer = self._ask("list_objects_v2", Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}/") or {}
            keys = [{"Key": entry["Key"]} for entry in answer.get("Contents", ())]
            if not keys:
                return
            self._ask("delete_objects", Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})

    def upload(self, folder: str) -> S3Upload:
        """Open or begin an upload."""
        return S3Upload(self, folder)

    def join(self, sources: Sequence[str], key: str) -> None:
        """Make one object of several, in the store."""
        begun = self._ask("create_multipart_upload", **self._at(key))
        if begun is None:
            raise Unavailable(f"the S3 bucket {self._bucket} is gone")
        target = {**self._at(key), "UploadId": begun["UploadId"]}
        try:
            parts = []
            for number, source in enumerate(sources, 1):
                answer = self._ask("upload_part_copy", **target, PartNumber=number, CopySource=self._at(source))
                if answer is None:
                    raise Unavailable("the S3 store has lost a part of an upload")
                parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
            self._ask("complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(Unavailable):
                self._ask("abort_multipart_upload", **target)
            raise

    def redirect(self, key: str) -> str | None:
        """Return a presigned address, if the options allow it."""
        if not self._redirects:
            return None
        address: str = self._client.generate_presigned_url(
            "get_object", Params=self._at(key), ExpiresIn=_ADDRESS_LIFETIME
        )
        return address

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
