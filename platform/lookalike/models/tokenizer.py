"""A small tokenizer for MLLMs that are trained from scratch: whole words of a list, single characters for the rest."""

import string
from collections.abc import Sequence
from typing import Any

from lookalike.errors import ConfigError

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT, VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
SPECIAL_TOKENS = (PAD, UNKNOWN, START, END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT, VIDEO)


def build_tokenizer(words: Sequence[str], max_size: int = 4096) -> Any:
    """A transformers fast tokenizer (WordPiece, lower-cased) with the special tokens that InternVL's processor expects.

    Ids 0 to 7 are ``SPECIAL_TOKENS``, then single characters (as a word's start and, with ``##``, inside a word), then
    ``words``: a word outside the list is spelled out, so no prompt collapses to ``<unk>``.

    Raises:
        ConfigError: the vocabulary would exceed ``max_size`` (the embedding's rows).
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
