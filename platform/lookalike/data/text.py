"""Read text of other programs: decode bytes by their byte-order mark, and turn JSON values into labels.

Nothing is guessed: bytes that are not UTF-8 and have no byte-order mark are an error that names the file and the line.
A value that is not text (NaN, a dictionary, true) is a missing label, not the text of its Python value.
"""

import codecs
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from lookalike.errors import InputError

MAX_TEXT_BYTES = 16 << 20  # default limit of decode_text, for sidecars and lists
MAX_LABEL_CHARACTERS = 20_000  # of one label; a longer one is cut, with a note
_MAX_DIGITS = 300  # of an integer; a longer one stays text, since Python does not convert it
_MARKS = (  # UTF-32 first, since its little-endian mark begins with that of UTF-16
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
    """Bytes that are not text in a known encoding, or text that is not JSON."""


def decode_text(data: bytes, where: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Decode the text file ``data`` by its byte-order mark (UTF-8, UTF-16, UTF-32), or as strict UTF-8 if it has none.

    Raises:
        TextError: the file is too large, is in another encoding, or holds NUL characters. It names ``where`` (the
            file's URI) and the line.
    """
    if len(data) > max_bytes:
        raise TextError(f"the text file has more than {max_bytes >> 20} MiB", value=where, fix="shorten or remove it")
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
            f"line {_lines(text[: text.index(chr(0))])} holds a NUL character: the file is UTF-16 without a byte-order"
            " mark, or not text",
            value=where,
            fix="save the file as UTF-8",
        )
    return text


def read_json(data: bytes, where: str) -> Any:
    """Parse a JSON document of any encoding that :func:`decode_text` reads.

    Integers of more than 300 digits stay text. A licence that one object gives twice becomes a list of both.

    Raises TextError: the data is not text or not JSON, or is nested too deeply. It names the line.
    """
    text = decode_text(data, where)
    try:
        return json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        what = f"line {error.lineno} is not JSON: {error.msg}"
    except (RecursionError, ValueError, MemoryError) as error:
        what = f"the JSON cannot be read ({type(error).__name__}: {error})"
    raise TextError(what, value=where, fix="correct or remove the file")


def normal(name: str) -> str:
    """Return ``name`` in Unicode's normal form NFC, in which names are compared."""
    return unicodedata.normalize("NFC", name)


def is_utf8(text: str) -> bool:
    """Return whether ``text`` has no lone surrogates, which names in tars and file systems may have."""
    return not _SURROGATE.search(text)


def escaped(text: str) -> str:
    """Return ``text`` with lone surrogates written as ``\\udXXX``, so that different names stay different."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Label:
    """A label that was read from a JSON value."""

    text: str = ""
    """The label, stripped; empty if it is missing."""
    note: str = ""
    """What was left out or changed; empty if nothing was."""


def read_label(value: object, *, many: bool = False, identity: bool = False, prose: bool = False) -> Label:
    """Turn a JSON value into a label.

    - Text is stripped; control characters become spaces and lone surrogates are removed, each with a note.
    - Names and prose are converted to Unicode's normal form NFC, so that spellings of two systems are equal.
    - null, NaN, blank text and empty lists give a missing label, without a note.
    - An integer, or a float with an integral value, gives its digits; another finite float its shortest decimal form.
    - A list gives its only label, or with ``many`` its first one (WebDataset stores several captions as a list).
    - Other values (a dictionary, true, an infinite number, a list of several labels) give a missing label with a note.

    Args:
        value: a value as ``json.loads`` returns it.
        many: a list may hold several labels.
        identity: write lone surrogates as ``\\udXXX``, so that different names stay different.
        prose: whether the texts ``nan``, ``null``, ``None``, ``<NA>`` and ``undefined`` give a missing label. True for
            captions and classes; a subject can have such a name, and a licence is never guessed.
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
    kind = "a dictionary" if isinstance(value, dict) else type(value).__name__
    return Label(note=f"{kind} is not text")


def is_licence_key(key: str) -> bool:
    """Return whether a JSON object's ``key`` is ``licence`` or ``license``, in any case."""
    return key.strip().casefold() in ("licence", "license")


def read_licence(values: dict[str, Any]) -> str:
    """Read the licence of a JSON object from ``licence`` or ``license``, in any case; empty if it has none.

    Raises TextError: the object has two different licences, or one that is not text.
    """
    given: dict[str, str] = {}  # by their casefolded spelling
    fields = {key: value for key, value in values.items() if is_licence_key(key)}
    for key, value in fields.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            label = read_label(item)
            if label.note and not label.text:
                raise TextError(
                    f"the field {key!r} is not a licence: {label.note}", value=item, fix="write its name as text"
                )
            if label.text:
                given.setdefault(label.text.casefold(), label.text)
    if len(given) > 1:
        raise TextError(
            "there are two different licences: " + " and ".join(sorted(given.values())),
            value=sorted(fields),
            fix="keep the one that applies",
        )
    return next(iter(given.values()), "")


def without_surrogates(value: Any) -> Any:
    """Return a JSON value without lone surrogates in its texts, since UTF-8 files cannot hold them."""
    if isinstance(value, str):
        return _SURROGATE.sub("", value)
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    return value


def _text(value: str, identity: bool, prose: bool) -> Label:
    notes = []
    if _SURROGATE.search(value):
        if identity:
            value = escaped(value)
        else:
            value = _SURROGATE.sub("", value)
            notes.append("lone surrogates were left out")
    if _CONTROL.search(value):
        value = _CONTROL.sub(" ", value)
        notes.append("control characters were left out")
    if len(value) > MAX_LABEL_CHARACTERS:
        value = value[:MAX_LABEL_CHARACTERS]
        notes.append(f"cut after {MAX_LABEL_CHARACTERS} characters")
    value = value.strip()
    if identity or prose:
        value = normal(value)
    if prose and value.casefold() in _SPELLED_MISSING:
        return Label(note=f"{value!r} stands for a missing value")
    if prose and value and all(unicodedata.category(character)[0] in "CZ" for character in value):
        return Label()  # only invisible characters, such as a zero-width space
    return Label(value, ", ".join(notes))


def _number(value: float) -> Label:
    if math.isnan(value):
        return Label()
    if math.isinf(value):
        return Label(note="an infinite number is not text")
    return Label(str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value))


def _first(values: list[Any] | tuple[Any, ...], many: bool, identity: bool, prose: bool) -> Label:
    labels = [
        Label(note="a nested list is not text")
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
    for key in filter(is_licence_key, values):
        given = [value for name, value in pairs if name == key]
        if len(given) > 1:
            values[key] = given
    return values


def _lines(text: str) -> int:
    return text.count("\n") + 1
