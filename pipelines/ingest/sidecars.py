"""Sidecars of a photo: ``<nn>.txt`` holds its caption, ``<nn>.json`` any of its labels, in any encoding with a mark."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lookalike.data.text import (
    LICENCE_KEYS,
    TextError,
    decode_text,
    read_json,
    read_label,
    read_licence,
    without_surrogates,
)
from lookalike.errors import InputError
from lookalike.storage import Store

_LABELS = ("subject", "class", "caption", "source")
_SHOWN = 10  # files that an error names


def read_sidecar(store: Store, key: str) -> dict[str, Any]:
    """Read a sidecar, for the sample's JSON.

    A label that is null, NaN or blank is left out, so that it replaces nothing; other labels are text. A licence is
    under ``licence``, whichever spelling the file has. Other fields are kept as they are.

    Raises:
        TextError: the file cannot be decoded, is not a JSON object, or has a label that is not text. It names the file.
    """
    where = store.uri_of(key)
    if key.lower().endswith(".txt"):
        caption = read_label(decode_text(store.read(key), where), prose=True).text
        return {"caption": caption} if caption else {}
    values = read_json(store.read(key), where)
    if not isinstance(values, dict):
        raise TextError("a sidecar is not a JSON object", value=where, fix='write {"caption": "…"}')
    found = {name: value for name, value in values.items() if name.strip().casefold() not in LICENCE_KEYS}
    for name in _LABELS:
        label = read_label(
            found.pop(name, None),
            many=name == "caption",
            identity=name == "subject",
            prose=name in ("caption", "class"),
        )
        if not label.text and label.note and not label.note.endswith("a missing value"):
            raise TextError(f"{name} of a sidecar is not a label: {label.note}", value=where, fix="write it as text")
        if label.text:
            found[name] = label.text
    try:
        licence = read_licence(values).text
    except TextError as error:
        raise TextError(error.what, value=where, fix=error.fix) from None
    if licence:
        found["licence"] = licence
    return dict(without_surrogates(found))


def check_sidecars(store: Store, keys: Sequence[str]) -> None:
    """Read every sidecar before anything is written, so that all that cannot be used are named at once.

    Raises:
        InputError: some cannot be used.
    """
    with ThreadPoolExecutor(16) as pool:
        errors = [error for error in pool.map(lambda key: _error_of(store, key), keys) if error is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        named = "; ".join(f"{error.value}: {error.what}" for error in errors[:_SHOWN])
        raise InputError(
            f"{len(errors)} sidecars cannot be used ({named}{'; …' if len(errors) > _SHOWN else ''})",
            fix="correct or remove them; text files are read as UTF-8",
        )


def _error_of(store: Store, key: str) -> TextError | None:
    try:
        read_sidecar(store, key)
    except TextError as error:
        return error
    return None
