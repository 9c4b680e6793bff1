"""Read the other members of a sample: labels from its JSON, text and key, and the area of its mask."""

from typing import Any

import numpy as np
import regex

from lookalike.data.images import EXTENSIONS, ImageError, decode_noted
from lookalike.data.text import TextError, decode_text, read_json, read_label, read_licence
from lookalike.errors import InputError
from pipelines.curate.config import LabelsConfig
from pipelines.curate.rows import CONFLICT

FIELDS = {  # column: key of the sample's JSON; a licence has two spellings
    "subject": "subject", "class_name": "class", "caption": "caption", "licence": "licence", "consent": "consent",
    "source": "source",
}  # fmt: skip
MASKS = tuple(f"mask.{extension}" for extension in EXTENSIONS)
_SAME_ASPECT = 0.05  # of the logarithm, between a photo and its mask


def read_labels(key: str, payload: dict[str, bytes], config: LabelsConfig, notes: list[str]) -> dict[str, str]:
    """Return the label columns from ``key.json``, ``key.txt`` (a caption) and the key; a column may be missing.

    A label that cannot be read is missing. ``notes`` gets a line for each label that is present but missing from the
    result or changed. Two licences that differ become ``CONFLICT``, which the licence filter drops.
    """
    values = _json(payload, notes)
    labels: dict[str, str] = {}
    for column, name in (FIELDS | {"subject": config.subject_field}).items():
        if column == "licence":
            continue
        value = values.get(name)
        if column == "consent" and isinstance(value, bool):
            value = str(value).lower()  # consent may be true or false
        prose = column in ("caption", "class_name")
        label = read_label(value, many=column == "caption", identity=column == "subject", prose=prose)
        if label.text:
            labels[column] = label.text
        if label.note:
            notes.append(f"{name}: {label.note}")
    try:
        labels["licence"] = read_licence(values)
    except TextError as error:
        labels["licence"] = CONFLICT
        notes.append(f"licence: {error.what}")
    if not labels.get("caption") and "txt" in payload:
        labels["caption"] = _caption(payload["txt"], notes)
    if not labels.get("subject") and config.subject_pattern is not None:
        match = _search(config, key)
        labels["subject"] = read_label(match.group(1), identity=True).text if match else ""
    return labels


def read_mask(payload: dict[str, bytes], size: tuple[int, int], notes: list[str], max_pixels: int) -> float | None:
    """Return the share of the image that ``key.mask.png`` (or another format) marks as the subject; None without one.

    A mask is not used if its aspect ratio is not that of the photo's ``size`` (height, width), or if it is damaged:
    ``notes`` gets a line then.
    """
    name = next((name for name in MASKS if name in payload), None)
    if name is None:
        return None
    try:
        mask = decode_noted(payload[name], max_pixels=max_pixels).pixels
    except ImageError as error:
        notes.append(f"mask: {error.what}")
        return None
    if abs(np.log(mask.shape[0] / mask.shape[1]) - np.log(size[0] / size[1])) > _SAME_ASPECT:
        notes.append(f"mask: {mask.shape[1]}x{mask.shape[0]} px for a photo of {size[1]}x{size[0]}")
        return None
    return float((mask.max(axis=2) > 127).mean())


def _search(config: LabelsConfig, key: str) -> regex.Match[str] | None:
    """Search for the subject in a sample's key, like ``re.search`` with a time limit."""
    try:
        return regex.search(config.subject_pattern, key, timeout=config.subject_pattern_s)
    except TimeoutError:
        limit = f"the {config.subject_pattern_s:g} s of labels.subject_pattern_s"
        what = f"labels.subject_pattern takes more than {limit} for a key"
        raise InputError(what, value=key[:80], fix="write it without nested repeats such as (a+)+") from None


def _json(payload: dict[str, bytes], notes: list[str]) -> dict[str, Any]:
    if "json" not in payload:
        return {}
    try:
        values = read_json(payload["json"], "json")
    except TextError as error:
        notes.append(f"json: {error.what}")
        return {}
    if isinstance(values, dict):
        return values
    notes.append("json: it is not an object")
    return {}


def _caption(data: bytes, notes: list[str]) -> str:
    try:
        label = read_label(decode_text(data, "txt"), prose=True)
    except TextError as error:
        notes.append(f"txt: {error.what}")
        return ""
    if label.note:
        notes.append(f"txt: {label.note}")
    return label.text
