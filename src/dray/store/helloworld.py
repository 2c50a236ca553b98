"""The bundled hello-world image: an OCI layout archive for amd64 and arm64, a few KiB, made here from nothing.

Each platform's program is a static ELF of one page: an ELF header, one loadable segment, and the instructions

    write(1, message, length); exit(0)

assembled below, with the message behind them. `archive()` is deterministic, so the image has the same id on every
machine that has the same dray.
"""

from __future__ import annotations

import struct

from dray.base import assembler
from dray.base import digest as digests
from dray.oci import image as oci
from dray.oci.image import ContainerConfig, Descriptor, History, ImageConfig, Index, Manifest, RootFS
from dray.oci.platform import Platform
from dray.store.layers import tarwriter

NAME = "hello-world:latest"
_CREATED = "2025-01-01T00:00:00Z"
_TIME = 1735689600
_PROGRAM = "hello"

_MESSAGE = """
Hello from dray!
If you can read this, your installation runs containers.

What happened on the way here:
 1. The client asked the drayd daemon, over its socket, to create and start a container.
 2. The daemon found the "hello-world" image in its store (it comes with dray) and put a
    writable directory on top of the image's layer for {arch}.
 3. A shim, forked from a warm process, made new namespaces, mounted that file system and
    ran the program in it that prints these lines.
 4. The shim wrote the output to the container's log and sent it to your client, which
    shows it in your terminal. Then it recorded that the program ended with 0.

Something bigger to try, once you have an image with a shell:
 $ dray run -it --rm IMAGE sh

"""


def _move(register: int, value: int) -> bytes:
    """`mov w<register>, #value` for arm64: movz, and movk for the upper half."""
    low = 0x52800000 | (value & 0xFFFF) << 5 | register
    high = 0x72A00000 | (value >> 16) << 5 | register
    return struct.pack("<I", low) + (struct.pack("<I", high) if value >> 16 else b"")


def _amd64(address: int, length: int) -> bytes:
    """write(1, address, length); exit(0) by `syscall`: number in rax, arguments in rdi, rsi, rdx."""
    return b"".join(
        (
            b"\xb8" + struct.pack("<I", 1),  # mov eax, 1 (write)
            b"\xbf" + struct.pack("<I", 1),  # mov edi, 1
            b"\xbe" + struct.pack("<I", address),  # mov esi, address
            b"\xba" + struct.pack("<I", length),  # mov edx, length
            b"\x0f\x05",  # syscall
            b"\xb8" + struct.pack("<I", 60),  # mov eax, 60 (exit)
            b"\x31\xff",  # xor edi, edi
            b"\x0f\x05",  # syscall
        )
    )


def _arm64(address: int, length: int) -> bytes:
    """The same by `svc #0`: number in x8, arguments in x0, x1, x2."""
    call = struct.pack("<I", 0xD4000001)
    write = _move(0, 1) + _move(1, address) + _move(2, length) + _move(8, 64) + call
    return write + _move(0, 0) + _move(8, 93) + call


_ASSEMBLERS = {"amd64": _amd64, "arm64": _arm64}


def program(architecture: assembler.Architecture) -> bytes:
    """Return the static ELF executable for `amd64` or `arm64` (elf(5))."""
    message = _MESSAGE.format(arch=architecture).encode()
    assemble = _ASSEMBLERS[architecture]
    code_size = len(
        assemble(assembler.ENTRY, len(message))
    )  # the same for every address in the first 64 KiB of the page
    return assembler.executable(architecture, assemble(assembler.ENTRY + code_size, len(message)) + message)


def _blob(blobs: dict[str, bytes], media_type: str, data: bytes) -> Descriptor:
    digest = digests.of(data)
    blobs[digest] = data
    return Descriptor(media_type=media_type, digest=digest, size=len(data))


def _platform(blobs: dict[str, bytes], architecture: assembler.Architecture) -> Descriptor:
    """Make one platform's layer, config and manifest."""
    tar = tarwriter.member(_PROGRAM.encode(), program(architecture), mode=0o755, mtime=_TIME) + tarwriter.END
    layer = _blob(blobs, oci.OCI_LAYER, tar)  # no compressor gives the same bytes everywhere
    config = ImageConfig(
        created=_CREATED,
        architecture=architecture,
        os="linux",
        config=ContainerConfig(
            env=["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            cmd=[f"/{_PROGRAM}"],
            working_dir="/",
            labels={"org.opencontainers.image.title": "hello-world"},
        ),
        rootfs=RootFS(diff_ids=[digests.of(tar)]),
        history=[
            History(created=_CREATED, created_by=f"COPY {_PROGRAM} / # dray"),
            History(created=_CREATED, created_by=f'CMD ["/{_PROGRAM}"]', empty_layer=True),
        ],
    )
    manifest = Manifest(
        schema_version=2,
        media_type=oci.OCI_MANIFEST,
        config=_blob(blobs, oci.OCI_CONFIG, oci.encode(config)),
        layers=[layer],
    )
    descriptor = _blob(blobs, oci.OCI_MANIFEST, oci.encode(manifest))
    return Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        platform=Platform(architecture=architecture, os="linux"),
    )


def archive() -> bytes:
    """Return the image as an OCI layout in a tar, ready for `transfer.load` or `docker load`."""
    blobs: dict[str, bytes] = {}
    manifests = [_platform(blobs, architecture) for architecture in assembler.MACHINES]
    inner = Index(schema_version=2, media_type=oci.OCI_INDEX, manifests=manifests)
    target = _blob(blobs, oci.OCI_INDEX, oci.encode(inner))
    named = Descriptor(
        media_type=target.media_type,
        digest=target.digest,
        size=target.size,
        annotations={oci.IMAGE_NAME: f"docker.io/library/{NAME}", oci.REF_NAME: "latest"},
    )
    outer = Index(schema_version=2, media_type=oci.OCI_INDEX, manifests=[named])
    files = {f"blobs/sha256/{digest.removeprefix('sha256:')}": data for digest, data in blobs.items()}
    files["index.json"] = oci.encode(outer)
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    members = [tarwriter.member(name.encode(), files[name], mtime=_TIME) for name in sorted(files)]
    return b"".join(members) + tarwriter.END


if __name__ == "__main__":
    import sys

    sys.stdout.buffer.write(archive())
