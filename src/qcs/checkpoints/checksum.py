"""A checksum of an ONNX file inside of it: SHA-256 of its bytes with zeros where the checksum is.

The metadata of ONNX are pairs of texts, of protobuf's wire format: a tag, a length, the bytes.
"""

import hashlib

KEY = "qcs_sha256"
EMPTY = "0" * 64
_BEFORE = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12\x40"  # key and length of the value


def sealed(model: bytes) -> bytes:
    """Fill in the checksum of a model whose metadata say `KEY`: `EMPTY`."""
    start = _start(model)
    return model[:start] + _digest(model, start) + model[start + len(EMPTY) :]


def right(model: bytes) -> bool:
    """Whether a model's checksum is there and that of its bytes."""
    start = _start(model)
    return start >= 0 and model[start : start + len(EMPTY)] == _digest(model, start)


def _start(model: bytes) -> int:
    """Where the checksum begins; -1 where there is none."""
    found = model.rfind(_BEFORE)
    return -1 if found < 0 else found + len(_BEFORE)


def _digest(model: bytes, start: int) -> bytes:
    whole = hashlib.sha256(model[:start])
    whole.update(EMPTY.encode())
    whole.update(model[start + len(EMPTY) :])
    return whole.hexdigest().encode()
