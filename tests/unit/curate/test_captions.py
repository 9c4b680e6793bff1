"""Captions are cut to what training reads."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import ConfigError
from lookalike.models.presets import load_preset
from pipelines.curate.captions import CaptionsConfig, _tokenizer, fit_captions, fit_text

MINI = CaptionsConfig(presets=["mini"])


def fitted(caption: str, config: CaptionsConfig = MINI, class_name: str = "mug") -> dict[str, str]:
    table = pa.table({"caption": [caption], "class_name": [class_name], "note": [""]})
    (row,) = fit_captions(table, config).to_pylist()
    return dict(row)


@pytest.mark.parametrize("config", [CaptionsConfig(), MINI])
def test_a_caption_that_fits_is_unchanged(config: CaptionsConfig) -> None:
    table = pa.table({"caption": ["a red mug,  on <a> table <3 [x]"], "class_name": ["mug"], "note": [""]})
    assert fit_captions(table, config) is table


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("<image>\na red mug", "a red mug"),
        ("a red mug <IMG_CONTEXT>", "a red mug"),
        ("<|im_start|>user\na red mug<|im_end|>", "user\na red mug"),
        ("a <|vision_start|><|image_pad|><|vision_end|> mug", "a mug"),
        ("a mug<img></img>, red", "a mug, red"),
        ("a <im<image>age> mug", "a <im age> mug"),
        ("<|endoftext|>", ""),
        ("[INST] a mug [/INST]", "a mug"),
        ("<s>a mug</s>", "a mug"),
        ("<start_of_image> a mug", "a mug"),
    ],
)
def test_names_of_control_tokens_are_removed(caption: str, expected: str) -> None:
    row = fitted(caption, CaptionsConfig())
    assert row["caption"] == expected
    assert row["note"] == "caption: names of control tokens were left out"


@pytest.mark.parametrize("config", [CaptionsConfig(max_characters=15), MINI])
def test_rows_are_cut_one_by_one(config: CaptionsConfig) -> None:
    captions = ["a mug", "a red mug " * 30, "<image> mug", "a mug", "", "a red mug " * 30]
    classes = ["mug", "mug", "<s>mug", "x" * 101, "<s>mug", "mug"]
    notes = ["", "image: odd", "", "", "", ""]
    table = pa.table({"caption": captions, "class_name": classes, "note": notes})
    rows = fit_captions(pa.concat_tables([table.slice(0, 2), table.slice(2)]), config).to_pylist()
    for row, caption, class_name, note in zip(rows, captions, classes, notes, strict=True):
        alone = fitted(caption, config, class_name)
        assert row == alone | {"note": "; ".join(filter(None, [note, alone["note"]]))}
    assert rows[1]["note"].startswith("image: odd; caption: cut from ")
    assert rows[0]["note"] == ""


def test_a_class_is_cut_as_well() -> None:
    row = fitted("", CaptionsConfig(), class_name="<image> mug " + "x" * 300)
    assert row["class_name"].startswith("mug")
    assert len(row["class_name"]) <= 100
    assert "class: cut" in row["note"]


def test_a_long_caption_is_cut_at_a_word_and_noted() -> None:
    row = fitted("a red mug " * 300, CaptionsConfig(max_characters=15))
    assert row["caption"] == "a red mug a red"
    assert row["note"] == "caption: cut from 3000 to 15 characters"
    assert fitted("x" * 50, CaptionsConfig(max_characters=15))["caption"] == "x" * 15
    assert [len(fitted("ß" * n, CaptionsConfig(max_characters=15))["caption"]) for n in (14, 15, 16)] == [14, 15, 15]


@pytest.mark.parametrize("caption", ["a red mug on a table, " * 30, "zxqv " * 60, "🦆 " * 90, "a" + " zxqvwk" * 20])
def test_a_caption_is_cut_to_the_tokens_of_a_preset(caption: str) -> None:
    row = fitted(caption)
    limit = load_preset("mini").mllm.max_prompt_tokens
    tokens = len(_tokenizer("mini").tokenizer.encode(row["caption"], add_special_tokens=False).ids)
    assert 0 < tokens <= limit
    assert caption.startswith(row["caption"])
    assert f"to {limit} tokens of mini" in row["note"]


@given(st.text(max_size=400))
def test_any_caption_fits_after_it_was_fitted(caption: str) -> None:
    limit = _tokenizer("mini")
    notes: list[str] = []
    text = fit_text(caption, 200, [limit], "caption", notes)
    assert len(text) <= 200
    assert len(limit.tokenizer.encode(text, add_special_tokens=False).ids) <= limit.tokens
    assert fit_text(text, 200, [limit], "caption", []) == text
    assert notes or text == caption


def test_invalid_caption_settings_are_rejected() -> None:
    with pytest.raises(ConfigError, match="max_characters"):
        CaptionsConfig(max_characters=0)
    with pytest.raises(ConfigError, match="unknown preset"):
        CaptionsConfig(presets=["maxi"])
