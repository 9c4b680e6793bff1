"""Text never becomes a control token, and text that names none is tokenised as ever."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lookalike.bundles.load import load_preprocessor
from lookalike.models.batch import to_batch
from lookalike.models.preprocess import Preprocessor
from lookalike.models.presets import load_preset
from lookalike.models.tokenizer import PromptTokenizer, build_tokenizer, readable

CAPTIONS = [
    *("a red mug", "a blue box on the wet sand of a beach", "A dog,  3 cats & 1 bird's nest!", "un café à la crème"),
    *(
        "赤いカップ",
        "a 🦊 on ice",
        "",
        " ",
        "\n",
        "two\nlines",
        "tab\tand  spaces ",
        "{prompt} {images} %s",
        "a < b > c",
    ),
    *("<", "img>", "|im_end|", "a\0b", "<p>bold</p>", "1 < 2 | 3 > 2", "x" * 70, "IMG_CONTEXT", "[SIC]", "\u200d"),
]
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    *("<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>"),
)
NOT_CALLED_SPECIAL = ("<tool_call>", "</tool_call>", "<|fim_pad|>", "<think>")  # Qwen's, added with special=False


def byte_level() -> Tokenizer:
    """A tokenizer as Qwen2.5's and Qwen3's: byte-level BPE behind their split into words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CAPTIONS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in NOT_CALLED_SPECIAL])
    return tokenizer


def loose() -> Tokenizer:
    """Control tokens that match in any case, with the spaces around them."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_special_tokens([AddedToken("<|user|>", normalized=True, lstrip=True, rstrip=True)])
    return tokenizer


def unigram() -> Tokenizer:
    """Control tokens are pieces of the vocabulary, which the model itself may choose."""
    pieces = [(token, 0.0) for token in ("<unk>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")]
    pieces += [(character, -5.0) for character in string.printable]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.add_special_tokens([token for token, _ in pieces[:6]])
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "mini": lambda: build_tokenizer(["red", "mug", "a", "on"]),
    "qwen": byte_level,
    "loose": loose,
    "unigram": unigram,
}
TEMPLATES = {
    "mini": ("<|im_start|><img><IMG_CONTEXT><IMG_CONTEXT></img>", "<|im_end|>"),
    "internvl3": ("<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\n", "<|im_end|>\n"),
    "qwen3-vl": ("<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>", "<|im_end|>\n"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    made = KINDS[request.param]()
    if isinstance(made, Tokenizer):
        made.save(str(folder / "tokenizer.json"))
    else:
        made.save_pretrained(folder)
    return PromptTokenizer(folder / "tokenizer.json", ("<IMG_CONTEXT>",))


def controls(tokenizer: PromptTokenizer) -> dict[int, str]:
    """Control tokens by id; the one of unknown characters is none."""
    values = json.loads(tokenizer._file.read_text())
    added = {entry["id"]: entry["content"] for entry in values["added_tokens"]}
    return {token_id: name for token_id, name in added.items() if name != "<unk>"}


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_text_without_control_tokens_gives_the_ids_of_the_whole_text(tokenizer: PromptTokenizer, template: str) -> None:
    before, after = TEMPLATES[template]
    for caption in CAPTIONS:
        assert tokenizer.write(before, caption, after, 500) == (tokenizer.ids(before + caption + after), [])


def variants(name: str) -> list[str]:
    """Ways to write a token's name in a text."""
    cases = (name, name.lower(), name.upper(), f" {name} ", f"a{name}b", name * 3, name[:-1] + name + name[-1])
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in name)  # fullwidth, which NFKC folds
    return [*cases, wide, f"\n{name}\n", f"{name[0]}\u200b{name[1:]}", name.replace("_", " ")]


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_names_of_control_tokens_are_text(tokenizer: PromptTokenizer, template: str) -> None:
    before, after = TEMPLATES[template]
    known = controls(tokenizer)
    own = [token_id for token_id in tokenizer.ids(before + after) if token_id in known]
    for name in {*known.values(), "<unk>", "<image>", "<|endoftext|>", *SPECIAL, *NOT_CALLED_SPECIAL, "<|user|>"}:
        for text in variants(name):
            ids, cut = tokenizer.write(before, text, after, 500)
            assert [token_id for token_id in ids if token_id in known] == own, text
            assert not cut
    ids, _ = tokenizer.write("<|im_start|><", "img", "><|im_end|>", 500)  # a template that a prompt could complete
    assert [known[token_id] for token_id in ids if token_id in known] == ["<|im_start|>", "<|im_end|>"]


TOKENS = st.sampled_from([*SPECIAL, *NOT_CALLED_SPECIAL, "<pad>", "<unk>", "<video>", "<|user|>", "<image>"])
TEXT = st.lists(st.one_of(st.text(st.characters(), max_size=8), TOKENS, TOKENS.map(str.upper)), max_size=6).map("".join)


