import pytest
from transformers import AutoTokenizer

from lookalike.errors import ConfigError
from lookalike.models.tokenizer import SPECIAL_TOKENS, build_tokenizer


def test_special_tokens_have_fixed_ids_and_survive_saving(tmp_path) -> None:
    tokenizer = build_tokenizer(["red", "mug"])
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|><img><IMG_CONTEXT></img>A RED mug<|im_end|>"
    assert [again.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(8))
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.start_image_token == "<img>"
    assert again.context_image_token_id == 6


def test_a_word_outside_the_list_is_spelled_not_lost() -> None:
    tokenizer = build_tokenizer(["red", "mug"])
    ids = tokenizer("a grüffalo's mug, 42%")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert "gruffalo" in tokenizer.decode(ids)


def test_a_vocabulary_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match="exceeds 100"):
        build_tokenizer([f"word{index}" for index in range(50)], max_size=100)
