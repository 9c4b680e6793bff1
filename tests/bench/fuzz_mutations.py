"""Damage real files: bytes are flipped, moved, removed and repeated, and values in JSON are replaced by others.

hypothesis makes structured values, and knows no damage of a real file; atheris is guided by the coverage of Python
code, and the decoders under test are C. So this is a mutator of one page, and every input follows from its seed.
"""

import json
import random
from typing import Any

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**63, 10**30, 1e308, -1e-308, float("nan"), float("inf"), "", " ", "a" * 5000),
    # pragma: allowlist nextline secret
    *("../../x", "/etc/passwd", "file:///etc/passwd", "file://host/x", "s3://b/../k", "http://u:p4ssw0rd@h", "\0"),
    *("\ud800", "1e9", "true", "models:/x@y", "00000001.json", "<|im_end|>", "{{7*7}}", [], {}, [[]], {"": None}),
]
_TEXT = b'{}[]":,0123456789eE+-.\\u\x00\xff/NaN'


def mutate(data: bytes, seed: str, others: list[bytes]) -> bytes:
    """Return ``data`` with one to six kinds of damage, chosen by ``seed``."""
    rng = random.Random(seed)
    if rng.random() < 0.5 and (changed := _json(data, rng)) is not None:
        data = changed
        if rng.random() < 0.7:
            return data
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice((_flip, _number, _cut, _drop, _repeat, _insert, _swap, _text, _fill))(result, rng)
        if others and rng.random() < 0.05:
            other = rng.choice(others)
            at, start = rng.randrange(len(result) + 1), rng.randrange(len(other) + 1)
            result[at : at + 64] = other[start : start + rng.choice((16, 256, 4096))]
    return bytes(result)


def _json(data: bytes, rng: random.Random) -> bytes | None:
    """The same JSON (or its lines) with one to three places changed; None if it is not JSON."""
    try:
        lines = [json.loads(line) for line in data.splitlines()] if data.count(b"\n{") else [json.loads(data)]
    except (ValueError, RecursionError):
        return None
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines)) if lines else 0
        lines[at : at + 1] = [_changed(lines[at], rng)] if lines else []
    try:
        return "\n".join(json.dumps(line) for line in lines).encode()
    except (ValueError, RecursionError):
        return None


def _changed(value: Any, rng: random.Random) -> Any:
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or rng.random() < 0.15:
        if rng.random() < 0.05:
            return json.loads("[" * 500 + "]" * 500)
        return rng.choice(_VALUES)
    key = rng.choice(inner)
    change = rng.random()
    if change < 0.15:
        del value[key]
    elif change < 0.25 and isinstance(value, dict):
        value[rng.choice(["", "uri", "../x", str(key).upper(), "\0"])] = value.pop(key)
    elif change < 0.35 and isinstance(value, list):
        value.extend(value[key : key + 1] * rng.choice((1, 3, 100)))
    else:
        value[key] = _changed(value[key], rng)
    return value


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 4, 32)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
    at = rng.randrange(max(1, len(data) - width)) if rng.random() < 0.5 else rng.randrange(min(512, len(data) + 1))
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _span(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 64, 512, 4096)))


def _drop(data: bytearray, rng: random.Random) -> None:
    start, end = _span(data, rng)
    del data[start:end]


def _repeat(data: bytearray, rng: random.Random) -> None:
    start, end = _span(data, rng)
    data[end:end] = data[start:end] * rng.choice((1, 1, 16))


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))


def _swap(data: bytearray, rng: random.Random) -> None:
    (a, b), (c, d) = sorted((_span(data, rng), _span(data, rng)))
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _text(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3))):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(2)] = bytes([rng.choice(_TEXT)])


def _fill(data: bytearray, rng: random.Random) -> None:
    start, end = _span(data, rng)
    data[start:end] = bytes([rng.choice((0, 0xFF, 0x20, 0x30))]) * (end - start)
