"""Fit captions to training: remove names of control tokens, and cut to the length that the model reads."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from lookalike.documents import parse_object
from lookalike.errors import ConfigError, first_line
from lookalike.values import check_values

_CONTROL = re.compile(  # control tokens and placeholders of the multimodal models in use, as data sets leave them
    r"<\|[^|<>\s]{1,40}\|>"
    r"|</?(?:s|img|image|images|video|audio|pad|unk|bos|eos|sep|cls|mask|box|ref|quad|think|tool_call|object)>"
    r"|<(?:img_context|image_soft_token|image_placeholder|(?:start|end)_of_(?:image|turn)|im_(?:start|end|patch))>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|SEP|CLS|MASK|PAD)\]",
    re.IGNORECASE,
)
_CLASS_CHARACTERS = 100  # of a class, which becomes the prompt of a photo without a caption


@dataclass(frozen=True)
class CaptionsConfig:
    """How long a caption may be. A longer one is cut at a word, and the row notes it."""

    max_characters: int = 2_000
    """Of any caption."""
    presets: list[str] = field(default_factory=list)
    """Models that are to be trained (presets by name, or YAML files): a caption is cut to the tokens that each of them
    reads. Their tokenizers are read, from the Hub if a preset names one there. ``[]``: no tokens are counted, and
    training cuts what its model cannot read."""

    def __post_init__(self) -> None:
        check_values(self, at="captions.", max_characters=(1, 1_000_000))
        if self.presets:
            from lookalike.models.presets import load_preset

            for name in self.presets:
                load_preset(name)


def fit_captions(rows: pa.Table, config: CaptionsConfig) -> pa.Table:
    """The rows with captions and classes that every model of ``config`` can take; ``note`` records what was cut."""
    captions, classes, notes = (rows[name].to_pylist() for name in ("caption", "class_name", "note"))
    tokenizers = [_tokenizer(name) for name in config.presets]
    changed = False
    for i, (caption, class_name) in enumerate(zip(captions, classes, strict=True)):
        found: list[str] = []
        captions[i] = fit_text(caption, config.max_characters, tokenizers, "caption", found)
        classes[i] = fit_text(class_name, _CLASS_CHARACTERS, (), "class", found)
        if found:
            notes[i] = "; ".join([notes[i], *found] if notes[i] else found)
            changed = True
    if not changed:
        return rows
    for name, values in (("caption", captions), ("class_name", classes), ("note", notes)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return rows


def tokenizer_hashes(config: CaptionsConfig) -> dict[str, str]:
    """SHA-256 of the tokenizer of each preset: what decides where captions are cut."""
    return {name: _tokenizer(name).sha256 for name in config.presets}


@dataclass(frozen=True)
class Limit:
    """The tokenizer of a preset, and how many tokens of a prompt the model reads."""

    preset: str
    tokens: int
    tokenizer: Any
    names: tuple[str, ...]
    """Of its control tokens, which a tokenizer would find in a caption."""
    sha256: str


def fit_text(text: str, max_characters: int, limits: Sequence[Limit], what: str, notes: list[str]) -> str:
    """``text`` without names of control tokens, and cut at a word to fit; ``notes`` gets a line for each change."""
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


def _without_control(text: str, names: Sequence[str]) -> str:
    found = [name for name in names if name in text]
    if not found and not _CONTROL.search(text):
        return text
    while True:  # what is left may join to another name
        shorter = _CONTROL.sub(" ", text)
        for name in names:
            shorter = shorter.replace(name, " ")
        if shorter == text:
            return re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"\s{2,}", " ", text)).strip()
        text = shorter


def _at_word(text: str, end: int) -> str:
    """The first ``end`` characters, and of these not the beginning of a word unless it is the only one."""
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

    fix = "leave the preset out of captions.presets: training cuts what its model cannot read"
    if source is None:
        raise ConfigError("the MLLM of a preset has no source, and so no tokenizer", value=preset, fix=fix)
    if source.startswith("package:") or Path(source).is_dir():
        folder = ASSETS_DIR / source.removeprefix("package:") if source.startswith("package:") else Path(source)
        if not (folder / "tokenizer.json").is_file():
            raise ConfigError("the MLLM of a preset has no tokenizer.json", value=preset, fix=fix)
        return folder / "tokenizer.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, "tokenizer.json", revision=revision))
    except Exception as error:  # of the network, the Hub, or the disk
        raise ConfigError(
            f"the tokenizer of preset {preset} cannot be loaded ({first_line(error)})", value=source, fix=fix
        ) from error
