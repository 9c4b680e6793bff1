"""Fit captions to the models that train on them: remove names of control tokens, and cut to the maximum length."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Le

from lookalike.documents import parse_object
from lookalike.errors import ConfigError, first_line
from lookalike.values import Count, configuration

_CONTROL = re.compile(  # control tokens and placeholders of the multimodal models in use, as data sets leave them
    r"<\|[^|<>\s]{1,40}\|>"
    r"|</?(?:s|img|image|images|video|audio|pad|unk|bos|eos|sep|cls|mask|box|ref|quad|think|tool_call|object)>"
    r"|<(?:img_context|image_soft_token|image_placeholder|(?:start|end)_of_(?:image|turn)|im_(?:start|end|patch))>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|SEP|CLS|MASK|PAD)\]",
    re.IGNORECASE,
)
_CONTROL_MARKS = ("<", "[")  # each name of a control token begins with one of them
_CLASS_CHARACTERS = 100  # maximum length of a class; the prompt of a photo without a caption contains it


@configuration("captions")
class CaptionsConfig:
    """Maximum length of captions. A longer one is cut at a word, and the row's ``note`` says so."""

    max_characters: Annotated[Count, Le(1_000_000)] = 2_000
    """Maximum characters of a caption."""
    presets: list[str] = field(default_factory=list)
    """Models that will be trained (presets by name, or YAML files): a caption is cut to the tokens that each of them
    reads. Their tokenizers are loaded, from the Hub if the preset has a Hub id. ``[]``: no tokens are counted, and
    training cuts longer captions."""

    def __post_init__(self) -> None:
        if self.presets:
            from lookalike.models.presets import load_preset

            for name in self.presets:
                load_preset(name)


def fit_captions(rows: pa.Table, config: CaptionsConfig) -> pa.Table:
    """Return the rows with captions and classes that fit every model of ``config``; ``note`` records what was cut.

    Each different text is looked at once, and without ``presets`` only if it is long or might name a control token.
    """
    limits = [_tokenizer(name) for name in config.presets]
    captions, caption_changes = _fitted(rows["caption"], config.max_characters, limits, "caption")
    classes, class_changes = _fitted(rows["class_name"], _CLASS_CHARACTERS, (), "class")
    if caption_changes.null_count == class_changes.null_count == len(rows):
        return rows
    notes = rows["note"].combine_chunks()
    changed = pc.or_(pc.is_valid(caption_changes), pc.is_valid(class_changes))
    no_note = pa.scalar(None, pa.string())
    parts = [pc.if_else(pc.equal(notes, ""), no_note, notes), caption_changes, class_changes]
    joined = pc.binary_join_element_wise(*(part.filter(changed) for part in parts), "; ", null_handling="skip")
    notes = pc.replace_with_mask(notes, changed, joined)
    for name, values in (("caption", captions), ("class_name", classes), ("note", notes)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    return rows


def tokenizer_hashes(config: CaptionsConfig) -> dict[str, str]:
    """Return the SHA-256 of the tokenizer of each preset, which decides where captions are cut."""
    return {name: _tokenizer(name).sha256 for name in config.presets}


@dataclass(frozen=True)
class Limit:
    """The tokenizer of a preset, and the maximum number of tokens of a prompt."""

    preset: str
    tokens: int
    tokenizer: Any
    names: tuple[str, ...]
    """Names of its control tokens, which the tokenizer would recognise in a caption."""
    sha256: str


def fit_text(text: str, max_characters: int, limits: Sequence[Limit], what: str, notes: list[str]) -> str:
    """Remove names of control tokens, cut at a word to ``max_characters`` and ``limits``; append changes to notes."""
    plain = _without_control(text, [name for limit in limits for name in limit.names])
    if plain != text:
        notes.append(f"{what}: names of control tokens were left out")
    if len(plain) > max_characters:
        notes.append(f"{what}: cut from {len(plain)} to {max_characters} characters")
        plain = _at_word(plain, max_characters)
    for limit in limits:
        encoding = limit.tokenizer.encode(plain, add_special_tokens=False)
        count = len(encoding.ids)
        end = limit.tokens
        while len(encoding.ids) > limit.tokens:  # a cut may change how the last word is spelled in tokens
            plain = _at_word(plain, encoding.offsets[end - 1][1])
            encoding = limit.tokenizer.encode(plain, add_special_tokens=False)
            end = min(end, len(encoding.ids)) - 1
        if count > limit.tokens:
            notes.append(f"{what}: cut from {count} to {limit.tokens} tokens of {limit.preset}")
    return plain


def _fitted(
    texts: pa.ChunkedArray, max_characters: int, limits: Sequence[Limit], what: str
) -> tuple[pa.Array, pa.Array]:
    """Return the texts, cut by :func:`fit_text`, and what was changed in each: null if nothing was."""
    texts = texts.combine_chunks()
    suspects = pc.greater(pc.utf8_length(texts), max_characters)
    for mark in _CONTROL_MARKS:
        suspects = pc.or_(suspects, pc.match_substring(texts, mark))
    suspects = np.ones(len(texts), bool) if limits else suspects.to_numpy(zero_copy_only=False)
    where = np.flatnonzero(suspects)
    encoded = texts.take(pa.array(where)).dictionary_encode()
    fitted, changes = [], []
    for text in encoded.dictionary.to_pylist():
        notes: list[str] = []
        fitted.append(fit_text(text, max_characters, limits, what, notes))
        changes.append("; ".join(notes) or None)
    mask = pa.array(suspects)
    new, nothing = pa.array(fitted, pa.string()), pa.nulls(len(texts), pa.string())
    return (
        pc.replace_with_mask(texts, mask, new.take(encoded.indices)),
        pc.replace_with_mask(nothing, mask, pa.array(changes, pa.string()).take(encoded.indices)),
    )


def _without_control(text: str, names: Sequence[str]) -> str:
    if not any(name in text for name in names) and not _CONTROL.search(text):
        return text
    while True:  # the rest may form another name
        shorter = _CONTROL.sub(" ", text)
        for name in names:
            shorter = shorter.replace(name, " ")
        if shorter == text:
            return re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"\s{2,}", " ", text)).strip()
        text = shorter


