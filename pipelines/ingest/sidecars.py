"""Read sidecars of a photo: a caption ``<nn>.txt`` and labels ``<nn>.json``, decoded by their byte-order mark."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lookalike.data import text
from lookalike.data.text import TextError
from lookalike.errors import InputError
from lookalike.storage import Store

_LABELS = ("subject", "class", "caption", "source")
_SHOWN = 10  # files in an error


def read_sidecar(store: Store, key: str) -> dict[str, Any]:
    """Read a sidecar as fields of the sample's JSON.

    Labels are text; one that is null, NaN or blank is left out, so that it overrides nothing. The licence is under
    ``licence``, whichever spelling the file uses. Other fields are copied.

    Raises:
        TextError: the file cannot be decoded, is not a JSON object, or has a label that is not text. It names the file.
    """
    where = store.uri_of(key)
    if key.lower().endswith(".txt"):
        caption = text.read_label(text.decode_text(store.read(key), where), prose=True).text
        return {"caption": caption} if caption else {}
    values = text.read_json(store.read(key), where)
    if not isinstance(values, dict):
        raise TextError("the sidecar is not a JSON object", value=where, fix='write {"caption": "…"}')
    fields = {name: value for name, value in values.items() if not text.is_licence_key(name)}
    for name in _LABELS:
        label = text.read_label(
            fields.pop(name, None),
            many=name == "caption",
            identity=name == "subject",
            prose=name in ("caption", "class"),
        )
        if not label.text and label.note and not label.note.endswith("a missing value"):
            raise TextError(
                f"the field {name} of the sidecar is not a label: {label.note}", value=where, fix="write it as text"
            )
        if label.text:
            fields[name] = label.text
    try:
        licence = text.read_licence(values)
    except TextError as error:
        raise TextError(error.what, value=where, fix=error.fix) from None
    if licence:
        fields["licence"] = licence
    return dict(text.without_surrogates(fields))


def check_sidecars(store: Store, keys: Sequence[str]) -> None:
    """Check all sidecars before anything is written, so that one error names all invalid ones.

    Raises InputError: at least one sidecar is invalid.
    """
    with ThreadPoolExecutor(16) as pool:
        errors = [error for error in pool.map(lambda key: _error_of(store, key), keys) if error is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        named = "; ".join(f"{error.value}: {error.what}" for error in errors[:_SHOWN])
        raise InputError(
            f"{len(errors)} sidecars are not valid ({named}{'; …' if len(errors) > _SHOWN else ''})",
            fix="correct or remove them; text files must be UTF-8 or have a byte-order mark",
        )


def _error_of(store: Store, key: str) -> TextError | None:
    try:
        read_sidecar(store, key)
    except TextError as error:
        return error
    return None
