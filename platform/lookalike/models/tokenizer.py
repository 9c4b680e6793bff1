"""Convert prompts to token ids without letting text become a control token; and build a small tokenizer."""

import json
import re
import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lookalike.documents import decoding, parse_object
from lookalike.errors import ConfigError, InputError

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT, VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
SPECIAL_TOKENS = (PAD, UNKNOWN, START, END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT, VIDEO)

# How MLLMs write control tokens that their tokenizers do not mark as special.
_MARK = re.compile(r"<.*>|\[[A-Z_]+\]", re.DOTALL)
_CHARACTERS_OF_A_TOKEN = 256  # a prompt of more per token that the model reads is cut before it is tokenised


class PromptTokenizer:
    """Tokenizes prompts inside a template with a fast tokenizer (``tokenizer.json``).

    Control tokens act as such in the template only; in the prompt their names are ordinary text, as with transformers'
    ``split_special_tokens``. A prompt without such names gives the same ids as tokenizing the whole text at once.

    Args:
        file: ``tokenizer.json``.
        placeholders: control tokens of the model that the file may not list among its added tokens.
    """

    def __init__(self, file: Path, placeholders: Sequence[str] = ()) -> None:
        self._file = file
        self._placeholders = tuple(placeholders)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token; None if the vocabulary does not have it."""
        token_id = self._plain.token_to_id(token)
        return None if token_id is None else int(token_id)

    def ids(self, text: str) -> list[int]:
        """Tokenize text of a template, in which control tokens act as such."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Convert ids to text."""
        return str(self._plain.decode(list(ids), skip_special_tokens=False))

    def write(self, before: str, prompt: str, after: str, limit: int) -> tuple[list[int], list[int]]:
        """Tokenize ``before + prompt + after`` with at most ``limit`` tokens of the prompt.

        Returns:
            the ids, and the ids of the prompt that were cut off.
        """
        most = limit * _CHARACTERS_OF_A_TOKEN
        text, rest = readable(prompt[:most]), readable(prompt[most:].strip()[:most])
        plain = self._plain.encode(text, add_special_tokens=False).ids
        literal = plain
        if not self._control.isdisjoint(plain):
            literal = self._literal.encode(text, add_special_tokens=False).ids
        head, tail = self.ids(before), self.ids(after)
        if literal == plain and len(plain) <= limit and not rest:
            whole = self.ids(before + text + after)
            marks = [*self._marks(head), *self._marks(tail)]
            if self._marks(whole) == marks and len(whole) <= len(head) + limit + len(tail):
                return whole, []
        kept = [token_id for token_id in literal if token_id == self._unknown or token_id not in self._control]
        return [*head, *kept[:limit], *tail], kept[limit:] + (self.ids(rest) if rest else [])

    def _marks(self, ids: Sequence[int]) -> list[int]:
        """Return the control tokens among ``ids`` in order, without the one for unknown characters."""
        return [token_id for token_id in ids if token_id in self._control and token_id != self._unknown]

    @cached_property
    def _values(self) -> dict[str, Any]:
        if not self._file.is_file():
            fix = "copy tokenizer.json into the folder"
            raise InputError("the MLLM's folder has no tokenizer.json", value=str(self._file), fix=fix)
        return parse_object(self._file.read_bytes(), str(self._file), fix="download the file again")

    @cached_property
    def _plain(self) -> Any:
        with decoding("a tokenizer of the tokenizers library", str(self._file), fix="add the MLLM's tokenizer.json"):
            return load_tokenizer(self._values)

    @cached_property
    def _literal(self) -> Any:
        """The same tokenizer without control tokens; built when a prompt contains the name of one."""
        entries = [
            {**entry, "special": entry["special"] or entry["id"] in self._control}
            for entry in self._values.get("added_tokens", [])
        ]
        tokenizer = load_tokenizer({**self._values, "added_tokens": entries})
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _control(self) -> frozenset[int]:
        """Ids that no prompt may produce: special tokens, added tokens like ``<…>``, and the placeholders."""
        added = self._plain.get_added_tokens_decoder().items()
        named = {token_id for token_id, token in added if token.special or _MARK.fullmatch(token.content)}
        placeholders = (self._plain.token_to_id(token) for token in self._placeholders)
        return frozenset(named.union(token_id for token_id in placeholders if token_id is not None))

    @cached_property
    def _unknown(self) -> int | None:
        """Id for characters outside the vocabulary; ordinary text may produce it."""
        model = self._values.get("model", {})
        unknown = model.get("unk_token")
        return model.get("unk_id") if unknown is None else self.token_to_id(unknown)


def readable(text: str) -> str:
    """Replace lone surrogates in ``text``, which no tokenizer accepts.

    UTF-8 that was decoded byte by byte and halves of UTF-16 pairs are joined, the rest becomes U+FFFD.
    """
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def load_tokenizer(values: dict[str, Any]) -> Any:
    """Load a ``tokenizer.json``, without its padding and truncation."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(values))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def build_tokenizer(words: Sequence[str], max_size: int = 4096) -> Any:
    """Build a transformers fast tokenizer (WordPiece, lower-cased) with the special tokens of InternVL's processor.

    Ids 0 to 7 are ``SPECIAL_TOKENS``, then single characters (as a word's start and, with ``##``, inside a word), then
    ``words``. A word outside the list is spelled in characters, so no prompt becomes ``<unk>`` only. Raises ConfigError
    if the vocabulary would exceed ``max_size`` (the embedding's rows).
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits
    characters = [*letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    entries = dict.fromkeys([*SPECIAL_TOKENS, *characters, *(word.lower() for word in words)])
    if len(entries) > max_size:
        raise ConfigError(
            f"vocabulary of {len(entries)} entries exceeds {max_size}", fix="shorten the word list or raise vocab_size"
        )
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        padding_side="right",
        extra_special_tokens={
            "message_start_token": START,
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_CONTEXT,
            "video_token": VIDEO,
        },
    )
