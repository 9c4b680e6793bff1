"""Sidecars and names as Windows, JavaScript and old archives write them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.storage import open_store
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.folder import plan_folder
from pipelines.ingest.sidecars import read_sidecar
from tests.unit.pipelines.ingest.test_folder import meta, photo, plan, samples

CAPTION = "a photo of the café dog"


def ingested(folder: Path, sidecar: str, data: bytes, **settings: object) -> dict[str, Any]:
    photo(folder / "in" / "dog7" / "00.jpg")
    (folder / "in" / "dog7" / f"00.{sidecar}").write_bytes(data)
    (members,) = samples(plan(folder / "in", **settings), folder).values()
    return meta(members)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_decoded_by_its_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    assert ingested(tmp_path, "txt", f"{CAPTION}\r\n".encode(encoding))["caption"] == CAPTION
    document = json.dumps({"caption": CAPTION}, ensure_ascii=False).encode(encoding)
    assert ingested(tmp_path, "json", document)["caption"] == CAPTION


@pytest.mark.parametrize(
    ("sidecar", "data", "what"),
    [
        ("txt", f"one\n{CAPTION}".encode("cp1252"), "line 2 is not UTF-8"),
        ("txt", b"a\0 \0d\0o\0g\0", "NUL"),
        ("json", f'{{"caption": "{CAPTION}"}}'.encode("cp1252"), "line 1 is not UTF-8"),
        ("json", b'{\n"caption": }', "line 2 is not JSON"),
        ("json", b"[" * 10_000, "RecursionError"),
        ("json", b"7", "not a JSON object"),
        ("json", b'{"caption": {"en": "a dog"}}', "caption of the sidecar is not a label: a dictionary"),
        ("json", b'{"class": true}', "class of the sidecar is not a label: true"),
        ("json", b'{"subject": ["a", "b"]}', "subject of the sidecar is not a label: a list of 2"),
        ("json", b'{"subject": 1e999}', "infinite"),
        ("json", b'{"licence": "MIT", "license": "GPL-3.0"}', "two different licences: GPL-3.0 and MIT"),
        ("json", b'{"License": {"name": "MIT"}}', "not a licence"),
    ],
)
def test_invalid_sidecar_is_reported_before_anything_is_written(
    tmp_path: Path, sidecar: str, data: bytes, what: str
) -> None:
    with pytest.raises(InputError, match=rf"{what}.*dog7/00\.{sidecar}"):
        ingested(tmp_path, sidecar, data)
    assert not list(tmp_path.glob("*.tar"))
    (tmp_path / "in" / "dog7" / f"00.{sidecar}").unlink()  # as the message says
    assert len(samples(plan(tmp_path / "in"), tmp_path)) == 1


def test_all_invalid_sidecars_are_reported_at_once(tmp_path: Path) -> None:
    for name in ("00", "01", "02"):
        photo(tmp_path / "in" / "dog7" / f"{name}.jpg")
        (tmp_path / "in" / "dog7" / f"{name}.txt").write_bytes("é".encode("cp1252") if name != "01" else b"a dog")
    with pytest.raises(InputError, match=r"2 sidecars are not valid .*00\.txt.*02\.txt"):
        plan(tmp_path / "in")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"class": None, "caption": None, "subject": None}, {}),
        ({"class": float("nan"), "caption": " ", "subject": ""}, {}),
        ({"class": "null", "caption": "nan"}, {}),
        ({"caption": ["", "a dog", "a red dog"]}, {"caption": "a dog"}),
        ({"subject": 7, "class": ["dog"]}, {"subject": "7", "class": "dog", "caption": "a photo of a dog"}),
        ({"caption": "so cute \ud83d"}, {"caption": "so cute"}),
        ({"notes": ["\udcff", {"x": "\ud800y"}]}, {"notes": ["", {"x": "y"}]}),
        ({"license": "CC-BY-NC-ND-4.0"}, {"licence": "CC-BY-NC-ND-4.0"}),
        ({"LICENSE": " MIT ", "licence": "mit"}, {"licence": "MIT"}),
        ({"license": None}, {}),
        ({"license": "None"}, {"licence": "None"}),
    ],
)
def test_sidecar_overrides_only_its_own_fields(
    tmp_path: Path, document: dict[str, Any], expected: dict[str, Any]
) -> None:
    said = ingested(tmp_path, "json", json.dumps(document).encode(), licence="CC-BY-4.0")
    usual = {"subject": "dog7", "class": "dog", "caption": "a photo of a dog", "licence": "CC-BY-4.0"}
    assert said == usual | {"source": said["source"]} | expected


def test_classes_are_decoded_and_null_is_missing(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "dog7" / "00.jpg")
    photo(tmp_path / "in" / "chien" / "00.jpg")
    classes = tmp_path / "in" / "prompts_and_classes.txt"
    classes.write_text("subject_name,class\nchien,épagneul\ndog7,null\n", "utf-16")
    found = samples(plan(tmp_path / "in"), tmp_path)
    assert [meta(m)["class"] for m in found.values()] == ["épagneul", "dog"]
    classes.write_bytes("subject_name,class\nchien,épagneul\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"line 2 is not UTF-8.*prompts_and_classes\.txt"):
        plan(tmp_path / "in")


def test_name_that_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "dog7" / "00.jpg")
    photo(tmp_path / "in" / "dog7" / "01.jpg")
    folder = os.fsencode(tmp_path / "in" / "dog7")
    os.rename(folder + b"/01.jpg", folder + b"/caf\xe9.jpg")  # noqa: PTH104
    made = plan_folder(IngestConfig(source=str(tmp_path / "in"), raw="unused"))
    assert made.skipped == {"dog7/caf\\udce9.jpg": "its name is not UTF-8: rename it"}
    assert len(samples(made, tmp_path)) == 1


@pytest.mark.usefixtures("without_heic")
@pytest.mark.parametrize("name", ["IMG_1.HEIC", "a.heif", "b.avif"])
def test_heic_photos_name_the_extra_that_reads_them(tmp_path: Path, name: str) -> None:
    (tmp_path / "in" / "dog7").mkdir(parents=True)
    (tmp_path / "in" / "dog7" / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(InputError, match=r"HEIC.*dog7.*pip install 'lookalike\[heic\]'"):
        plan(tmp_path / "in")
    photo(tmp_path / "in" / "dog7" / "00.jpg")
    assert "lookalike[heic]" in plan(tmp_path / "in").skipped[f"dog7/{name}"]


def test_other_fields_are_kept(tmp_path: Path) -> None:
    (tmp_path / "00.json").write_text('{"year": 2020, "tags": ["a", "b"], "consent": true}')
    assert read_sidecar(open_store(str(tmp_path)), "00.json") == {"year": 2020, "tags": ["a", "b"], "consent": True}