def _at_word(text: str, end: int) -> str:
    """Return the first ``end`` characters, without a last word that is cut unless it is the only word."""
    cut = text[:end]
    if end < len(text) and not text[end].isspace() and re.search(r"\s", cut):
        cut = cut[: max(match.start() for match in re.finditer(r"\s", cut))]
    return cut.rstrip()


@cache
def _tokenizer(preset_name: str) -> Limit:
    from lookalike.models.presets import load_preset
    from lookalike.models.tokenizer import load_tokenizer

    preset = load_preset(preset_name)
    path = _tokenizer_file(preset.mllm.source, preset.mllm.revision, preset_name)
    data = path.read_bytes()
    tokenizer = load_tokenizer(parse_object(data, str(path), fix="download it again"))
    added = tokenizer.get_added_tokens_decoder().values()
    digest = hashlib.sha256(data).hexdigest()
    return Limit(preset.name, preset.mllm.max_prompt_tokens, tokenizer, tuple(str(t.content) for t in added), digest)


def _tokenizer_file(source: str | None, revision: str | None, preset: str) -> Path:
    from lookalike.models.presets import ASSETS_DIR

    fix = "remove the preset from captions.presets: training then cuts longer captions"
    if source is None:
        raise ConfigError("the MLLM of a preset has no source, and so no tokenizer", value=preset, fix=fix)
    folder = ASSETS_DIR / source.removeprefix("package:") if source.startswith("package:") else Path(source)
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    if source.startswith("package:") or folder.is_dir():
        raise ConfigError("the MLLM of a preset has no tokenizer.json", value=preset, fix=fix)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, "tokenizer.json", revision=revision))
    except Exception as error:  # of the network, the Hub, or the disk
        what = f"the tokenizer of preset {preset} cannot be loaded ({first_line(error)})"
        raise ConfigError(what, value=source, fix=fix) from error
