"""Text that other programs wrote: bytes to text by their byte-order mark, and values of JSON to labels.

Nothing is guessed: bytes that are not UTF-8 and carry no mark are an error that names the file and the line, and a
value that is not text (NaN, a dictionary, true) is a missing label, never its Python spelling.
"""

import codecs
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from lookalike.errors import InputError

MAX_TEXT_BYTES = 16 << 20  # a sidecar or list that is larger is not read
MAX_LABEL_CHARACTERS = 20_000  # of one label; a longer one is cut, and noted
LICENCE_KEYS = ("licence", "license")  # one field, in any case of its letters
_MAX_DIGITS = 300  # of an integer; a longer one stays text, since Python refuses to convert it
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_SPELLED_MISSING = frozenset({"nan", "null", "none", "<na>", "undefined"})


class TextError(InputError):
    """Bytes that are not text in an encoding that is named, or text that is not JSON."""


def decode_text(data: bytes, where: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Decode a text file: by its byte-order mark (UTF-8, UTF-16, UTF-32), and as strict UTF-8 without one.

    Args:
        data: the whole file.
        where: what an error calls it, for example its URI.
        max_bytes: a larger file is refused.

    Raises:
        TextError: the file is too large, is in another encoding, or holds NUL characters. It names the line.
    """
    if len(data) > max_bytes:
        raise TextError(f"a text file has more than {max_bytes >> 20} MiB", value=where, fix="shorten or remove it")
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "replace")
        name = "UTF-8" if encoding.startswith("utf-8") else f"{encoding.upper()}, which its byte-order mark names"
        raise TextError(
            f"line {_lines(before)} is not {name}: byte {data[error.start]:#04x} at position {error.start}",
            value=where,
            fix="save the file as UTF-8",
        ) from None
    text = text.lstrip("\ufeff")
    if "\0" in text:
        raise TextError(
            f"line {_lines(text[: text.index(chr(0))])} holds a NUL character: UTF-16 without a byte-order mark, or not"
            " text",
            value=where,
            fix="save the file as UTF-8",
        )
    return text


def read_json(data: bytes, where: str) -> Any:
    """Parse a JSON document of any encoding that :func:`decode_text` reads.

    Integers of more than 300 digits stay text. A licence that one object gives twice becomes a list of both.

    Raises:
        TextError: not text, not JSON, or nested too deep. It names the line.
    """
    text = decode_text(data, where)
    try:
        return json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise TextError(
            f"line {error.lineno} is not JSON: {error.msg}", value=where, fix="correct or remove the file"
        ) from None
    except (RecursionError, ValueError, MemoryError) as error:
        raise TextError(
            f"the JSON cannot be read ({type(error).__name__}: {error})", value=where, fix="correct or remove the file"
        ) from None


def normal(name: str) -> str:
    """The form in which names are compared: Unicode's NFC."""
    return unicodedata.normalize("NFC", name)


def is_utf8(text: str) -> bool:
    """Whether a manifest or a table can hold ``text``: names in tars and file systems may hold lone surrogates."""
    return not _SURROGATE.search(text)


def escaped(text: str) -> str:
    """``text`` with lone surrogates written as ``\\udXXX``, so that two names stay two."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Label:
    """A label out of a value of JSON."""

    text: str = ""
    """The label, stripped; empty if it is missing."""
    note: str = ""
    """What was left out or changed, if anything."""


def read_label(value: object, *, many: bool = False, identity: bool = False, prose: bool = False) -> Label:
    """Turn a value of JSON into a label.

    - Text is stripped; control characters become blanks and lone surrogates are removed, each with a note.
    - Names and prose get Unicode's normal form NFC: one name that two systems wrote differently stays one.
    - null, NaN, blank text and empty lists are a missing label, without a note.
    - An integer, and a float with an integral value, is its digits; another finite float is its shortest spelling.
    - A list stands for its only label, or with ``many`` for its first one (as captions are given for WebDataset).
    - Everything else (a dictionary, true, an infinite number, a list of several labels) is a missing label with a note.

    Args:
        value: as ``json.loads`` gives it.
        many: whether a list may give several labels, of which the first counts.
        identity: keep lone surrogates as ``\\udXXX``, so that two names stay two.
        prose: whether ``nan``, ``null``, ``None``, ``<NA>`` and ``undefined`` as text mean a missing label, as they do
            for captions and classes. A subject can be called so, and a licence is never guessed.
    """
    if value is None:
        return Label()
    if isinstance(value, str):
        return _text(value, identity, prose)
    if isinstance(value, bool):
        return Label(note=f"{str(value).lower()} is not text")
    if isinstance(value, int):
        return Label(str(value)) if abs(value) < 10**_MAX_DIGITS else Label(note="a number of too many digits")
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return _first(value, many, identity, prose)
    return Label(note=f"{_KINDS.get(type(value), type(value).__name__)} is not text")


def read_licence(values: dict[str, Any]) -> Label:
    """The licence that an object of JSON gives under ``licence`` or ``license``, in any case of their letters.

    Raises:
        TextError: it gives two that differ, or one that is not text.
    """
    given: dict[str, str] = {}  # by their spelling without case
    for key, value in values.items():
        if key.strip().casefold() not in LICENCE_KEYS:
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            label = read_label(item)
            if label.note and not label.text:
                raise TextError(f"the field {key!r} is not a licence: {label.note}", value=item, fix="write its name")
            if label.text:
                given.setdefault(label.text.casefold(), label.text)
    if len(given) > 1:
        raise TextError(
            "two licences that differ: " + " and ".join(sorted(given.values())),
            value=sorted({key for key in values if key.strip().casefold() in LICENCE_KEYS}),
            fix="keep the one that applies",
        )
    return Label(*given.values())


def without_surrogates(value: Any) -> Any:
    """``value``, a JSON document, with lone surrogates removed from every text in it: no file can hold them."""
    if isinstance(value, str):
        return _SURROGATE.sub("", value)
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    return value


_KINDS: dict[type, str] = {dict: "a dictionary", bytes: "bytes"}


def _text(value: str, identity: bool, prose: bool) -> Label:
    notes = []
    if _SURROGATE.search(value):
        if identity:
            value = escaped(value)
        else:
            value = _SURROGATE.sub("", value)
            notes.append("half a character was left out")
    if _CONTROL.search(value):
        value = _CONTROL.sub(" ", value)
        notes.append("control characters were left out")
    if len(value) > MAX_LABEL_CHARACTERS:
        value = value[:MAX_LABEL_CHARACTERS]
        notes.append(f"cut after {MAX_LABEL_CHARACTERS} characters")
    value = value.strip()
    if identity or prose:
        value = unicodedata.normalize("NFC", value)
    if prose and value.casefold() in _SPELLED_MISSING:
        return Label(note=f"{value!r} stands for a missing value")
    if prose and value and all(unicodedata.category(character)[0] in "CZ" for character in value):
        return Label()  # only format characters, such as a zero-width space
    return Label(value, ", ".join(notes))


def _number(value: float) -> Label:
    if math.isnan(value):
        return Label()
    if math.isinf(value):
        return Label(note="an infinite number is not text")
    return Label(str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value))


def _first(values: list[Any] | tuple[Any, ...], many: bool, identity: bool, prose: bool) -> Label:
    labels = [
        Label(note="a list in a list is not text")
        if isinstance(value, (list, tuple))
        else read_label(value, identity=identity, prose=prose)
        for value in values
    ]
    texts = list(dict.fromkeys(label.text for label in labels if label.text))
    if len(texts) == 1 or (many and texts):
        return next(label for label in labels if label.text)
    if texts:
        return Label(note=f"a list of {len(texts)} labels")
    return Label(note=next((label.note for label in labels if label.note), ""))


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        for key in values:
            if key.strip().casefold() in LICENCE_KEYS:
                given = [value for name, value in pairs if name == key]
                values[key] = given if len(given) > 1 else given[0]
    return values


def _lines(text: str) -> int:
    return text.count("\n") + 1
