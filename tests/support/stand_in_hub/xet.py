"""What huggingface_hub uploads large files by where hf_xet is installed, as it is with huggingface_hub itself: it then has no other way.

Only taking is spoken, in version 1 of the protocol (https://huggingface.co/docs/xet): hf_xet asks for newer ways and for known chunks first,
and does without where the answer is 404. Downloads go by plain HTTP, since no answer here announces a Xet hash.
"""

import struct
from collections.abc import Iterator, Mapping

HEADER = 48  # bytes of a shard's header, and of every entry in it


def hash_text(raw: bytes) -> str:
    """A hash as text: four little-endian integers in hexadecimal."""
    return "".join(f"{part:016x}" for part in struct.unpack("<4Q", raw))


def unpack_xorb(data: bytes) -> list[bytes]:
    """The chunks in a xorb."""
    from pyarrow import Codec

    chunks, at = [], 0
    while at < len(data) and data[at] == 0:  # the version of a chunk's header; a footer begins with a letter
        packed, scheme, size = int.from_bytes(data[at + 1 : at + 4], "little"), data[at + 4], int.from_bytes(data[at + 5 : at + 8], "little")
        chunk = data[at + 8 : at + 8 + packed]
        if scheme:
            chunk = Codec("lz4").decompress(chunk, size, asbytes=True)
        chunks.append(_ungroup(chunk) if scheme == 2 else chunk)
        at += 8 + packed
    return chunks


def _ungroup(data: bytes) -> bytes:
    """Undo the grouping of every fourth byte."""
    result, at = bytearray(len(data)), 0
    for i in range(4):
        count = len(range(i, len(data), 4))
        result[i::4] = data[at : at + count]
        at += count
    return bytes(result)


def unpack_shard(data: bytes, xorbs: Mapping[str, list[bytes]]) -> Iterator[tuple[str, bytes]]:
    """The files in a shard: the SHA-256 that the client says, and the content that its chunks make.

    Raises:
        KeyError: Of a xorb that was never uploaded.
    """
    at = HEADER
    while data[at : at + 32] != b"\xff" * 32:
        flags, count = struct.unpack("<II", data[at + 32 : at + 40])
        content = bytearray()
        for i in range(1, count + 1):
            entry = data[at + i * HEADER : at + (i + 1) * HEADER]
            first, last = struct.unpack("<II", entry[40:48])
            content += b"".join(xorbs[hash_text(entry[:32])][first:last])
        at += HEADER * (1 + count * (2 if flags >> 31 & 1 else 1))  # a second entry each is for verification
        said = hash_text(data[at : at + 32]) if flags >> 30 & 1 else ""
        at += HEADER if said else 0
        yield said, bytes(content)
