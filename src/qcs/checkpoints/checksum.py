"""A checksum of a file inside of it: SHA-256 of its bytes with zeros where the checksum is.

It is one of the metadata. Those of ONNX are pairs of texts, of protobuf's wire format: a tag, a
length, the bytes. Those of safetensors are JSON.
"""

import hashlib

KEY = "qcs_sha256"
EMPTY = "0" * 64
# What stands before the checksum.
ONNX = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12\x40"  # the key, the value's length
SAFETENSORS = f'"{KEY}":"'.encode()


def sealed(content: bytes, before: bytes = ONNX) -> bytes:
    """Fill in the checksum of a file whose metadata say `KEY`: `EMPTY`."""
    start = _start(content, before)
    return content[:start] + _digest(content, start) + content[start + len(EMPTY) :]


def right(content: bytes, before: bytes = ONNX) -> bool:
    """Whether a file's checksum is there and that of its bytes."""
    start = _start(content, before)
    return start >= 0 and content[start : start + len(EMPTY)] == _digest(content, start)


def _start(content: bytes, before: bytes) -> int:
    """Where the checksum begins; -1 where there is none."""
    found = content.rfind(before)
    return -1 if found < 0 else found + len(before)


def _digest(content: bytes, start: int) -> bytes:
    whole = hashlib.sha256(content[:start])
    whole.update(EMPTY.encode())
    whole.update(content[start + len(EMPTY) :])
    return whole.hexdigest().encode()