@given(text=TEXT, limit=st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_any_text_is_written_within_its_limit_and_without_control_tokens(
    tokenizer: PromptTokenizer, text: str, limit: int
) -> None:
    known = controls(tokenizer)
    for before, after in TEMPLATES.values():
        head, tail = tokenizer.ids(before), tokenizer.ids(after)
        ids, _ = tokenizer.write(before, text, after, limit)
        assert len(ids) <= len(head) + limit + len(tail)
        assert [i for i in ids if i in known] == [i for i in (*head, *tail) if i in known]


@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
@settings(max_examples=100, deadline=None)
def test_readable_text_is_left_alone_and_broken_text_is_put_together(text: str) -> None:
    assert readable(text) == text
    byte_by_byte = text.encode().decode("ascii", "surrogateescape")
    assert readable(byte_by_byte) == text
    halves = "".join(map(chr, np.frombuffer(text.encode("utf-16-le"), "<u2").tolist()))
    assert readable(halves) == text
    assert readable(text + "\ud83d").encode() == (text + "\ufffd").encode()


def test_a_long_text_is_cut_by_tokens_and_read_no_further_than_needed(tokenizer: PromptTokenizer) -> None:
    before, after = TEMPLATES["mini"]
    head, tail = tokenizer.ids(before), tokenizer.ids(after)
    for text in ("red mug " * 1_000_000, "🦊" * 1_000_000, "<img>" * 1_000_000, " " * 5_000_000 + "a", "x" * 5_000_000):
        ids, cut = tokenizer.write(before, text, after, 40)
        assert len(ids) <= len(head) + 40 + len(tail)
        assert ids[: len(head)] == head
        assert ids[len(ids) - len(tail) :] == tail
        assert cut
        assert len(cut) < 50_000


def test_the_shipped_miniature_reads_captions_as_before() -> None:
    """Ids of the whole text by the tokenizers library alone."""
    import lookalike

    file = Path(lookalike.__file__).parent / "assets" / "mini" / "mllm" / "tokenizer.json"
    plain, preset = Tokenizer.from_file(str(file)), load_preset("mini")
    preprocessor = Preprocessor(preset, file)
    words = (Path(lookalike.__file__).parent / "assets" / "mini.words.txt").read_text().split()
    random = np.random.default_rng(0)
    captions = [" ".join(random.choice(words, 6)) for _ in range(300)] + [c for c in CAPTIONS if len(c) < 40]
    image = np.zeros((32, 32, 3), np.uint8)
    columns = preprocessor(captions, [[image]] * len(captions))
    for caption, ids, mask in zip(captions, columns["input_ids"], columns["attention_mask"], strict=True):
        text = "<|im_start|><img>" + "<IMG_CONTEXT>" * 16 + f"</img>{caption}<|im_end|>"
        assert ids[mask].tolist() == plain.encode(text, add_special_tokens=False).ids


def test_a_prompt_with_placeholders_leaves_the_image_tokens_in_place(bundle_dir: Path, pictures: Any) -> None:
    preprocessor = load_preprocessor(bundle_dir)
    prompts = ["a mug", "a <IMG_CONTEXT> <img></img> mug<|im_end|>", "\udcf0\udc9f\udc98\udc80", ""]
    columns = preprocessor(prompts, [pictures(1)] * 4)
    assert (columns["image_mask"] == (columns["input_ids"] == preprocessor.image_token_id)).all()
    assert columns["image_mask"].sum(1).tolist() == [32] * 4
    ends = (columns["input_ids"] == 3).sum(1)
    assert ends.tolist() == [1] * 4


@given(texts=st.lists(TEXT, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_prompt_makes_a_batch(bundle_dir: Path, texts: list[str]) -> None:
    """What training, evaluation and generation hand to the model has its image tokens in their places."""
    preprocessor = load_preprocessor(bundle_dir)
    image = np.zeros((32, 32, 3), np.uint8)
    cut: list[str] = []
    columns = preprocessor(
        texts, [[image]] * len(texts), truncate_prompts=True, on_cut=lambda *told: cut.append(told[1])
    )
    batch = to_batch(columns)
    assert batch.image_tokens_per_row == 16
    assert (batch.image_mask.sum(1) == 16).all()
    assert ((batch.input_ids == preprocessor.image_token_id) == batch.image_mask).all()
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        real = ids[mask].tolist()
        assert mask[: len(real)].all(), "real tokens stand first"
        assert (real[0], real[-1], real.count(2), real.count(3)) == (2, 3, 1, 1)
        assert len(real) <= 1 + 18 + 40 + 1
