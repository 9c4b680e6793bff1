"""Text of other programs: encodings, JSON, and values that are not text."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.data.text import TextError, decode_text, read_json, read_label, read_licence

_CAPTION = "a photo of the café dog — 子犬"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_decoded_by_its_byte_order_mark(encoding: str) -> None:
    assert decode_text(_CAPTION.encode(encoding), "x.txt") == _CAPTION


@pytest.mark.parametrize(("mark", "encoding"), [(b"\xfe\xff", "utf-16-be"), (b"\x00\x00\xfe\xff", "utf-32-be")])
def test_big_endian_byte_order_marks_are_known(mark: bytes, encoding: str) -> None:
    assert decode_text(mark + _CAPTION.encode(encoding), "x.txt") == _CAPTION


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("one\ntwo café".encode("cp1252"), 2),
        ("a\nb\nкот".encode("cp1251"), 3),
        ("子犬".encode("shift-jis"), 1),
        ("a dog\n".encode("utf-16-le"), 1),  # no mark
        ("one\ntwo".encode("utf-16")[:-1], 2),
        (b"one\ntwo\0", 2),
        (b"\xed\xa0\xbd", 1),  # a surrogate on its own
        (b"\xff\xd8\xff\xe0", 1),
    ],
)
def test_undecodable_bytes_are_an_error_that_names_file_and_line(data: bytes, line: int) -> None:
    with pytest.raises(TextError, match=rf"line {line} .*'store/x\.txt'"):
        decode_text(data, "store/x.txt")


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_a_text_error(data: bytes) -> None:
    for read in (decode_text, read_json):
        with suppress(TextError):
            read(data, "x")


@pytest.mark.parametrize(
    ("document", "what"),
    [
        (b'{"a": 1,\n "b": }', "line 2 is not JSON"),
        (b"", "line 1 is not JSON"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "RecursionError"),
        (b"[" * 100_000, "RecursionError"),
        (b'"' + b"x" * (16 << 20) + b'"', "more than 16 MiB"),
    ],
)
def test_invalid_json_is_an_error_that_names_the_file(document: bytes, what: str) -> None:
    with pytest.raises(TextError, match=what):
        read_json(document, "x.json")


def test_integer_of_any_length_is_read() -> None:
    digits = "7" * 5000
    assert read_json(f'{{"subject": {digits}}}'.encode(), "x") == {"subject": digits}


@pytest.mark.parametrize(
    ("value", "text", "noted"),
    [
        (" a dog \n", "a dog", False),
        ("", "", False),
        (None, "", False),
        (math.nan, "", False),
        (math.inf, "", True),
        (-math.inf, "", True),
        (True, "", True),
        (False, "", True),
        (0, "0", False),
        (42, "42", False),
        (42.0, "42", False),
        (-0.0, "0", False),
        (0.5, "0.5", False),
        (1e300, "1e+300", False),
        (10**4000, "", True),
        ({"en": "a dog"}, "", True),
        ({}, "", True),
        ([], "", False),
        ([None, "", " "], "", False),
        (["a dog"], "a dog", False),
        (["a dog", "a dog "], "a dog", False),
        (["a dog", "a cat"], "", True),
        ([["a dog"]], "", True),
        ([{"text": "a dog"}], "", True),
        ("so cute \ud83d", "so cute", True),
        ("a\0dog", "a dog", True),
        ("nan", "nan", False),
        ("x" * 30_000, "x" * 20_000, True),
    ],
)
def test_json_value_becomes_a_label(value: Any, text: str, noted: bool) -> None:
    label = read_label(value)
    assert (label.text, bool(label.note)) == (text, noted)


def test_list_of_captions_gives_the_first() -> None:
    assert read_label([None, " ", "a can on a table", "a red can"], many=True).text == "a can on a table"
    assert read_label([{"x": 1}, "a can"], many=True).text == "a can"


@pytest.mark.parametrize("text", ["nan", "NaN", "null", "None", "<NA>", "\u200b\u2060"])
def test_prose_that_spells_null_is_a_missing_label(text: str) -> None:
    assert read_label(text, prose=True).text == ""


def test_names_with_different_lone_surrogates_stay_different() -> None:
    assert read_label("a\ud800", identity=True).text != read_label("a\ud801", identity=True).text


@pytest.mark.parametrize("as_what", [{"identity": True}, {"prose": True}])
def test_name_in_two_normal_forms_is_one_name(as_what: dict[str, bool]) -> None:
    assert read_label("Jose\u0301", **as_what).text == read_label("Jos\u00e9", **as_what).text == "Jos\u00e9"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(_JSON, st.booleans(), st.booleans(), st.booleans())
def test_label_of_any_value_can_be_written_as_utf8(value: Any, many: bool, identity: bool, prose: bool) -> None:
    label = read_label(json.loads(json.dumps(value)), many=many, identity=identity, prose=prose)
    label.text.encode()
    label.note.encode()
    assert label.text == label.text.strip()
    assert not label.text or not isinstance(value, (bool, dict))
    assert label.text.casefold() not in ("nan", "inf") or isinstance(value, (str, list))


@pytest.mark.parametrize(
    ("document", "licence"),
    [
        ('{"license": "CC-BY-4.0"}', "CC-BY-4.0"),
        ('{"Licence": " MIT "}', "MIT"),
        ('{"LICENSE": null, "licence": ""}', ""),
        ('{"license": NaN}', ""),
        ('{"licence": "MIT", "license": "mit"}', "MIT"),
        ('{"licence": null, "license": "MIT"}', "MIT"),
        ('{"license": ["MIT"]}', "MIT"),
        ('{"caption": "x"}', ""),
        ('{"license": "None"}', "None"),  # never the licence of somebody else
    ],
)
def test_both_spellings_of_a_licence_are_one_field(document: str, licence: str) -> None:
    assert read_licence(read_json(document.encode(), "x")) == licence


@pytest.mark.parametrize(
    "document",
    [
        '{"licence": "CC-BY-4.0", "license": "CC-BY-NC-4.0"}',
        '{"licence": "CC-BY-4.0", "License": "CC BY 4.0"}',
        '{"license": "MIT", "license": "GPL-3.0"}',
        '{"license": ["MIT", "GPL-3.0"]}',
        '{"license": {"name": "MIT"}}',
        '{"license": true}',
        '{"license": Infinity}',
    ],
)
def test_invalid_licence_is_an_error(document: str) -> None:
    with pytest.raises(TextError, match=r"licence"):
        read_licence(read_json(document.encode(), "x"))
